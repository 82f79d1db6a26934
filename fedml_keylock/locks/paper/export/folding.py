"""Fold the lock into a plain model, for whoever may have what the silo has: its own deployment.

An exported model holds the lock, in another form: it is as private as the silo's vault.
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
"""The norm behind a convolution over so many dimensions."""
AFFINE = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
"""Norms of torch's that may have a weight and a bias."""


def fold(model: nn.Module) -> nn.Module:
    """A plain copy of a locked model with every lock folded in; see ``model.export_model``.

    Gamma and beta become a normalisation layer's own weight and bias, and the batch norm that a
    lock brought goes into its convolution. Its state has the plain model's names then. What cannot
    be folded becomes a module of its own, with the locked layer in a `nn.Sequential`:

    - the norm that a lock brought on a linear layer: a `nn.LayerNorm`;
    - the beta behind a `nn.RMSNorm`, which has no bias: a linear layer.

    A convolution without a bias may get one, and a norm without weight and bias both.

    Args:
        model: locked; with the private state that it is to have.

    Raises:
        LockError: it is part of a locked model, or a lock cannot be folded in.

    """
    copy = deep_copy(model).eval()
    taken = _take_out(copy)
    feeds = feeds_of(copy)
    for lock in taken:
        _fold(lock, feeds)
    for module in copy.modules():
        # its quick way reads the weights of layers and calls none, and one is a sequence now
        if isinstance(module, nn.TransformerEncoderLayer) and nn.Sequential in _kinds_in(module):
            module.activation_relu_or_gelu = 0
    return copy


@dataclass(frozen=True)
class _Taken:
    """What a lock did to its holder's output; gamma, beta and the rest in float64 on the CPU.

    Attributes:
        name: the holder's.
        holder: the layer.
        lock: on it.
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
        """Device and type of the layer."""
        return self.lock.bias_beta


def _kinds_in(module: nn.Module) -> set[type]:
    return {type(child) for child in module.children()}


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _take_out(copy: nn.Module) -> list[_Taken]:
    """Unlock a copy; what its locks did."""
    taken: list[_Taken] = []
    # the model that was locked may stand in a wrapping of the user's
    for prefix, root in reversed(list(copy.named_modules())):
        if not hasattr(root, DDP_IGNORES) or not any(locks(root)):
            continue
        values = lock_values(root)
        for name, holder, lock in locks(root):
            gamma, beta = map(_exact, values[name])
            taken.append(_Taken(under(prefix, name), holder, lock, gamma, beta))
        detach(root)
    if any(locks(copy)):
        raise LockError("this is a part of a model that was locked as a whole: export the whole")
    return taken


def _fold(taken: _Taken, feeds: Feeds) -> None:
    if taken.lock.normalise == "batch":
        _fold_batch(taken, feeds)
    elif taken.lock.normalise == "layer":
        norm = nn.LayerNorm(taken.lock.channels, EPS).to(taken.like)
        set_affine(norm, taken.gamma, taken.beta, taken.like)
        _put_behind(taken, feeds, norm)
    else:
        _fold_norm(taken, feeds)


def _fold_batch(taken: _Taken, feeds: Feeds) -> None:
    """The lock on a convolution, with its own batch norm."""
    layer, lock = taken.holder, taken.lock
    assert lock.running_mean is not None
    assert lock.running_var is not None
    mean, variance = _exact(lock.running_mean), _exact(lock.running_var)
    if is_plain(layer) and not feeds.shares(layer) and not feeds.reads(layer, values=True):
        fold_into(layer, batch_map(mean, variance, EPS, taken.gamma, taken.beta))
        return
    assert isinstance(layer, CONVOLUTIONS)
    norm = OWN_NORM[len(layer.kernel_size)](lock.channels, EPS).to(taken.like)
    norm.running_mean, norm.running_var = mean.to(taken.like), variance.to(taken.like)
    set_affine(norm, taken.gamma, taken.beta, taken.like)
    _put_behind(taken, feeds, norm)


def _fold_norm(taken: _Taken, feeds: Feeds) -> None:
    """The lock on a normalisation layer, gamma and beta in it."""
    norm, lock = taken.holder, taken.lock
    fits = (lock.fused or is_plain(norm)) and not feeds.shares(norm)
    if fits and isinstance(norm, AFFINE):
        set_affine(norm, taken.gamma, taken.beta, taken.like)
    elif fits and isinstance(norm, nn.RMSNorm):
        set_affine(norm, taken.gamma, None, taken.like)
        _put_behind(taken, feeds, shift_by(taken.beta, taken.like))
    else:
        raise LockError(
            f"{taken.name}: its weight is also another layer's, or its class is the job's own, so "
            "that no lock can be folded into it; let the silo run the locked model"
        )


def _put_behind(taken: _Taken, feeds: Feeds, *behind: nn.Module) -> None:
    if feeds.reads(taken.holder, values=False):
        raise LockError(
            f"{taken.name}: the model reads this layer's weight itself, so that nothing can be put "
            "behind the layer; lock others, or leave it to the silo to run the locked model"
        )
    put_behind(taken.holder, *behind)
