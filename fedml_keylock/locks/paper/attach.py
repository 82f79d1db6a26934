"""Attach the lock to a model and take it off again. The model keeps its identity and its class."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import LockError
from ..config import KeyLockConfig
from ..entropy import Uniform, secret_uniform
from ..group_key import group_secret
from ..hooks import remove_hooks
from ..rotated import lock_of, lock_state, unlock_state
from .chain import attach_chain, detach_chain, lock_values, next_values
from .kinds import LOCKABLE
from .layers import public_parameter, put_under_lock, release, seen
from .module import KeyLock, locks
from .placement import PINNED, plan
from .private_state import (
    keep_private,
    load_private_state_dict,
    lock_tensors,
    private_state_dict,
    show_public,
)

__all__ = ["LockInfo", "lock_info", "lock_model", "redraw_lock", "unlock_model"]

DDP_IGNORES = "_ddp_params_and_buffers_to_ignore"
"""The attribute by which a model tells DistributedDataParallel what not to send."""


@dataclass(frozen=True)
class LockInfo:
    """What `lock_model` did, and what `lock_info` finds.

    Attributes:
        layers: names of the locked layers.
        holders: names of the modules that the locks hang on.
        private_parameters: how many numbers the locks hold and train.
        public_parameters: how many the model has beside them, all of them shared.
        dead_channels: how many have a gamma of 0: they learn nothing, and their vanishing gradient
            shows it to the server.
        whole: the lock is on the whole state: every layer is locked, and no gamma and beta are.

    """

    layers: tuple[str, ...]
    holders: tuple[str, ...]
    private_parameters: int
    public_parameters: int
    dead_channels: int = 0
    whole: bool = False

    def __str__(self) -> str:
        if self.whole:
            return (
                f"locked the whole state: all of {self.public_parameters:,} parameters are turned "
                "before they are sent"
            )
        named = ", ".join(self.layers[:6])
        if len(self.layers) > 6:
            named += f" and {len(self.layers) - 6} more"
        dead = f"; {self.dead_channels} dead channels" if self.dead_channels else ""
        return (
            f"locked {named}: {self.private_parameters:,} private parameters beside "
            f"{self.public_parameters:,} public ones{dead}"
        )


def lock_model(
    model: nn.Module,
    config: KeyLockConfig | None = None,
    *,
    key: Tensor | None = None,
    uniform: Uniform | None = None,
) -> LockInfo:
    """Lock a model in place. Its class, its layer names and its public state names stay.

    A lock on the whole state changes nothing in the model: its `state_dict()` gives, and its
    `load_state_dict()` takes, the state turned. A lock on layers hangs on the layers that it locks.
    A locked normalisation layer's own weight and bias are set to 1 and 0 and no longer trained:
    gamma and beta take their place.

    Args:
        model: any module with parameters; for a lock on layers, with a convolution.
        config: which lock; the one on the whole state by default.
        key: of locks on layers, ``(K,)``, the same for every lock that has one; drawn from the
            system's entropy when not given.
        uniform: where random numbers come from: the system's entropy, or the group's secret.
            Anything but the default is for attackers and tests, who simulate locks.

    Raises:
        ConfigError: the group's secret is too short.
        VaultError: its file is missing, or others may read it.
        LockError: nothing in it can be locked, it is locked already, or the key does not fit. The
            model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten())
        >>> names = list(model.state_dict())
        >>> print(lock_model(model, KeyLockConfig(module="affine", key_length=16)))
        locked 0: 24 private parameters beside 60 public ones
        >>> list(model.state_dict()) == names
        True

    """
    config = config or KeyLockConfig()
    if config.is_whole:
        if key is not None:
            raise LockError("a key is of locks on layers, and module: whole has none")
        return _lock_whole(model, config, uniform)
    if key is not None:
        _check_key(key, config)
    uniform = secret_uniform if uniform is None else uniform
    planned = plan(model, config)
    sites = planned.sites
    # everything that can fail is made before the model is touched
    like = {site.holder: _weight(model, site.layers[0]) for site in sites}
    meta = any(weight.is_meta for weight in like.values())
    if meta and config.chained:
        raise LockError("a chained lock needs a model with values: take it off meta before")
    if meta and key is not None:
        raise LockError("a key needs a model with values: take it off meta before")
    draw = _shapes if meta else uniform
    made: dict[str, KeyLock] = {}
    values = None
    for site in sites:
        made[site.holder] = lock = KeyLock(
            site.channels,
            config,
            normalise=site.normalise,
            channel_dim=site.channel_dim,
            key=key,
            keys=values,
            uniform=draw,
        )
        lock.layers = site.layers
        if config.chained:
            values = next_values(lock, values)
    for name, part in made.items():
        part.to(device=like[name].device, dtype=like[name].dtype)
        _attach(model.get_submodule(name), part)
    if config.chained:
        attach_chain(model, tuple(site.holder for site in sites))
    _hide_from_ddp(model)
    return lock_info(model)


def _lock_whole(model: nn.Module, config: KeyLockConfig, uniform: Uniform | None) -> LockInfo:
    plan(model, config)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise LockError("module: whole needs a model with values: take it off meta before")
    if uniform is not None:
        secret = bytes((256 * uniform((32,))).byte().tolist())
    elif config.group_key is not None:
        secret = group_secret(config.group_key)
    else:
        secret = os.urandom(32)
    lock = lock_state(model)
    # in a job the key is made of the first model that comes, and rounds follow
    lock.begin({n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}, secret)
    lock.enter(0)
    return lock_info(model)


def lock_info(model: nn.Module) -> LockInfo:
    """What a locked model's locks are, and how many channels are dead under them.

    Raises:
        LockError: the model is not locked.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> lock_info(model)
        Traceback (most recent call last):
            ...
        fedml_keylock.errors.LockError: the model is not locked

    """
    found = list(locks(model))
    if lock_of(model) is not None:
        layers = [n for n, m in model.named_modules() if [*m.parameters(recurse=False)]]
        count = sum(p.numel() for p in model.parameters())
        return LockInfo((*layers,), ("",), 0, count, whole=True)
    if not found:
        raise LockError("the model is not locked")
    gammas = [gamma for gamma, _ in lock_values(model).values() if not gamma.is_meta]
    private = sum(p.numel() for _, _, lock in locks(model) for p in lock.parameters())
    return LockInfo(
        layers=tuple(dict.fromkeys(n for _, _, lock in locks(model) for n in lock.layers)),
        holders=tuple(name for name, _, _ in found),
        private_parameters=private,
        public_parameters=sum(p.numel() for p in model.parameters()) - private,
        dead_channels=sum(int((gamma == 0).sum()) for gamma in gammas),
    )


def unlock_model(model: nn.Module) -> None:
    """Take the lock out, and give locked normalisation layers their own weight and bias back.

    A model that was not trained in between computes exactly what it did before it was locked.

    Raises:
        LockError: the model is not locked.

    Example:
        >>> from fedml_keylock.locks import is_locked
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> info = lock_model(model)
        >>> unlock_model(model)
        >>> is_locked(model)
        False

    """
    found = list(locks(model))
    if lock_of(model) is not None:
        unlock_state(model)
        return
    if not found:
        raise LockError("the model is not locked")
    if not hasattr(model, DDP_IGNORES):
        raise LockError("this is part of a locked model, or holds one: unlock the model itself")
    detach_chain(model)
    _show_to_ddp(model)
    for _, holder, lock in list(locks(model)):
        release(holder)
        del holder.keylock
        remove_hooks(holder, seen, show_public, keep_private)
        for name, (value, trained) in lock.before.items():
            tensor = public_parameter(holder, name)
            assert tensor is not None
            with torch.no_grad():
                tensor.copy_(value)
            tensor.requires_grad_(trained)


def redraw_lock(model: nn.Module, config: KeyLockConfig, *, uniform: Uniform | None = None) -> None:
    """Put a fresh lock's values in the place of a lock's own. Normalisation statistics stay.

    Only values change: an optimizer may hold the parameters already.

    Args:
        model: locked.
        config: what it was locked with.
        uniform: see `lock_model`.

    Raises:
        LockError: the model is not locked.
        VaultError: it was locked otherwise.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> config = KeyLockConfig(module="affine")
        >>> info, before = lock_model(model, config), lock_values(model)["0"][0].detach()
        >>> redraw_lock(model, config)
        >>> lock_values(model)["0"][0].equal(before)
        False

    """
    statistics = {n: t for n, t in private_state_dict(model).items() if _is_statistic(n)}
    fresh = deepcopy(model)
    unlock_model(fresh)
    lock_model(fresh, config, uniform=uniform)
    load_private_state_dict(model, private_state_dict(fresh) | statistics)


def _is_statistic(name: str) -> bool:
    """Whether a private tensor tells of the silo's data, and not of the lock on it."""
    return ".keylock." not in f".{name}" or name.rsplit(".", 1)[-1].startswith("running_")


