"""Attach the lock to a model and take it off again. The model keeps its identity and its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LockError
from .config import KeyLockConfig
from .key import Uniform, secret_uniform
from .module import KeyLock
from .state import keep_private, show_public
from .validate import plan

__all__ = ["LockInfo", "is_locked", "lock_model", "locks", "remove_hooks", "unlock_model"]


@dataclass(frozen=True)
class LockInfo:
    """What `lock_model` did.

    Attributes:
        layers: names of the locked layers.
        holders: names of the modules that the locks hang on, in the same order.
        private_parameters: how many numbers the locks hold and train.
        public_parameters: how many the model has beside them, all of them shared.

    """

    layers: tuple[str, ...]
    holders: tuple[str, ...]
    private_parameters: int
    public_parameters: int

    def __str__(self) -> str:
        return (
            f"locked {', '.join(self.layers)}: {self.private_parameters:,} private parameters "
            f"beside {self.public_parameters:,} public ones"
        )


def lock_model(
    model: nn.Module,
    config: KeyLockConfig | None = None,
    *,
    key: Tensor | None = None,
    uniform: Uniform = secret_uniform,
) -> LockInfo:
    """Lock a model in place.

    The lock hangs on the layers that it locks; the model's class, its layer names and its public
    state names stay. A locked normalisation layer's own weight and bias are set to 1 and 0 and no
    longer trained: gamma and beta take their place.

    Args:
        model: any module with a convolution.
        config: which layers and which module; the published lock by default.
        key: ``(K,)``, the same for every lock; drawn from the system's entropy when not given.
        uniform: where random numbers come from; anything but the default is for attackers and
            tests, who simulate locks.

    Raises:
        LockError: nothing in it can be locked, it is locked already, or the key does not fit. The
            model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten())
        >>> names = list(model.state_dict())
        >>> print(lock_model(model, KeyLockConfig(key_length=16)))
        locked 0: 204 private parameters beside 60 public ones
        >>> list(model.state_dict()) == names
        True

    """
    config = config or KeyLockConfig()
    if key is not None:
        _check_key(key, config)
    sites = plan(model, config)
    public = sum(p.numel() for p in model.parameters())
    # everything that can fail is made before the model is touched
    made = [
        KeyLock(
            site.channels,
            config,
            normalise=site.normalise,
            channel_dim=site.channel_dim,
            key=key,
            uniform=uniform,
        )
        for site in sites
    ]
    for site, lock in zip(sites, made, strict=True):
        weight = model.get_submodule(site.layer).weight
        assert isinstance(weight, Tensor)
        lock.to(device=weight.device, dtype=weight.dtype)
        _attach(model.get_submodule(site.holder), lock)
    return LockInfo(
        layers=tuple(site.layer for site in sites),
        holders=tuple(site.holder for site in sites),
        private_parameters=sum(p.numel() for lock in made for p in lock.parameters()),
        public_parameters=public,
    )


def unlock_model(model: nn.Module) -> None:
    """Take the lock out, and give locked normalisation layers their own weight and bias back.

    A model that was not trained in between computes exactly what it did before it was locked.

    Raises:
        LockError: the model is not locked.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3))
        >>> info = lock_model(model)
        >>> unlock_model(model)
        >>> is_locked(model)
        False

    """
    found = list(locks(model))
    if not found:
        raise LockError("the model is not locked")
    for _, holder, lock in found:
        del holder.keylock
        remove_hooks(holder, apply_keylock, show_public, keep_private)
        for name, (value, trained) in lock.before.items():
            tensor = getattr(holder, name)
            with torch.no_grad():
                tensor.copy_(value)
            tensor.requires_grad_(trained)


def is_locked(model: nn.Module) -> bool:
    """Whether any layer of the model carries a lock.

    Example:
        >>> is_locked(nn.Conv2d(1, 6, 3))
        False

    """
    return any(isinstance(module, KeyLock) for module in model.modules())


def locks(model: nn.Module) -> Iterator[tuple[str, nn.Module, KeyLock]]:
    """Each lock of a model, as (name of its holder, the holder, the lock).

    Example:
        >>> list(locks(nn.Conv2d(1, 6, 3)))
        []

    """
    for name, module in model.named_modules():
        lock = getattr(module, "keylock", None)
        if isinstance(lock, KeyLock):
            yield name, module, lock


def remove_hooks(holder: nn.Module, *functions: Callable[..., Any]) -> None:
    """Remove hooks by their function: their handles do not survive a copy of the model."""
    for hooks in (
        holder._forward_hooks,
        holder._state_dict_hooks,
        holder._load_state_dict_pre_hooks,
    ):
        for handle, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in functions:
                del hooks[handle]


def apply_keylock(holder: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    """Forward hook of a locked layer; at module level, so that a copy runs its own lock."""
    locked: Tensor = holder.keylock(output)  # type: ignore[operator]  # a lock, not a tensor
    return locked


def _attach(holder: nn.Module, lock: KeyLock) -> None:
    lock.train(holder.training)
    if lock.normalise is None:
        for name, constant in (("weight", 1.0), ("bias", 0.0)):
            tensor = getattr(holder, name, None)
            if tensor is not None:
                lock.before[name] = (tensor.detach().clone(), tensor.requires_grad)
                with torch.no_grad():
                    tensor.fill_(constant)
                tensor.requires_grad_(False)
    holder.keylock = lock
    holder.register_forward_hook(apply_keylock)
    # torch leaves these two without types
    holder.register_state_dict_post_hook(show_public)  # type: ignore[no-untyped-call]
    holder.register_load_state_dict_pre_hook(keep_private)  # type: ignore[no-untyped-call]


def _check_key(key: Tensor, config: KeyLockConfig) -> None:
    if key.shape != (config.key_length,) or not key.is_floating_point():
        raise LockError(
            f"the key must be {config.key_length} floating point numbers (keylock.key_length), "
            f"not {tuple(key.shape)} of {key.dtype}"
        )
    if not torch.isfinite(key).all() or not key.any():
        raise LockError("the key must be finite, and not all zeros")
