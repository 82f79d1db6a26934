"""Reads a job's YAML: whether it sets this plugin, and in sections that FedML reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..locks.config import KeyLockConfig
from ..plugins import defenses
from ..types import Schedule

__all__ = [
    "INVERSION",
    "Arguments",
    "check_switches",
    "misplaced_settings",
    "our_attack",
    "our_defense",
    "read_yaml",
    "schedule_of",
    "silo_in_turn",
    "word",
]

Arguments = Any
"""FedML's `args`: one attribute for each key of all sections of the YAML."""

INVERSION = "gradient_inversion"


_FIELDS = {
    "defense_type": (KeyLockConfig.section, KeyLockConfig.model_fields.keys()),
    # of names that a section of everything may have for something else, none
    "attack_type": (
        INVERSION,
        {"abort_above", "active", "attacks", "bounds", "knowledge", "probe", "side", "when"},
    ),
}
"""Names of fields that only our sections have, by the field that holds the section."""


def our_defense(args: Arguments) -> str | None:
    """The `defense_type` if `enable_defense` is on and a plugin registered it, else None."""
    if not getattr(args, "enable_defense", False):
        return None
    name = word(args, "defense_type")
    return name if name in defenses() else None


def our_attack(args: Arguments) -> bool:
    """Whether the job sets gradient inversion."""
    return bool(getattr(args, "enable_attack", False)) and word(args, "attack_type") == INVERSION


def silo_in_turn(args: Arguments, trained: int) -> int:
    """The silo that FedML gives a rank, if there are more silos than ranks.

    Args:
        args: FedML's arguments.
        trained: number of finished rounds.

    """
    return _chosen(args, trained)[int(args.rank) - 1]


def schedule_of(args: Arguments) -> Schedule:
    """The participants of each round of a job, as FedML selects them.

    Args:
        args: FedML's arguments.

    Example:
        >>> from types import SimpleNamespace
        >>> numbers = {"client_num_in_total": 3, "client_num_per_round": 2, "comm_round": 3}
        >>> schedule_of(SimpleNamespace(training_type="cross_silo", **numbers)).rounds
        ((2, 1), (2, 1), (0, 2))

    """
    total = int(args.client_num_in_total)
    if total == int(args.client_num_per_round):
        return Schedule(total, (tuple(range(total)),) * int(args.comm_round))
    return Schedule(total, tuple(_chosen(args, index) for index in range(int(args.comm_round))))


def _chosen(args: Arguments, trained: int) -> tuple[int, ...]:
    """The silos that FedML selects for the ranks, if there are more silos than ranks.

    The choice is public, and the same on every rank. Its seed is the round's number, or in a
    cross-silo job that of the round before.
    """
    import numpy as np  # `doctor` may run without it

    seed = trained if args.training_type == "simulation" else max(0, trained - 1)
    total, each = int(args.client_num_in_total), int(args.client_num_per_round)
    chosen = np.random.RandomState(seed).choice(range(total), each, replace=False)
    return tuple(map(int, chosen))


def word(args: Arguments, name: str) -> str:
    """A field that holds a word, read as FedML does; empty if missing."""
    return str(getattr(args, name, "")).strip()


def check_switches(args: Arguments, read: Any = None) -> None:
    """Reject a job whose keylock settings FedML would ignore, to run it undefended.

    A job with `enable_defense: false` is off and passes.

    Args:
        args: FedML's arguments.
        read: contents of the job's YAML, whose sections FedML drops; None to read the file.

    Raises:
        ConfigError: a setting would be ignored; names the field and where it belongs.

    Example:
        >>> from types import SimpleNamespace
        >>> check_switches(SimpleNamespace(enable_defence=True, defense_type="keylock"))
        Traceback (most recent call last):
        fedml_keylock.errors.ConfigError: enable_defense: it is missing, and defense_type: keylock\
 would be ignored; set enable_defense: true, or false to run without it

    """
    for what, names in _our_names().items():
        flag, kind = f"enable_{what}", word(args, f"{what}_type")
        named = [f"{what}_type: {kind}"] if kind in names else []
        sections = {name: getattr(args, name, None) for name in names}
        named += [f"the {n} section" for n, s in sections.items() if isinstance(s, Mapping) and s]
        near = get_close_matches(kind, names, 1, 0.85)
        if near and kind not in names and getattr(args, flag, False):
            raise ConfigError(f"{what}_type: nothing is named {kind!r}, perhaps {near[0]}")
        if not named:
            continue
        if not hasattr(args, flag):
            raise ConfigError(
                f"{flag}: it is missing, and {named[0]} would be ignored; set {flag}: true, or "
                "false to run without it"
            )
        if getattr(args, flag) and kind not in names:
            found = repr(kind) if kind else "missing"
            raise ConfigError(
                f"{what}_type: it is {found}, and {named[0]} would be ignored; name "
                f"{' or '.join(names)} there, or take the section out"
            )
    for problem in misplaced_settings(_yaml_of(args) if read is None else read):
        raise ConfigError(problem)


def misplaced_settings(read: Any) -> Iterator[str]:
    """Keylock settings in places where nothing reads them, one line for each.

    Args:
        read: contents of a job's YAML: sections of fields.

    Example:
        >>> list(misplaced_settings({"defense_args": {"defense_type": "keylock", "vault": "v"}}))
        ['vault: it is of keylock and stands beside it; put it into defense_args.keylock']

    """
    sections = read if isinstance(read, Mapping) else {}
    for what, names in _our_names().items():
        for name in names:
            if isinstance(sections.get(name), Mapping):
                yield (
                    f"{name}: it stands on the YAML's top level, where FedML does not look for it; "
                    f"put it into {what}_args"
                )
    for section, fields in sections.items():
        if not isinstance(fields, Mapping):
            continue
        for what, (of, ours) in _FIELDS.items():
            for name in sorted(ours & fields.keys()) if fields.get(what) == of else ():
                yield f"{name}: it is of {of} and stands beside it; put it into {section}.{of}"
        yield from _misspelled(section, fields)


def _misspelled(section: Any, fields: Mapping[Any, Any]) -> Iterator[str]:
    """Sections whose names are misspelled: the job would run with the defaults."""
    for what, names in _our_names().items():
        if str(fields.get(f"{what}_type")) not in names:
            continue
        for name, value in fields.items():
            near = get_close_matches(str(name), names, 1, 0.7)
            if isinstance(value, Mapping) and near and name not in names:
                yield (
                    f"{name}: nobody reads a section of that name; call it {section}.{near[0]}, or "
                    "take it out"
                )


def read_yaml(path: Path) -> Any:
    """The contents of a job's YAML.

    Raises:
        ConfigError: the file is missing, or is not YAML.

    """
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{where}: this is not YAML") from None


def _our_names() -> dict[str, tuple[str, ...]]:
    """The plugin's names for FedML's two types, defense and attack."""
    return {"defense": tuple(defenses()), "attack": (INVERSION,)}


def _yaml_of(args: Arguments) -> Any:
    """The contents of the YAML that FedML read; None if there is none."""
    paths = getattr(args, "yaml_paths", None)
    try:
        return read_yaml(Path(paths[0])) if paths else None
    except ConfigError:
        return None  # FedML itself ends a job with an unreadable YAML
