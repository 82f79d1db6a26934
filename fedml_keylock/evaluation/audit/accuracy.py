"""Accuracy of a job's model by round: without a key, and under each silo's own lock."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...inversion import PublicData, logits_of
from ...tensors import copy_of, one_thread
from ...types import AttackerModel, ClientUpdate
from ..capture import Capture
from ..interval import mean_interval
from ..leakage import Interval

__all__ = ["OwnLock", "Rounds", "accuracy_by_round", "share_correct"]

OwnLock = Callable[[Mapping[str, Tensor], int, int | None], nn.Module]
"""Gives the state that a silo computed with, from the state that the server sent: at a round's
start, or after the last round (None)."""

Rounds = dict[str, list[tuple[int, float]]]
"""Role to ``(round, share)``: share of test images classified correctly at the round's start."""

_AT_ONCE = 250


def accuracy_by_round(
    capture: Capture,
    model: nn.Module,
    data: PublicData,
    own_lock: OwnLock | None = None,
    *,
    attacker_model: AttackerModel | None = None,
) -> tuple[dict[str, Interval], Rounds]:
    """Test the weights sent in each captured round, and the final ones.

    The model is the job's, unprotected, with any weights. ``own_lock`` needs the silos' private
    state; leave it out if nobody has that. The attacker's model gives what the server can read;
    without one the server reads the model itself.

    Returns:
        The final model's accuracy by role, empty if the job did not end, and the rounds' accuracy.
        Roles: "server", without a lock; "own_lock", the mean over the captured silos.

    Raises:
        AttackError: the capture is damaged.
        VaultError: a silo's private state is missing.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> capture = Capture.create(Path(tempfile.mkdtemp()), {"learning_rate": 0.1, "rounds": 1})
        >>> capture.add(ClientUpdate(net.state_dict(), net.state_dict(), 0.1))
        >>> data = PublicData(torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.long))
        >>> [len(points) for points in accuracy_by_round(capture, net, data)[1].values()]
        [1]

    """
    plain = copy_of(model)

    def shares(
        sent: Mapping[str, Tensor], silos: list[int], index: int | None
    ) -> dict[str, list[float]]:
        update = ClientUpdate(sent, sent, 1.0)
        read = update if attacker_model is None else attacker_model.read(update)
        plain.load_state_dict({**plain.state_dict(), **read.before})
        found = {"server": [share_correct(plain, data)]}
        if own_lock is not None:
            locked = (own_lock(sent, silo, index) for silo in silos)
            found["own_lock"] = [share_correct(one, data) for one in locked]
        return found

    rounds: Rounds = {}
    final: dict[str, Interval] = {}
    for index in capture.rounds():
        silos = [silo for number, silo in capture.entries() if number == index]
        for role, each in shares(capture.sent(index), silos, index).items():
            rounds.setdefault(role, []).append((index, sum(each) / len(each)))
    if capture.ended:
        every = sorted({silo for _, silo in capture.entries()})
        for role, each in shares(capture.final(), every, None).items():
            final[role] = mean_interval(torch.tensor(each))
            rounds[role].append((int(capture.meta["rounds"]), sum(each) / len(each)))
    return final, rounds


def share_correct(model: nn.Module, data: PublicData) -> float:
    """The share of images that a model classifies correctly. Puts the model into eval mode."""
    model.eval()
    with one_thread(), torch.no_grad():
        parts = torch.split(data.images, _AT_ONCE)
        found = torch.cat([logits_of(model(some)).argmax(1) for some in parts])
    return float((found == data.labels).float().mean())
