"""The points of the frontier: what silos do to protect themselves. A new one is one line.

`none` is plain FedAvg. A *lock* is the `keylock:` section of a job's YAML. A *rival* changes the
update that a silo has trained, before it is sent: Gaussian noise on the update clipped to a norm
(differential privacy's mechanism; no accountant, as what is compared is what it costs and stops),
or only its largest entries (Zhu et al. 2019, section 5.2), the rest kept in the silo for the next
round, as gradient compression has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedml_keylock.builtin import keylock
from fedml_keylock.inversion import Clip, Noise, Prune, Transform

NETS = ("lenet", "resnet20")
CLIP = 0.3
"""Norm that a silo's update is clipped to before noise is added. A round of plain FedAvg comes to
0.3 to 0.5 on LeNet, so that updates are about at the clip in training as they are where they are
attacked; on ResNet-20 the first comes to 4."""


@dataclass(frozen=True)
class Point:
    """One way for silos to protect themselves.

    Attributes:
        name: on the command line, in files and in the table.
        family: what the picture gives one colour.
        lock: the `keylock:` section; None where silos have no lock.
        rival: `clip` and `noise` (the deviation of each entry over the clip), or `keep`.
        nets: those that it is for.

    """

    name: str
    family: str
    lock: Mapping[str, Any] | None = None
    rival: Mapping[str, float] = field(default_factory=dict)
    nets: tuple[str, ...] = NETS


def locked(name: str, family: str, **settings: Any) -> Point:
    """A lock; its settings are those of the YAML's `keylock:` section."""
    return Point(name, family, lock=settings)


def noised(name: str, noise: float) -> Point:
    """Gaussian noise of so many times the clip, in each entry of the update."""
    return Point(name, "dp", rival={"clip": CLIP, "noise": noise})


def pruned(name: str, keep: float) -> Point:
    """Only this share of each layer's entries, the largest."""
    return Point(name, "pruning", rival={"keep": keep})


POINTS = {
    point.name: point
    for point in (
        Point("none", "none"),
        locked("sealed", "sealed"),
        locked("rotated", "rotated", lock="rotated"),
        locked("paper-first", "paper", lock="paper"),
        locked("paper-all", "paper", lock="paper", layers="all"),
        noised("dp-1e-2", 1e-2),
        noised("dp-3e-2", 3e-2),
        noised("dp-6e-2", 6e-2),
        noised("dp-1e-1", 1e-1),
        noised("dp-3e-1", 3e-1),
        pruned("pruning-10%", 0.1),
        pruned("pruning-1%", 0.01),
        pruned("pruning-0.1%", 0.001),
    )
}
"""By name. `none` is always measured, as the others are measured against it."""


def hides_layers(point: Point) -> bool:
    """Whether silos send the whole state as something else, so that no layer can be told apart."""
    return point.lock is not None and keylock(point.lock).transforms_updates


def is_rotated(point: Point) -> bool:
    """Whether silos rotate the whole state: what the simulation ends with is rotated, too."""
    return hides_layers(point) and not seals(point)


def seals(point: Point) -> bool:
    """Whether silos send words, of which only the sum opens."""
    return point.lock is not None and keylock(point.lock).seals


def transforms(rival: Mapping[str, float]) -> tuple[Transform, ...]:
    """What a rival does to an update; nothing for no rival."""
    if "keep" in rival:
        return (Prune(rival["keep"]),)
    return (Clip(rival["clip"]), Noise(rival["noise"] * rival["clip"])) if rival else ()


def transforms_at_clip(rival: Mapping[str, float]) -> tuple[Transform, ...]:
    """The same of an update whose norm is just the clip, whatever it is counted in.

    A smaller one drowns in the noise, and a greater one is cut to this: no update gives more away.
    """
    return (NoiseAtClip(rival["noise"]),) if "noise" in rival else transforms(rival)


@dataclass(frozen=True)
class NoiseAtClip:
    """Normal noise in every entry, in units of the whole gradient's norm."""

    noise: float

    def apply(
        self, gradient: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What the silo sends."""
        norm = torch.stack([value.square().sum() for value in gradient.values()]).sum().sqrt()
        return Noise(self.noise * float(norm)).apply(gradient, generator)

    def replay(self, gradients: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """The expectation: as they are."""
        return list(gradients)
