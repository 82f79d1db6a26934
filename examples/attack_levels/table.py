"""What is in the table: its rows, its columns, and how a cell is written."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Column:
    """What is attacked: which lock the job has, and who attacks.

    Attributes:
        name: short.
        title: in the table.
        lock: the YAML's `keylock:`; None without a defense.
        silos: of the job.
        colluding: silo 0 attacks the sum of the others, and not the server what it captured.

    """

    name: str
    title: str
    lock: dict[str, Any] | None
    silos: int = 3
    colluding: bool = False

    @property
    def job(self) -> str:
        """The job's name: one serves a server and a colluding silo."""
        return f"{(self.lock or {'lock': 'undefended'})['lock']}-{self.silos}"


@dataclass(frozen=True)
class Row:
    """An attack, on a net.

    Attributes:
        attack: its name.
        net: what the job trains.
        fields: where they differ from the attack's own.
        round: which round is attacked: 0 has a batch for each silo, 1 one image.
        active: the server sends the attack's model in that round.
        labels: labels are looked for, and no images.
        most: images behind an update up to which it is run; its work grows exponentially.
        victim: the only silo whose update is attacked; None for all.

    """

    attack: str
    net: str = "mlp"
    fields: dict[str, Any] = field(default_factory=dict)
    round: int = 0
    active: bool = False
    labels: bool = False
    most: int | None = None
    victim: int | None = None

    @property
    def name(self) -> str:
        """The row's."""
        return f"{self.attack}, {self.net}"

    @property
    def job(self) -> str:
        """The job's name: passive attacks share one."""
        return f"{self.net}-{self.attack if self.active else 'passive'}"

    @property
    def preset(self) -> str:
        """The attack that is made: of labels alone, any that there is."""
        return "inverting_gradients" if self.labels else self.attack


SEALED = {"lock": "sealed"}
COLUMNS = (
    Column("undefended", "undefended", None),
    Column("paper", "paper", {"lock": "paper"}),
    Column("rotated", "rotated", {"lock": "rotated"}),
    Column("sealed", "sealed", SEALED),
    *(
        Column(f"sum-{k}", f"sealed, colluding silo, k = {k}", SEALED, k + 1, colluding=True)
        for k in (2, 4, 9)
    ),
)
SEARCH = {"steps": 600, "restarts": 2, "total_variation": 1e-3}
ROWS = (
    Row("analytic", round=1),
    Row("spear", most=24),
    Row("cocktail_party", fields={"steps": 2000}),
    Row("inverting_gradients", fields=SEARCH),
    Row("ilrg", labels=True),
    Row("imprint", active=True),
    Row("trap_weights", active=True),
    Row("inconsistent_models", fields={"victim": 1, "reads": "spear"}, active=True, victim=1),
    Row("inverting_gradients", net="cnn", fields=SEARCH),
    Row("ilrg", net="cnn", labels=True),
    Row("imprint", net="cnn", active=True),
    Row("trap_weights", net="cnn", active=True),
)
NOTE = (
    "`python examples/attack_levels/run.py --data ROOT`. Each cell is of a real job over MPI, of "
    "{} images, with one SGD step a round: on four images in each silo (`analytic`: on one). How "
    "many images are recognised, at an SSIM of .6 or more after matching, of how many; their mean "
    "SSIM and PSNR; in brackets the control, which sees no gradient: the mean public image of "
    "each true class, and for labels as many public ones. Undefended, `paper`, `rotated` and "
    "`sealed`: a server that attacks what three silos sent, and knows the lock where the attack "
    "can use that. Colluding: silo 0 takes its own update out of the average that it is given, "
    "and attacks the sum of the k others. *Nothing found*: the attack says itself that it found "
    "nothing. That alone is no merit of a lock: see whether it finds something undefended. *Job "
    "refused*: a silo or the lock ends the job before anything is sent. *Not for it*: the attack "
    "says that this is no case of its own. *Not run*: more images than the attack's work, "
    "exponential in them, allows."
)


def table(cells: dict[str, dict[str, Any]], dataset: str) -> str:
    """The page."""
    lines = ["# Who reads what, under which lock", "", NOTE.format(dataset), ""]
    lines.append("| attack, net | " + " | ".join(column.title for column in COLUMNS) + " |")
    lines.append("|---" * (1 + len(COLUMNS)) + "|")
    reasons: dict[str, int] = {}
    for row in ROWS:
        made = [cells.get(f"{row.name}--{column.name}") for column in COLUMNS]
        if not any(made):
            continue
        said = ["not made yet" if cell is None else _said(cell, reasons) for cell in made]
        lines.append(f"| `{row.attack}`, {row.net} | {' | '.join(said)} |")
    lines += ["", "Reasons:", ""]
    lines += [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + "\n"


def _said(cell: dict[str, Any], reasons: dict[str, int]) -> str:
    if "refused" in cell:
        number = reasons.setdefault(cell["refused"], len(reasons) + 1)
        return f"{'job refused' if cell['by'] == 'job' else 'not for it'} ({number})"
    control = cell["control"]
    if "not run" in cell:
        return f"not run, of {control['images']}"
    if "no result" in cell:
        return f"nothing found, of {control['images']}"
    if "labels" in cell:
        return f"{cell['labels']} / {cell['images']} labels [{control['labels']}]"
    decibels = sum(cell["psnr"]) / len(cell["psnr"])
    return (
        f"{cell['recognised']} / {cell['images']}, SSIM {cell['ssim']:.2f}, {decibels:.0f} dB "
        f"[{control['recognised']}, {control['ssim']:.2f}]"
    )