def _attach(holder: nn.Module, lock: KeyLock) -> None:
    lock.train(holder.training)
    holder.keylock = lock
    for name, constant in ({} if isinstance(holder, LOCKABLE) else PINNED).items():
        tensor = public_parameter(holder, name)
        if tensor is not None:
            lock.before[name] = (tensor.detach().clone(), tensor.requires_grad)
            with torch.no_grad():
                tensor.fill_(constant)
            tensor.requires_grad_(False)
    lock.fused = put_under_lock(holder)
    # torch leaves these two without types
    holder.register_state_dict_post_hook(show_public)  # type: ignore[no-untyped-call]
    holder.register_load_state_dict_pre_hook(keep_private)  # type: ignore[no-untyped-call]


def _shapes(shape: tuple[int, ...]) -> Tensor:
    """What a lock on meta is made of: it is drawn when it gets memory."""
    return torch.empty(shape, device="meta")


def _weight(model: nn.Module, layer: str) -> Tensor:
    # not its attribute `weight`: a reparametrised layer may hold a stale one
    return next(model.get_submodule(layer).parameters())


def _hide_from_ddp(model: nn.Module) -> None:
    setattr(model, DDP_IGNORES, [*getattr(model, DDP_IGNORES, ()), *sorted(lock_tensors(model))])


def _show_to_ddp(model: nn.Module) -> None:
    private = lock_tensors(model)
    left = [name for name in getattr(model, DDP_IGNORES) if name not in private]
    if left:
        setattr(model, DDP_IGNORES, left)
    else:
        delattr(model, DDP_IGNORES)


def _check_key(key: Tensor, config: KeyLockConfig) -> None:
    if key.shape != (config.key_length,) or not key.is_floating_point():
        raise LockError(
            f"the key must be {config.key_length} floating point numbers (keylock.key_length), "
            f"not {tuple(key.shape)} of {key.dtype}"
        )
    if not key.isfinite().all() or not key.any():
        raise LockError("the key must be finite, and not all zeros")
