"""The audit: attacks the updates of a job or a model, with every control, and reports what leaked.

    subject = probe(model, images, labels, protection=protection)
    report = audit(subject, {"inverting_gradients": inverting_gradients()}, output=Path("audit"))
    report.save(Path("audit"))

Every audit runs the controls that its figures need: public images without any gradient, the
undefended baseline and the lock's normalisation without its secrets. If the silos' private state
is known, it also runs the key-knowing upper bound, which is the attack's self-test.

Importing this package loads nothing: its names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import lazy

if TYPE_CHECKING:
    from ..leakage import PUBLIC_NORM
    from .accuracy import OwnLock, Rounds, accuracy_by_round, share_correct
    from .crew import Alone, Crew, Pool, Ranks, muster
    from .pictures import load_pictures
    from .procedure import audit
    from .subject import Fresh, Protection, Subject
    from .training import probe
    from .truth import Truth, from_capture, load_truth, save_truth

_FILES = {
    "..leakage": ("PUBLIC_NORM",),
    ".accuracy": ("OwnLock", "Rounds", "accuracy_by_round", "share_correct"),
    ".crew": ("Alone", "Crew", "Pool", "Ranks", "muster"),
    ".pictures": ("load_pictures",),
    ".procedure": ("audit",),
    ".subject": ("Fresh", "Protection", "Subject"),
    ".training": ("probe",),
    ".truth": ("Truth", "from_capture", "load_truth", "save_truth"),
}
_WHERE = {name: file for file, names in _FILES.items() for name in names}

__all__ = [
    "PUBLIC_NORM",
    "Alone",
    "Crew",
    "Fresh",
    "OwnLock",
    "Pool",
    "Protection",
    "Ranks",
    "Rounds",
    "Subject",
    "Truth",
    "accuracy_by_round",
    "audit",
    "from_capture",
    "load_pictures",
    "load_truth",
    "muster",
    "probe",
    "save_truth",
    "share_correct",
]


__getattr__, __dir__ = lazy(__name__, _WHERE)
