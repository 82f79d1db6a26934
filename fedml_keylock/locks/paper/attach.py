"""Attaches the lock to a model and removes it. The model keeps its identity and its class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import LockError
from ..config import KeyLockConfig
from ..description import LockInfo
from ..entropy import Uniform
from ..private import remove_hooks
from .chain import attach_chain, detach_chain, lock_values, next_values
from .kinds import LOCKABLE
from .layers import public_parameter, put_under_lock, release, seen
from .module import KeyLock, locks
from .placement import PINNED, sites_of
from .private_state import keep_private, lock_tensors, show_public

__all__ = ["DDP_IGNORES", "attach", "detach", "info_of", "is_statistic"]

DDP_IGNORES = "_ddp_params_and_buffers_to_ignore"
"""The attribute by which a model tells DistributedDataParallel which tensors not to send."""


def attach(
    model: nn.Module, config: KeyLockConfig, *, key: Tensor | None, uniform: Uniform
) -> None:
    """Put locks on the layers of a model that passed `check`; see ``model.lock_model``.

    Raises:
        LockError: the key does not fit. The model is unchanged.

    """
    if key is not None:
        _check_key(key, config)
    sites = sites_of(model, config)
    # make everything that can fail before the model is touched
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
        _put(model.get_submodule(name), part)
    if config.chained:
        attach_chain(model, tuple(site.holder for site in sites))
    _hide_from_ddp(model)


def info_of(model: nn.Module) -> LockInfo:
    """Describe the locks on a model's layers, and count the channels that are dead under them."""
    found = list(locks(model))
    gammas = [gamma for gamma, _ in lock_values(model).values() if not gamma.is_meta]
    private = sum(p.numel() for _, _, lock in locks(model) for p in lock.parameters())
    layers = tuple(dict.fromkeys(n for _, _, lock in locks(model) for n in lock.layers))
    public = sum(p.numel() for p in model.parameters()) - private
    dead = sum(int((gamma == 0).sum()) for gamma in gammas)
    named = ", ".join(layers[:6])
    if len(layers) > 6:
        named += f" and {len(layers) - 6} more"
    summary = (
        f"locked {named}: {private:,} private parameters beside {public:,} public ones"
        + f"; {dead} dead channels" * bool(dead)
    )
    return LockInfo(layers, tuple(n for n, _, _ in found), private, public, dead, summary)


def detach(model: nn.Module) -> None:
    """Remove the locks, and give locked normalisation layers their own weight and bias back.

    Raises:
        LockError: the model is part of a locked model, or holds one.

    """
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


def is_statistic(name: str) -> bool:
    """Whether a private tensor comes from the silo's data, not from its lock."""
    return ".keylock." not in f".{name}" or name.rsplit(".", 1)[-1].startswith("running_")


def _put(holder: nn.Module, lock: KeyLock) -> None:
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
    # torch does not annotate these two
    holder.register_state_dict_post_hook(show_public)  # type: ignore[no-untyped-call]
    holder.register_load_state_dict_pre_hook(keep_private)  # type: ignore[no-untyped-call]


def _shapes(shape: tuple[int, ...]) -> Tensor:
    """A placeholder for a lock on meta, which draws its values when it gets memory."""
    return torch.empty(shape, device="meta")


def _weight(model: nn.Module, layer: str) -> Tensor:
    # not the attribute `weight`: a reparametrised layer may hold an outdated one
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
