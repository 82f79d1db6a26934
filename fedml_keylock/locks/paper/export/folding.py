"""Folds the lock into a plain model, for the silo's own deployment.

An exported model holds the lock in another form: it is as private as the silo's vault.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ....errors import LockError
from ....tensors import deep_copy, under
from ..attach import DDP_IGNORES, detach
from ..chain import lock_values
from ..kinds import CONVOLUTIONS, is_plain
from ..module import EPS, KeyLock, locks
from .arithmetic import batch_map, fold_into, put_behind, set_affine, shift_by
from .feeds import Feeds, feeds_of

__all__ = ["fold"]

OWN_NORM: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}
"""The batch norm for a convolution of so many dimensions."""
AFFINE = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
"""torch's norms that may have a weight and a bias."""


def fold(model: nn.Module) -> nn.Module:
    """A plain copy of a locked model with every lock folded in; see ``model.export_model``.

    Gamma and beta become a normalisation layer's own weight and bias. The batch norm that a lock
    added is folded into its convolution. The state then has the plain model's names. What cannot be
    folded becomes a module of its own, in a `nn.Sequential` with the locked layer:

    - the norm that a lock added on a linear layer: a `nn.LayerNorm`;
    - the beta behind a `nn.RMSNorm`, which has no bias: a linear layer.

    A convolution without a bias may get one, and a norm without weight and bias may get both.

    Args:
        model: locked, with the private state to fold in.

    Raises:
        LockError: the model is part of a locked model, or a lock cannot be folded in.

    """
    copy = deep_copy(model).eval()
    removed = _unlock_all(copy)
    feeds = feeds_of(copy)
    for lock in removed:
        _fold(lock, feeds)
    for module in copy.modules():
        # its fast path reads weights without calling the layers, and one is a sequence now
        if isinstance(module, nn.TransformerEncoderLayer) and nn.Sequential in _kinds_in(module):
            module.activation_relu_or_gelu = 0
    return copy


@dataclass(frozen=True)
class _RemovedLock:
    """A removed lock; gamma, beta and the rest in float64 on the CPU.

    Attributes:
        name: of the holder.
        holder: the layer that carried the lock.
        lock: the lock itself.
        gamma: ``(c,)``.
        beta: ``(c,)``.

    """

    name: str
    holder: nn.Module
    lock: KeyLock
    gamma: Tensor
    beta: Tensor

    @property
    def like(self) -> Tensor:
        """A tensor with the layer's device and type."""
        return self.lock.bias_beta


def _kinds_in(module: nn.Module) -> set[type]:
    return {type(child) for child in module.children()}


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _unlock_all(copy: nn.Module) -> list[_RemovedLock]:
    """Unlock a copy, and return the locks that it had."""
    removed: list[_RemovedLock] = []
    # the locked model may be inside a wrapper of the user's
    for prefix, root in reversed(list(copy.named_modules())):
        if not hasattr(root, DDP_IGNORES) or not any(locks(root)):
            continue
        values = lock_values(root)
        for name, holder, lock in locks(root):
            gamma, beta = map(_exact, values[name])
            removed.append(_RemovedLock(under(prefix, name), holder, lock, gamma, beta))
        detach(root)
    if any(locks(copy)):
        raise LockError("this is a part of a model that was locked as a whole: export the whole")
    return removed


def _fold(removed: _RemovedLock, feeds: Feeds) -> None:
    if removed.lock.normalise == "batch":
        _fold_batch(removed, feeds)
    elif removed.lock.normalise == "layer":
        norm = nn.LayerNorm(removed.lock.channels, EPS).to(removed.like)
        set_affine(norm, removed.gamma, removed.beta, removed.like)
        _put_behind(removed, feeds, norm)
    else:
        _fold_norm(removed, feeds)


def _fold_batch(removed: _RemovedLock, feeds: Feeds) -> None:
    """Fold the lock of a convolution, with the batch norm it added."""
    layer, lock = removed.holder, removed.lock
    assert lock.running_mean is not None
    assert lock.running_var is not None
    mean, variance = _exact(lock.running_mean), _exact(lock.running_var)
    if is_plain(layer) and not feeds.shares(layer) and not feeds.reads(layer, values=True):
        fold_into(layer, batch_map(mean, variance, EPS, removed.gamma, removed.beta))
        return
    assert isinstance(layer, CONVOLUTIONS)
    norm = OWN_NORM[len(layer.kernel_size)](lock.channels, EPS).to(removed.like)
    norm.running_mean, norm.running_var = mean.to(removed.like), variance.to(removed.like)
    set_affine(norm, removed.gamma, removed.beta, removed.like)
    _put_behind(removed, feeds, norm)


def _fold_norm(removed: _RemovedLock, feeds: Feeds) -> None:
    """Fold the lock of a normalisation layer: gamma and beta become its weight and bias."""
    norm, lock = removed.holder, removed.lock
    fits = (lock.fused or is_plain(norm)) and not feeds.shares(norm)
    if fits and isinstance(norm, AFFINE):
        set_affine(norm, removed.gamma, removed.beta, removed.like)
    elif fits and isinstance(norm, nn.RMSNorm):
        set_affine(norm, removed.gamma, None, removed.like)
        _put_behind(removed, feeds, shift_by(removed.beta, removed.like))
    else:
        raise LockError(
            f"{removed.name}: its weight is also another layer's, or its class is the job's own, "
            "so that no lock can be folded into it; let the silo run the locked model"
        )


def _put_behind(removed: _RemovedLock, feeds: Feeds, *behind: nn.Module) -> None:
    if feeds.reads(removed.holder, values=False):
        raise LockError(
            f"{removed.name}: the model reads this layer's weight itself, so that nothing can be "
            "put behind the layer; lock others, or leave it to the silo to run the locked model"
        )
    put_behind(removed.holder, *behind)
