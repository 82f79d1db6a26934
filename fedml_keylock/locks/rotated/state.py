"""The lock that hangs on a model, and the hooks by which its state goes through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import LockError, VaultError
from ...types import JobSecrets
from ..job_key import JobKey
from ..private import ATTRIBUTE, Private, remove_hooks
from .mask import rounding, size_of
from .turns import OPEN, Part, Turns, digest, integers_of, parts_of

__all__ = ["StateLock", "lock_state", "state_lock", "unlock_state"]

NO_KEY = JobKey(bytes(32))
"""What stands for the key of a lock that has not seen its first model."""
SAMPLE = 1024
"""Numbers of a model that are remembered of it, at the most."""
LIKE = 0.2
"""The least cosine of the weights of two rounds of a job; that of 1,024 numbers of a model and of
noise is below it in all but one of 10 billion cases."""


class StateLock(Private):
    """One silo's hold on a model's whole state. Everything in it is private.

    Args:
        parts: what is turned together.
        dtypes: of what is of integers, by name; it is shared as it is.

    Attributes:
        key: of the job, bound to the first model, so that no two jobs turn alike; None before.
        round: index of the round under whose turn the state is shown and taken in; -1: as it is.
        sample: numbers of the model that was trained last: see `StateLock.remember`.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> lock = lock_state(model)
        >>> lock.begin(model.state_dict(), JobSecrets(b"secret"))
        >>> before = model.weight.clone()
        >>> lock.enter(0)
        >>> sent = model.state_dict()
        >>> torch.equal(sent["weight"], before), lock.made(sent) is None
        (False, False)
        >>> model.load_state_dict(sent)
        <All keys matched successfully>
        >>> torch.allclose(model.weight, before, atol=1e-6)
        True

    """

    def __init__(self, parts: tuple[Part, ...], dtypes: Mapping[str, torch.dtype]) -> None:
        self.parts, self.dtypes = parts, dtypes
        self.key: JobKey | None = None
        self.round = OPEN
        self.sample = torch.zeros(0)
        self._turns: Turns | None = None
        self._made: set[bytes] = set()
        self._taken: dict[str, bytes] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What the vault keeps of it."""
        kept = {"round": torch.tensor(self.round), "sample": self.sample}
        kept |= (self.key or NO_KEY).tensors
        return {f"{ATTRIBUTE}.{name}": tensor for name, tensor in kept.items()}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take what the vault kept.

        Raises:
            VaultError: it is of another lock; this one is unchanged.

        """
        own = self.tensors
        odd = sorted(own.keys() ^ kept.keys()) or [
            n for n, t in own.items() if kept[n].dtype != t.dtype or kept[n].dim() != t.dim()
        ]
        if odd or len(kept[f"{ATTRIBUTE}.key"]) != len(NO_KEY.root):
            raise VaultError(f"the private state is that of another lock: {[*odd, 'key'][0]}")
        short = {name.removeprefix(f"{ATTRIBUTE}."): tensor for name, tensor in kept.items()}
        for one, other in (("peers", "pairs"), ("silos", "samples")):
            if len(short[one]) != len(short[other]):
                raise VaultError(f"the private state is that of another lock: {other}")
        key = JobKey.from_tensors(short)
        self.key = None if key == NO_KEY else key
        self.sample = short["sample"].clone()
        self.enter(int(short["round"]))

    def begin(self, first: Mapping[str, Tensor], secrets: JobSecrets, *context: bytes) -> None:
        """Derive the job's key from the silos' secrets and the first model, once."""
        if self.key is None:
            self.key = JobKey.derive(secrets, digest(first), *context)

    def enter(self, round_index: int) -> None:
        """From now on the state is shown and taken in under this round's turn.

        Raises:
            LockError: there is no key: the lock has not seen the first model.

        """
        if round_index != OPEN and self.key is None:
            raise LockError("the lock has not seen the job's first model, and has no key to use")
        self.round = round_index
        self._made.clear()

    def remember(self, model: nn.Module) -> None:
        """Keep some of a model's numbers, by which one that was opened wrongly is told."""
        self.sample = _sample(model)

    def is_like(self, model: nn.Module) -> bool:
        """Whether a model can be of the same job as the one that was remembered.

        What was turned back by another round's turn is noise, of no direction that the model has.
        """
        sample = _sample(model)
        if len(sample) != len(self.sample):
            return not len(self.sample)  # nothing was remembered
        return bool(F.cosine_similarity(sample, self.sample, dim=0) >= LIKE)

    @property
    def masked(self) -> bool:
        """Whether what is sent is masked: this silo shares a secret with another one."""
        return self.key is not None and bool(self.key.pairs)

    @property
    def turns(self) -> Turns:
        """Those of the key and the round that it has now."""
        key, kept = self.key or NO_KEY, self._turns
        if kept is None or kept.key is not key or kept.round_index != self.round:
            self._turns = kept = Turns(self.parts, key, self.round)
        return kept

    def shown(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """The entries as the server may see them; remembered by their digest."""
        made = self.turns.turned(state, prefix)
        if made:
            self._made.add(digest({n.removeprefix(prefix): t for n, t in made.items()}))
        return made

    def made(self, state: Mapping[str, Tensor]) -> bytes | None:
        """The digest of a state that the lock has made just so in this round, bit by bit, or None.

        Of a state's integers it says nothing: see `integers`.
        """
        names = [name for part in self.parts for name in part.names]
        if not all(isinstance(state.get(name), Tensor) for name in names):
            return None
        found = digest({name: state[name] for name in names})
        return found if found in self._made else None

    def taken(
        self, state: Mapping[str, Any], prefix: str, own: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The entries as the model is to load them: turned back, and integers as such.

        What has come back as the model has it, but for rounding, stays bit by bit: a buffer of
        zeros and ones that says which entries count must be just that, and weights that are not
        trained must not wander. What the silo has changed since it was loaded is averaged, however
        little that may be.

        Args:
            state: that is about to be loaded.
            prefix: of its names.
            own: see `_untrained`.

        """
        opened = self.turns.opened(state, prefix)
        taken = {**opened, **self.integers(state, prefix)}
        for part in self.parts if opened else ():
            names = [name for name in part.names if name in own]
            size = size_of([opened[prefix + name] for name in part.names]) if names else 0.0
            masks = rounding(len(self.key.pairs) if self.key else 0, part.label, size)
            for name in names:
                new, old = opened[prefix + name], own[name]
                allowed = 16 * torch.finfo(new.dtype).eps * size + masks
                near = bool(((new - old.to(new.device)).abs() <= allowed).all())
                if near and self._is_as_taken(name, old):
                    taken[prefix + name] = old
        for name, old in own.items():
            came = taken.get(prefix + name, state.get(prefix + name))
            if isinstance(came, Tensor):
                self._taken[name] = digest({name: came.to(old.dtype)})
        return taken

    def _is_as_taken(self, name: str, tensor: Tensor) -> bool:
        """Whether an entry is what was loaded last; so is one of which nothing was loaded."""
        taken = self._taken.get(name)
        return taken is None or taken == digest({name: tensor})

    def integers(self, state: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
        """A state's entries for what is of integers, as such: their average is not.

        It is rounded, and not cut off: a third of 5, three times, may come to less than 5.

        Example:
            >>> lock = lock_state(nn.BatchNorm1d(2))
            >>> lock.integers({"num_batches_tracked": torch.tensor(4.9999995)})
            {'num_batches_tracked': tensor(5)}

        """
        found = {}
        for name, dtype in self.dtypes.items():
            came = state.get(prefix + name)
            if isinstance(came, Tensor):
                rounded = came.round() if came.is_floating_point() else came
                found[prefix + name] = rounded.to(dtype)
        return found


def lock_state(model: nn.Module) -> StateLock:
    """Put a lock on a model's whole state. It shows the state as it is until it enters a round.

    Args:
        model: any with parameters.

    Raises:
        LockError: it is locked already, or cannot be. The model is unchanged.

    """
    if hasattr(model, ATTRIBUTE):
        raise LockError(f"the model is locked already, or has a {ATTRIBUTE} of its own")
    lock = StateLock(parts_of(model), integers_of(model))
    # not a module of the model: a sequence would run it, and everybody would count it
    object.__setattr__(model, ATTRIBUTE, lock)
    # torch leaves these two without types
    model.register_state_dict_post_hook(show)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(take)  # type: ignore[no-untyped-call]
    return lock


def unlock_state(model: nn.Module) -> None:
    """Take the lock out; the weights are the model's own all the time.

    Raises:
        LockError: there is none.

    """
    if state_lock(model) is None:
        raise LockError("the model is not locked")
    object.__delattr__(model, ATTRIBUTE)
    remove_hooks(model, show, take)


def state_lock(model: nn.Module) -> StateLock | None:
    """The lock on a model's whole state, or None.

    Example:
        >>> state_lock(nn.Linear(2, 2)) is None
        True

    """
    found = vars(model).get(ATTRIBUTE)
    return found if isinstance(found, StateLock) else None


def _sample(model: nn.Module) -> Tensor:
    """Some numbers of a model, evenly spread."""
    count = sum(p.numel() for p in model.parameters())
    places = torch.linspace(0, count - 1, min(count, SAMPLE), dtype=torch.float64).long()
    found, start = [], 0
    for parameter in model.parameters():
        end = start + parameter.numel()
        own = places[(places >= start) & (places < end)] - start
        found.append(parameter.detach().flatten()[own.to(parameter.device)].cpu().float())
        start = end
    return torch.cat(found)


def show(model: nn.Module, state: dict[str, Any], prefix: str, _metadata: object) -> None:
    """The state-dict hook: what is shown is turned."""
    lock = state_lock(model)
    assert lock is not None
    state.update(lock.shown(state, prefix))


def take(model: nn.Module, state: dict[str, Any], prefix: str, *_others: object) -> None:
    """The load hook: what comes in is turned back."""
    lock = state_lock(model)
    assert lock is not None
    state.update(lock.taken(state, prefix, _untrained(model)))


def _untrained(model: nn.Module) -> dict[str, Tensor]:
    """What is turned and no optimizer moves, by name: buffers, and parameters that are frozen."""
    named = (
        *model.named_buffers(remove_duplicate=False),
        *model.named_parameters(remove_duplicate=False),
    )
    return {n: t.detach() for n, t in named if t.is_floating_point() and not t.requires_grad}
