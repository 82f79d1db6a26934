"""How well a job's model worked, round by round: without a key, and under each silo's own lock."""

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
"""What a silo computed with, of a state that the server had sent: when a round began, or after the
last (None)."""

Rounds = dict[str, list[tuple[int, float]]]
"""Role to ``(round, share)``: with what share of test images right that round began."""

_AT_ONCE = 250


def accuracy_by_round(
    capture: Capture,
    model: nn.Module,
    data: PublicData,
    own_lock: OwnLock | None = None,
    *,
    attacker_model: AttackerModel | None = None,
) -> tuple[dict[str, Interval], Rounds]:
    """Test the weights that were sent in each captured round, and those that training ended with.

    The model is the job's, unprotected; its own weights do not matter. Without ``own_lock`` nobody
    has the silos' private state. The attacker's model says what the server reads of what it has.
    Without one the server reads the model itself.

    Returns:
        The final model's accuracy by role, empty if the job did not end, and that of the rounds.
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
    """The share of images of which a model names the label. It is put into eval mode."""
    model.eval()
    with one_thread(), torch.no_grad():
        parts = torch.split(data.images, _AT_ONCE)
        found = torch.cat([logits_of(model(some)).argmax(1) for some in parts])
    return float((found == data.labels).float().mean())
