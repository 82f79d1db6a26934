"""How well a point's model works: for its silos, for who has no lock, and for who fits one.

Of the 1,000 images that nobody trains on, the first 64 are the public ones that an attacker fits a
lock on; everybody is tested with the others.
"""

import statistics
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from points import Point
from splits import Setting, first_model, parts, pictures
from torch import Tensor, nn
from training import LEARNING_RATE, global_state, silo_locks

from fedml_keylock.builtin import keylock
from fedml_keylock.evaluation.audit import share_correct
from fedml_keylock.inversion import PublicData
from fedml_keylock.locks import Lock, lock_model
from fedml_keylock.locks.entropy import seeded_uniform
from fedml_keylock.silos import fresh_lock_accuracy
from fedml_keylock.tensors import one_thread
from fedml_keylock.types import AttackerModel

PUBLIC = 64
FRESH = 5
"""How many fresh locks the mean is over."""
STARTS, STEPS, FIT_RATE = 3, 400, 0.02
"""Of fitting: locks that it starts from, the one with the least loss on the public images kept."""
SCRATCH_RATE = 3e-3
BOUND = {"public": PUBLIC, "fresh": FRESH, "fit": [STARTS, STEPS, FIT_RATE, SCRATCH_RATE]}
"""What a result is bound to, beside its folder."""
PAIRS = {"lenet": 200, "resnet20": 15}
"""Pairs of steps that a ratio of times is the median of; the median of three such counts."""


def measure(point: Point, setting: Setting, folder: Path) -> dict[str, Any]:
    """Every accuracy of a trained point, as a share, and the bytes that a silo sends in a round."""
    images, labels = pictures(setting.data)
    _, rest = parts(setting)
    some, others = rest[:PUBLIC], rest[PUBLIC:]
    public, test = (
        PublicData(images[some], labels[some]),
        PublicData(images[others], labels[others]),
    )
    plain, state = first_model(setting.net, setting.seed), global_state(folder)
    plain.load_state_dict(state)
    result: dict[str, Any] = {
        "server": share_correct(deepcopy(plain), test),
        "upload_bytes": sum(value.numel() * value.element_size() for value in state.values()),
    }
    scratch = deepcopy(first_model(setting.net, 1000 + setting.seed))
    result["from_scratch"] = _tuned(
        scratch, list(scratch.parameters()), SCRATCH_RATE, public, test
    )[1]
    if point.lock is None:
        # what the server has is what a silo has
        return result | {"own": result["server"], "own_each": [result["server"]]}
    defense, own = silo_locks(point, setting, folder)
    each = [share_correct(own(state, silo, None), test) for silo in range(setting.silos)]
    draw = torch.Generator().manual_seed(7919 * (setting.seed + 1))
    fresh = fresh_lock_accuracy(
        plain,
        defense,
        own,
        test,
        count=FRESH,
        silos=setting.silos,
        uniform=seeded_uniform(draw),
    )
    if defense.seals:  # what the server has are words: noise, and no start for a fit
        result["server"], fitted = statistics.mean(fresh), result["from_scratch"]
        message = defense.rehearse(state, [(1.0, state)] * setting.silos)[0][0]
        result["upload_bytes"] = sum(v.numel() * v.element_size() for v in message.values())
    else:
        fitted = _fitted(plain, defense, draw, public, test)
    return result | {
        "own": statistics.mean(each),
        "own_each": each,
        "fresh": statistics.mean(fresh),
        "fitted": fitted,
    }


def _fitted(
    plain: nn.Module,
    defense: Lock,
    draw: torch.Generator,
    public: PublicData,
    test: PublicData,
) -> float:
    """What a lock fitted on public images is worth.

    A rotation of the whole state has as many unknowns as its square: there all weights are tuned,
    from what the server has.
    """
    if defense.transforms_updates:
        net = deepcopy(plain)
        return _tuned(net, list(net.parameters()), SCRATCH_RATE, public, test)[1]
    return fit_lock(defense.attacker_model(plain), draw, public, test)[1]


def fit_lock(
    known: AttackerModel,
    draw: torch.Generator,
    public: PublicData,
    test: PublicData,
) -> tuple[dict[str, Tensor], float]:
    """A lock that works on public images, all of it fitted, from locks drawn as a new silo's are.

    Returns:
        Its values by the attacker model's names, and its accuracy on the test's images.

    """
    starts = known.draw(STARTS, draw)
    found = []
    for index in range(STARTS):
        net = deepcopy(known.model)
        unknown = {n: p for n, p in net.named_parameters() if n in known.names}
        with torch.no_grad():
            for name, parameter in unknown.items():
                parameter.copy_(starts[name][index])
        fitted = list(unknown.values())
        loss, share = _tuned(net, fitted, FIT_RATE, public, test)
        found.append((loss, share, {n: p.detach() for n, p in unknown.items()}))
    _, share, fitted = min(found, key=lambda one: one[0])
    return fitted, share


def _tuned(
    net: nn.Module,
    parameters: list[nn.Parameter],
    rate: float,
    public: PublicData,
    test: PublicData,
) -> tuple[float, float]:
    """Train these parameters on public images; loss on them, and accuracy on the test's.

    Normalisation is by the batch throughout: who has no lock has no statistics behind it either.
    """
    torch.func.replace_all_batch_norm_modules_(net)
    net.train()
    loss = torch.tensor(0.0)
    with one_thread():
        optimizer = torch.optim.Adam(parameters, rate)
        for _ in range(STEPS):
            net.zero_grad()
            loss = F.cross_entropy(net(public.images), public.labels)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            pairs = zip(test.images.split(250), test.labels.split(250), strict=True)
            right = torch.cat([net(some).argmax(1) == of for some, of in pairs])
    return float(loss.detach()), float(right.float().mean())


def step_ratio(point: Point, net: str) -> dict[str, Any]:
    """A training step under the lock over the plain model's, batch 64, one thread.

    A median of pairs of neighbours, in one process, so that what else the machine does is in both.
    """
    if point.lock is None:
        return {"step_ratio": 1.0}  # a rival changes the update once a round
    images, labels = torch.rand(64, 1, 28, 28), torch.arange(64) % 10
    plain, locked = first_model(net, 0), first_model(net, 0)
    config = keylock(point.lock).config
    lock_model(locked, config, uniform=seeded_uniform(torch.Generator().manual_seed(0)))
    with one_thread():
        steps = [_step_of(model, images, labels) for model in (plain, locked)]
        medians = []
        for _ in range(3):
            pairs = [[_time(step) for step in steps] for _ in range(PAIRS[net])]
            medians.append(statistics.median(own / other for other, own in pairs))
    return {"step_ratio": statistics.median(medians), "medians": medians}


def _step_of(model: nn.Module, images: Tensor, labels: Tensor) -> Any:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], LEARNING_RATE)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    for _ in range(3):
        step()
    return step


def _time(step: Any) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
