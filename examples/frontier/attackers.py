"""Who attacks: what they know of how silos protect themselves, with which attack, how hard."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from points import Point, hides_layers, seals
from splits import first_model
from torch import nn

from fedml_keylock.inversion import Attack, inverting_gradients, learned

STAGES = ("untrained", "trained")
SEARCH = {"learning_rate": 0.2, "secret_learning_rate": 0.02, "total_variation": 1e-2}
ALTERNATE = 10
HALF, FEW = 0.5, 0.2
MOST_LAYERS = 4
"""Layers of a net whose gradient alone is attacked, evenly spread, the first and last too."""


@dataclass(frozen=True)
class Effort:
    """How hard attackers try.

    Attributes:
        images: attacked, in each seed and stage.
        restarts: of a search.
        steps: of a search.
        learning: steps by which a decoder is trained.
        rate: of the attacked step of SGD. So great a one keeps the gradient whole, as if it was
            sent itself. At a job's own the update of an image that the model is sure of is rounded
            to little or nothing, whatever the lock (LeNet after 20 rounds: at 0.1 its norm is
            1e-13 to 2): that would be no lock's merit.

    """

    images: int = 20
    restarts: int = 10
    steps: int = 600
    learning: int = 1200
    rate: float = 1e6


@dataclass(frozen=True)
class Attacker:
    """One row: who attacks, with what.

    Attributes:
        name: in files and tables.
        level: of knowledge, where silos have a lock.
        attack: makes it.
        variant: "own", or "twin" for the same step at the same weights without any protection.
        rivals: whether it makes sense where there is no lock, but a rival.
        none: or nothing at all.
        stages: at whose weights it differs from the others.
        knows: whether it is somebody who knows the protection, and has no silo's private state.
        whole: whether there is something in it where the whole state is sent as something else, of
            which no layer, no unknown of a layer and no earlier round can be told.
        only_whole: whether it is for such locks alone.
        others: whether it is a silo, which has the sum of the others': for locks that seal alone.
        shared: whether silos send several updates each, under one lock.
        single: whether it takes one image an update only.
        fits: whether it has a lock that it fitted on all public images, in the place of a silo's.
        told: whether the locks that it simulates with are the silos' own: an oracle who learns.

    """

    name: str
    level: str
    attack: Callable[[Effort], Attack]
    variant: str = "own"
    rivals: bool = False
    none: bool = False
    stages: tuple[str, ...] = STAGES
    knows: bool = True
    whole: bool = False
    only_whole: bool = False
    others: bool = False
    shared: bool = False
    single: bool = False
    fits: bool = False
    told: bool = False


def _search(share: float = 1.0, **more: Any) -> Callable[[Effort], Attack]:
    """Inverting gradients, with a share of the restarts: the others have fewer than `joint`."""

    def made(effort: Effort) -> Attack:
        restarts = max(1, round(share * effort.restarts))
        return inverting_gradients(steps=effort.steps, restarts=restarts, **SEARCH, **more)

    return made


def _alone(layer: str) -> Callable[[Effort], Attack]:
    """One layer decides; where its step was rounded to nothing, the others do."""
    return _search(HALF, layer_weights={"*": 1e-6, f"{layer}.*": 1.0})


ATTACKERS = (
    "oblivious",
    "joint",
    "alternating",
    "first-layer",
    "per-layer",
    "insider",
    "others",
    "temporal",
    "simulating",
    "fitted",
    "oracle",
    "twin",
)
"""On the command line. `per-layer` is one attacker a layer."""


def attackers(net: str) -> dict[str, list[Attacker]]:
    """All of them, by the command line's names."""
    first, *others = _layers(first_model(net, 0))

    def decoder(tuned: float) -> Callable[[Effort], Attack]:
        return lambda effort: learned(steps=effort.learning, tuned=tuned)

    everywhere = {"rivals": True, "none": True}
    per_layer = [
        Attacker(f"{layer} alone", "adaptive", _alone(layer), **everywhere) for layer in others
    ]
    return {
        "oblivious": [Attacker("oblivious", "oblivious", _search(FEW), rivals=True, whole=True)],
        "joint": [Attacker("joint", "adaptive", _search(), whole=True, **everywhere)],
        "alternating": [Attacker("alternating", "adaptive", _search(HALF, alternate=ALTERNATE))],
        "first-layer": [Attacker("first layer", "adaptive", _alone(first), **everywhere)],
        "per-layer": per_layer,
        # of a fresh lock another fresh lock says nothing: there an insider is `joint` again
        "insider": [
            Attacker("insider", "insider", _search(HALF), stages=("trained",)),
            Attacker("colluding", "insider", _search(HALF), whole=True, only_whole=True),
        ],
        "others": [Attacker("sum of the others", "oblivious", _search(), knows=False, others=True)],
        "temporal": [Attacker("temporal", "temporal", _search(HALF), shared=True)],
        # a lock of the first round is not tuned to the weights, and of a later one more or less
        "simulating": [
            Attacker(
                "simulating",
                "simulating",
                decoder(tuned),
                stages=(stage,),
                single=True,
                whole=True,
                **everywhere,
            )
            for stage, tuned in zip(STAGES, (0.0, 0.5), strict=True)
        ],
        # at untrained weights no lock fits better than another
        "fitted": [Attacker("fitted", "oracle", _search(FEW), stages=("trained",), fits=True)],
        "oracle": [
            Attacker("oracle", "oracle", _search(FEW), knows=False, whole=True),
            Attacker(
                "oracle who simulates",
                "simulating",
                decoder(0.0),
                knows=False,
                shared=True,
                single=True,
                told=True,
            ),
        ],
        "twin": [
            Attacker(
                "twin",
                "oblivious",
                _search(FEW),
                variant="twin",
                rivals=True,
                knows=False,
                whole=True,
            )
        ],
    }


def _layers(model: nn.Module) -> list[str]:
    """Some of those that have a matrix of weights, the first and the last among them."""
    found = [
        name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    count = min(len(found), MOST_LAYERS)
    places = torch.linspace(0, len(found) - 1, count).round().int().tolist()
    return [found[place] for place in places]


def wanted_of(
    point: Point, net: str, names: Sequence[str], stages: Sequence[str], batches: Sequence[int]
) -> Iterator[tuple[Attacker, str, int]]:
    """Which attackers there are against a point, at which stage, on how many images an update."""
    every = attackers(net)
    for stage in stages:
        for batch in batches:
            for attacker in (one for name in names for one in every[name]):
                if attacker.others:
                    if seals(point):
                        yield attacker, stage, batch
                    continue
                if hides_layers(point) and not attacker.whole:
                    continue
                if attacker.only_whole and not hides_layers(point):
                    continue
                fits = point.lock is not None or (attacker.rivals if point.rival else attacker.none)
                if fits and stage in attacker.stages and (batch == 1 or not attacker.single):
                    yield attacker, stage, batch
