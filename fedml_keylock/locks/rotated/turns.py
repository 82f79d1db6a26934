"""Which entries of a model's state are turned together, and how under one key in one round."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ...errors import LockError, UpdateRefused
from ...tensors import infinite_in, one_thread, raw
from ..job_key import JobKey
from .orthogonal import Turn

__all__ = ["OPEN", "Part", "Turns", "as_one", "digest", "integers_of", "parts_of"]

OPEN = -1
"""The round under which a state is shown as it is: that of the first model, which the server made
and knows."""
LABEL = "rotation "
PARAMETERS = "parameters"
"""Label of the part that they are."""


@dataclass(frozen=True)
class Part:
    """Entries that are one vector to a turn.

    Attributes:
        label: of its stream.
        names: in the model's state, in order.
        least: what no number of it can be below; None for no such limit.

    """

    label: str
    names: tuple[str, ...]
    least: float | None = None


def parts_of(model: nn.Module) -> tuple[Part, ...]:
    """All parameters together, and each buffer of floating-point numbers by itself.

    Together, so that what a turn leaves to be seen is one length and not one a layer; apart,
    because a running variance of thousands beside weights of hundredths would cost these their
    precision. Integers, such as counts of batches, are shared as they are.

    Raises:
        LockError: there is nothing to turn, or something of complex numbers.

    Example:
        >>> [part.label for part in parts_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))]
        ['parameters', '1.running_mean', '1.running_var']

    """
    state = model.state_dict()
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    odd = [n for n, t in state.items() if isinstance(t, Tensor) and t.is_complex()]
    if odd:
        raise LockError(f"{odd[0]}: lock: rotated cannot lock complex numbers")
    real = [n for n, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()]
    for name in infinite_in(state):
        raise LockError(
            f"{name}: lock: rotated cannot rotate infinite numbers; use lock: sealed, or keep it "
            "out of the state (persistent=False)"
        )
    names = tuple(name for name in real if name in trained and state[name].numel())
    if not names:
        raise LockError(f"{type(model).__name__} has no parameters to lock")
    rest = [name for name in real if name not in trained and state[name].numel()]
    # rounding may take a variance of nothing below 0, where no norm can use it
    buffers = (Part(n, (n,), 0.0 if n.endswith("running_var") else None) for n in rest)
    return (Part(PARAMETERS, names), *buffers)


def integers_of(model: nn.Module) -> dict[str, torch.dtype]:
    """The entries of a model's state that are no part, by name: buffers, parameters, extra state.

    Example:
        >>> integers_of(nn.BatchNorm1d(2))
        {'num_batches_tracked': torch.int64}

    """
    state = model.state_dict()
    return {
        name: tensor.dtype
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and not tensor.is_floating_point()
    }


class Turns:
    """What every part is turned by, under one key in one round.

    Args:
        parts: see `parts_of`.
        key: of the job.
        round_index: from 0 on; OPEN for no turn at all.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> turns, state = Turns(parts_of(model), JobKey(bytes(32)), 0), model.state_dict()
        >>> back = turns.opened(turns.turned(state))
        >>> torch.allclose(back["weight"], state["weight"], atol=1e-6)
        True

    """

    def __init__(self, parts: Sequence[Part], key: JobKey, round_index: int) -> None:
        self.parts, self.key, self.round_index = tuple(parts), key, round_index
        self._made: dict[str, Turn] = {}

    def turned(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """The entries that are turned, as the server gets them. The state is not changed.

        Raises:
            UpdateRefused: an entry is missing.

        """
        return self._mapped(state, prefix, undo=False)

    def opened(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """The same entries as they were before they were turned.

        Raises:
            UpdateRefused: an entry is missing.

        """
        return self._mapped(state, prefix, undo=True)

    # several threads round otherwise, and where processes share cores they take far longer
    @one_thread()
    @torch.no_grad()
    def _mapped(self, state: Mapping[str, Tensor], prefix: str, *, undo: bool) -> dict[str, Tensor]:
        if self.round_index == OPEN:
            return {}
        mapped: dict[str, Tensor] = {}
        for part in self.parts:
            names = [prefix + name for name in part.names]
            missing = [name for name in names if name not in state]
            if missing:
                raise UpdateRefused(
                    f"{missing[0]} is missing: a state under lock: rotated is one vector, and only "
                    "the whole of it can be sent or loaded: use lock: sealed for parts of a state"
                )
            mapped |= as_one(names, state, partial(self._turn_part, part, undo=undo))
        return mapped

    def _turn_part(self, part: Part, flat: Tensor, *, undo: bool) -> Tensor:
        turn = self._turn(part, len(flat))
        if not undo:
            return turn.apply(flat)
        flat = turn.undo(flat)
        return flat if part.least is None else flat.clamp(min=part.least)

    def _turn(self, part: Part, size: int) -> Turn:
        if part.label not in self._made:
            stream = self.key.stream(LABEL + part.label, self.round_index)
            self._made[part.label] = Turn(size, stream)
        return self._made[part.label]


def as_one(
    names: Sequence[str], state: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Some entries of a state, changed as one vector in float64. The state is not changed.

    Example:
        >>> state = {"a": torch.zeros(2), "b": torch.zeros(1, 1)}
        >>> as_one(("a", "b"), state, lambda flat: flat + torch.arange(3))["b"]
        tensor([[2.]])

    """
    tensors = [state[name].detach() for name in names]
    changed = change(torch.cat([tensor.cpu().double().flatten() for tensor in tensors]))
    pieces = torch.split(changed, [tensor.numel() for tensor in tensors])
    return {
        # copied, or a piece would be a view of the whole, and be pickled with all of it
        name: piece.view(tensor.shape).to(tensor, copy=True)
        for name, tensor, piece in zip(names, tensors, pieces, strict=True)
    }


def digest(state: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of all tensors of a state, by name.

    Example:
        >>> digest({"a": torch.zeros(1)}) == digest({"a": torch.ones(1)})
        False

    """
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(f"{name} {state[name].dtype} {tuple(state[name].shape)};".encode())
        found.update(raw(state[name]))
    return found.digest()
