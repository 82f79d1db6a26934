"""The names that a report shows for defenses, attackers, attacks, columns and roles.

Files keep the names of settings ("keylock:sealed", "oblivious"); pages show these words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .leakage import BASELINE, ORACLE, PUBLIC_NORM, SUM, UNDEFENDED

__all__ = [
    "GOAL",
    "KNOWLEDGE",
    "METRICS",
    "ROLES",
    "STAGE",
    "Attacker",
    "attack_name",
    "attacker",
    "claim_of",
    "colludes",
    "defense_name",
    "roles_of",
    "title_words",
]

METRICS = {
    "ssim_aligned": "SSIM aligned",
    "ssim": "SSIM",
    "psnr_aligned": "PSNR aligned, dB",
    "psnr": "PSNR, dB",
    "label_accuracy": "labels",
    "lpips_aligned": "LPIPS aligned",
    "lpips": "LPIPS",
}
ROLES = {"own_lock": "silos", "fresh_lock": "random key", "server": "server"}
GOAL, STAGE = "privacy compromise: data reconstruction", "training"
"""Goal and stage of learning of every attack here, as NIST AI 100-2e2025 names them."""


@dataclass(frozen=True)
class Attacker:
    """An attacker, in words.

    Attributes:
        name: the field's term.
        does: what the attacker knows and does, in a clause.
        knowledge: NIST AI 100-2e2025's term, and the parts of the system that the attacker has.

    """

    name: str
    does: str
    knowledge: str

    @property
    def who(self) -> str:
        """The name with its article, for use in a sentence."""
        article = "an" if self.name[0] in "aeiou" or self.name.startswith("honest") else "a"
        said = self.name.replace(", sum of", " with the sum of")
        return f"{article} {said.replace(', on', ' on')}"


_MODEL = "gray-box: the model and its weights"
KNOWLEDGE = {
    "none": Attacker("honest-but-curious server", "reads the update as it was sent", _MODEL),
    "oblivious": Attacker(
        "defense-unaware attacker", "takes what was sent for plain weights", _MODEL
    ),
    "adaptive": Attacker(
        "adaptive attacker",
        "knows the kind of lock, and searches for its secrets and the image together",
        f"{_MODEL}, the defense, no key",
    ),
    "statistics": Attacker(
        "adaptive attacker with shared statistics",
        "adaptive, and reads the batch's statistics in normalisation layers",
        f"{_MODEL}, the defense, statistics, no key",
    ),
    "simulating": Attacker(
        "learned adaptive attacker",
        "adaptive, and has trained a decoder on public images under locks of its own",
        f"{_MODEL}, the defense, public data, no key",
    ),
    "temporal": Attacker(
        "multi-round adaptive attacker",
        "adaptive, and pools the rounds of one silo",
        f"{_MODEL}, the defense, several rounds, no key",
    ),
    "insider": Attacker(
        "colluding silo, on a single update",
        "adaptive, and has the private state of another silo that colludes",
        f"{_MODEL}, the defense, a colluding silo's key",
    ),
    ORACLE: Attacker(
        "key-knowing upper bound",
        "has the silo's own key: the attack's self-test, and no attacker",
        "white-box: the model, its weights, the defense, every key",
    ),
}
"""Level of knowledge to its attacker. Rows without a defense have "none"."""

_ATTACKS = {
    "dlg": "DLG",
    "idlg": "iDLG",
    "grnn": "GRNN",
    "ggl": "GGL",
    "gradinversion": "GradInversion",
    "spear": "SPEAR",
    "dager": "DAGER",
    "tableak": "TabLeak",
}
_LAYERS = {"first": "on the first layer", "all": "on all layers"}


def attack_name(name: str) -> str:
    """An attack's name in words.

    Example:
        >>> attack_name("dlg"), attack_name("inverting_gradients")
        ('DLG', 'inverting gradients')

    """
    return _ATTACKS.get(name, name.replace("_", " "))


def colludes(level: str) -> bool:
    """Whether the attacker colludes with a silo.

    Example:
        >>> colludes("insider"), colludes("colluding silo, sum of 2 others"), colludes("oracle")
        (True, True, False)

    """
    return level == "insider" or level.startswith(SUM)


def attacker(level: str) -> Attacker:
    """The attacker at a level of knowledge; a plugin's own level keeps its name.

    Example:
        >>> attacker("oblivious").name, attacker("colluding silo, sum of 2 others").name
        ('defense-unaware attacker', 'colluding silo, sum of 2 others')

    """
    if level == BASELINE:
        return Attacker("public data alone", "guesses, without any gradient", "no access")
    if level.startswith(SUM):
        does = "has the average of those silos' updates, and no single one"
        return Attacker(level, does, f"{_MODEL}, the defense, colluding silos' keys")
    return KNOWLEDGE.get(level, Attacker(level, "", "not said"))


def defense_name(title: str) -> str:
    """A defense in words; a plugin's keeps its name.

    Example:
        >>> defense_name("none")
        'no defense (undefended baseline)'
        >>> defense_name("keylock:sealed")
        'sealed lock'
        >>> defense_name("keylock:paper:first+sealed")
        'published lock, on the first layer, sealed'

    """
    if title == UNDEFENDED:
        return "no defense (undefended baseline)"
    if title == PUBLIC_NORM:
        return "public normalisation (control)"
    section, lock, more, sealed = _parts(title)
    if section != "keylock":
        return title
    if lock == "paper":
        named = [_LAYERS.get(one, one if one == "chained" else f"on {one}") for one in more]
        return ", ".join(["published lock", *named, *["sealed"] * sealed])
    name = {"sealed": "sealed lock", "rotated": "rotated lock"}.get(lock)
    return title if name is None else ", ".join([name, *(f"{one} key" for one in more)])


def claim_of(title: str) -> str:
    """Which attackers a defense claims to stop, and its assumptions; empty for a plugin's defense.

    Example:
        >>> claim_of("keylock:paper:all")
        'Claim: none against whoever knows the lock. Its source tried defense-unaware attackers.'

    """
    section, lock, _, sealed = _parts(title)
    if title == UNDEFENDED:
        return "Nothing is held off: the server reads every update."
    if section != "keylock":
        return ""
    if lock == "sealed" or sealed:
        return (
            "Claim: a server alone, honest-but-curious or malicious, gets words that are uniformly "
            "random to it. That rests on X25519 key agreement between silos and on AES-256 "
            "keystreams. Colluding silos get the sum of the others' updates."
        )
    if lock == "rotated":
        return (
            "Claim: it holds off an honest-but-curious server and others without the key. That "
            "rests on the secret rotation alone; lengths and distances of updates stay readable. "
            "Colluding silos have the key."
        )
    if lock == "paper":
        return (
            "Claim: none against whoever knows the lock. Its source tried defense-unaware "
            "attackers."
        )
    return ""


def title_words(title: str) -> str:
    """A trial's title in words.

    Example:
        >>> title_words("none, dlg"), title_words("keylock:sealed")
        ('no defense (undefended baseline), DLG', 'sealed lock')

    """
    defense, attack, level = [*title.split(", ", 2), "", ""][:3]
    words = [defense_name(defense), attack_name(attack), level and attacker(level).name]
    return ", ".join(filter(None, words))


def _parts(title: str) -> tuple[str, str, list[str], bool]:
    """Section, lock, other settings named, and whether the lock's output is sealed."""
    plain = title.removesuffix("+sealed")
    section, lock, *more = [*plain.split(":"), ""]
    return section, lock, [one for one in more if one], plain != title


def roles_of(accuracy: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The roles that occur in defenses' accuracies, the usual ones first.

    Example:
        >>> roles_of({"none": {"server": {}}, "keylock": {"own_lock": {}, "a plugin's": {}}})
        ['own_lock', 'server', "a plugin's"]

    """
    found = {role for measured in accuracy.values() for role in measured}
    return [role for role in ROLES if role in found] + sorted(found - set(ROLES))
