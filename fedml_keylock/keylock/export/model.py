"""Fold the lock into a plain model, for whoever may have what the silo has: its own deployment.

An exported model holds the lock, in another form: it is as private as the silo's vault.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves

from ...errors import LockError, first_line
from ...names import under
from ..attach import DDP_IGNORES, unlock_model
from ..chain import lock_values
from ..formula import EPS
from ..kinds import CONVOLUTIONS, is_plain
from ..locked import public_parameter
from ..module import KeyLock, WeightLock, every_lock, is_locked, locks
from ..pieces import dense
from ..validate import PINNED
from ..whole import lock_of
from .feeds import Feeds, feeds_of
from .fold import (
    ChannelMap,
    batch_map,
    fold_into,
    is_grouped,
    pass_through,
    pointwise,
    put_behind,
    set_affine,
)

__all__ = ["export_model"]

OWN_NORM: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
AFFINE = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
"""Norms of torch's that may have a weight and a bias."""


def export_model(
    model: nn.Module, *, example: Tensor | tuple[Tensor, ...] | None = None
) -> nn.Module:
    """A plain copy of a locked model with every lock folded in. The model itself is not touched.

    In evaluation it gives the same outputs. It has no class, hook or attribute of this package
    left: it can be pickled, scripted and exported where the unlocked model can, and loads where
    this package is not installed. It is for evaluation only, and is returned in that mode: what a
    convolution has taken in of a batch norm are the silo's running statistics.

    What a lock does to a layer's weight and bias becomes these. Otherwise gamma and beta become a
    normalisation layer's own weight and bias, and a batch norm's mixing goes into the convolution
    in front of it. Its state has the plain model's names then. What cannot be folded becomes a
    module of its own, with the locked layer in a `nn.Sequential`:

    - a mixing behind any other norm, a grouped convolution, or a batch norm that is not fed by one
      layer alone: a 1x1 convolution or a linear layer behind it;
    - the norm that a lock brought on a linear layer: a `nn.LayerNorm`;
    - the beta behind a `nn.RMSNorm`, which has no bias: a linear layer.

    A convolution without a bias may get one, and a norm without weight and bias both.

    Args:
        model: locked; with the private state that it is to have.
        example: an input, or several, that the model runs on. Only needed where it cannot be known
            otherwise how many dimensions a locked layer's output has; the error says so.

    Raises:
        LockError: it is not locked, is part of a locked model, has no values (on meta), does not
            run on the example, or needs one.

    Example:
        >>> from fedml_keylock.keylock import KeyLockConfig, lock_model
        >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)).eval()
        >>> info = lock_model(model, KeyLockConfig(module="affine"))
        >>> plain, x = export_model(model), torch.rand(2, 1, 5, 5)
        >>> torch.allclose(plain(x), model(x), atol=1e-5)
        True
        >>> is_locked(plain)
        False

    """
    if not is_locked(model):
        raise LockError("the model is not locked")
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise LockError("the model has no values to export: it is on meta")
    if lock_of(model) is not None:  # it computes as it is
        copy = deepcopy(model).eval()
        unlock_model(copy)
        return copy
    copy = _copy(model).eval()
    measured = None if example is None else _measured(model, copy, example)
    taken, on_weights = _take_out(copy)
    feeds = feeds_of(copy, measured)
    for change in on_weights:
        _fold_weights(change, feeds)
    for lock in taken:
        _fold(lock, feeds)
    for module in copy.modules():
        # its quick way reads the weights of layers and calls none, and one is a sequence now
        if isinstance(module, nn.TransformerEncoderLayer) and nn.Sequential in _kinds_in(module):
            module.activation_relu_or_gelu = 0
    return copy


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy; of a model that keeps something of its last forward pass too."""
    kept = [t for module in model.modules() for t in tree_leaves(vars(module))]
    # torch refuses to copy what has a gradient function
    made = [t for t in kept if isinstance(t, Tensor) and not t.is_leaf]
    return deepcopy(model, {id(t): t.detach().clone() for t in made})


@dataclass(frozen=True)
class _Taken:
    """What a lock did to its holder's output; gamma, beta and the rest in float64 on the CPU.

    Attributes:
        name: the holder's.
        holder: the layer.
        lock: on it.
        gamma: ``(c,)``.
        beta: ``(c,)``.
        mixing: behind them, ``(c, c)``.
        front: in front of the norm that the lock brought, ``(c, c)``.

    """

    name: str
    holder: nn.Module
    lock: KeyLock
    gamma: Tensor
    beta: Tensor
    mixing: Tensor | None
    front: Tensor | None = None

    @property
    def like(self) -> Tensor:
        """Device and type of the layer."""
        return self.lock.bias_beta


@dataclass(frozen=True)
class _OnWeights:
    """What a lock did to its holder's weight and bias, and how that comes out on the output.

    Attributes:
        name: the holder's.
        holder: the layer.
        lock: on it.
        change: of the output's channels; None where the weight is another, or its inputs mixed.

    """

    name: str
    holder: nn.Module
    lock: KeyLock | WeightLock
    change: ChannelMap | None


def _kinds_in(module: nn.Module) -> set[type]:
    return {type(child) for child in module.children()}


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _take_out(copy: nn.Module) -> tuple[list[_Taken], list[_OnWeights]]:
    """Unlock a copy; what its locks did."""
    taken: list[_Taken] = []
    on_weights: list[_OnWeights] = []
    # the model that was locked may stand in a wrapping of the user's
    for prefix, root in reversed(list(copy.named_modules())):
        if not hasattr(root, DDP_IGNORES) or not is_locked(root):
            continue
        values = lock_values(root)
        for name, holder, lock in every_lock(root):
            whole = under(prefix, name)
            if lock.map_scale is not None:
                raise LockError(
                    f"{whole}: scales and shifts over a map (module: map) cannot be folded"
                )
            mixing = None if lock.mixing is None else dense(_exact(lock.mixing))
            if isinstance(lock, KeyLock) and lock.chained:  # it makes its own in no forward pass
                lock.values = _exact(values[name][0]), _exact(values[name][1])
            brings = isinstance(lock, KeyLock) and lock.normalise is not None
            front = mixing if brings and lock.on_weights and lock.outward else None
            if lock.touches_weights and front is None:
                on_weights.append(_OnWeights(whole, holder, lock, _outward(lock, mixing)))
            if isinstance(lock, KeyLock) and not lock.is_on_weight:
                gamma, beta = map(_exact, values[name])
                mixing = None if lock.on_weights else mixing
                taken.append(_Taken(whole, holder, lock, gamma, beta, mixing, front))
        unlock_model(root)
    if is_locked(copy):
        raise LockError("this is a part of a model that was locked as a whole: export the whole")
    return taken, on_weights


def _measured(
    model: nn.Module, copy: nn.Module, example: Tensor | tuple[Tensor, ...]
) -> dict[nn.Module, set[int]]:
    """How many dimensions each holder's output has when the model runs on an example."""
    ranks: dict[nn.Module, set[int]] = {}
    runs = _copy(model).eval()

    def note(own: nn.Module, output: Tensor) -> None:
        ranks.setdefault(own, set()).add(output.dim())

    for name, holder, _ in locks(runs):
        own = copy.get_submodule(name)
        holder.register_forward_hook(lambda _m, _i, output, own=own: note(own, output))
    try:
        with torch.no_grad():
            runs(*(example if isinstance(example, tuple) else (example,)))
    except Exception as error:  # the model is anyone's code
        raise LockError(f"the model does not run on the example: {first_line(error)}") from error
    return ranks


def _fold(taken: _Taken, feeds: Feeds) -> None:
    if taken.lock.normalise == "batch":
        _fold_batch(taken, feeds)
    elif taken.lock.normalise == "layer":
        norm = nn.LayerNorm(taken.lock.channels, EPS).to(taken.like)
        set_affine(norm, taken.gamma, taken.beta, taken.like)
        _put_behind(taken, feeds, *_front(taken, feeds), norm, *_mixing(taken, feeds))
    elif not _fold_in_front(taken, feeds):
        _fold_norm(taken, feeds)


def _outward(lock: KeyLock | WeightLock, mixing: Tensor | None) -> ChannelMap | None:
    """What a lock does to weight and bias, as a map of the output."""
    if not lock.outward:
        return None
    scale, shift = (None if t is None else _exact(t) for t in lock.affine())
    if mixing is None:
        assert scale is not None
        return ChannelMap(scale, shift)
    return ChannelMap(mixing if scale is None else scale[:, None] * mixing, shift)


def _fold_weights(taken: _OnWeights, feeds: Feeds) -> None:
    """What was done to a layer's weight and bias, as its own; or done to its output, behind it."""
    layer, change = taken.holder, taken.change
    if not feeds.shares(layer) and not feeds.reads(layer, values=True) and is_plain(layer):
        if change is None:
            _replace(layer, taken.lock)
        else:
            fold_into(layer, change)
        return
    if change is None or feeds.reads(layer, values=False):
        raise LockError(
            f"{taken.name}: the model reads this layer's weight itself, or shares it, so that what "
            "is private on it cannot be folded; lock others, or leave it to the silo to run the "
            "locked model"
        )
    weight = public_parameter(layer, "weight")
    assert weight is not None
    rank = feeds.rank(layer) if isinstance(layer, CONVOLUTIONS) else None
    put_behind(layer, pointwise(change, rank, weight))


def _replace(layer: nn.Module, lock: KeyLock | WeightLock) -> None:
    """Give a layer what its lock made of its weight and bias."""
    exact = deepcopy(lock).cpu().double()
    old, bias = public_parameter(layer, "weight"), public_parameter(layer, "bias")
    assert old is not None
    with torch.no_grad():
        moved = exact.on_bias(None if bias is None else _exact(bias))
        layer.weight = nn.Parameter(exact.on_weight(_exact(old)).to(old))
        if moved is not None:
            layer.bias = nn.Parameter(moved.to(old))


def _fold_batch(taken: _Taken, feeds: Feeds) -> None:
    """The lock on a convolution, with its own batch norm."""
    layer, lock = taken.holder, taken.lock
    assert lock.running_mean is not None
    assert lock.running_var is not None
    mean, variance = _exact(lock.running_mean), _exact(lock.running_var)
    change = batch_map(mean, variance, EPS, taken.gamma, taken.beta).mixed(taken.mixing)
    front = _front(taken, feeds)
    if not front and _takes(layer, change, feeds):
        fold_into(layer, change)
        return
    rank = feeds.rank(layer)
    assert rank is not None
    norm = OWN_NORM[rank](lock.channels, EPS).to(taken.like)
    norm.running_mean, norm.running_var = mean.to(taken.like), variance.to(taken.like)
    set_affine(norm, taken.gamma, taken.beta, taken.like)
    _put_behind(taken, feeds, *front, norm, *_mixing(taken, feeds))


def _front(taken: _Taken, feeds: Feeds) -> list[nn.Module]:
    """What is to run between a layer and its norm, of a mixing that could not be folded into it."""
    if taken.front is None:
        return []
    change = ChannelMap(taken.front, None)
    if not _takes(taken.holder, change, feeds):
        return [_pointwise(taken, change, feeds)]
    fold_into(taken.holder, change)
    return []


def _fold_in_front(taken: _Taken, feeds: Feeds) -> bool:
    """Fold a batch norm with its lock into the layer in front of it, where that is sure.

    What only scales and shifts stays in a norm that has a weight and a bias for it.
    """
    norm = taken.holder
    if (taken.mixing is None and taken.lock.fused) or feeds.shares(norm):
        return False
    if not (isinstance(norm, _BatchNorm) and is_plain(norm) and norm.running_var is not None):
        return False
    layer = feeds.only_into(norm)
    assert norm.running_mean is not None
    gamma, beta = taken.gamma, taken.beta
    change = batch_map(
        _exact(norm.running_mean), _exact(norm.running_var), norm.eps, gamma, beta
    ).mixed(taken.mixing)
    if layer is None or layer._forward_hooks or not _takes(layer, change, feeds):
        return False
    # of (n, l, c) a batch norm scales l, and the mixing mixes c
    if isinstance(layer, nn.Linear) and feeds.rank(norm) != 2:
        return False
    assert change.bias is not None
    fold_into(layer, ChannelMap(change.weight, None))
    pass_through(norm, change.bias)
    return True


def _fold_norm(taken: _Taken, feeds: Feeds) -> None:
    """The lock on a normalisation layer, gamma and beta in it and the mixing behind it."""
    norm, lock = taken.holder, taken.lock
    fits = (lock.fused or is_plain(norm)) and not feeds.shares(norm)
    if fits and isinstance(norm, AFFINE):
        set_affine(norm, taken.gamma, taken.beta, taken.like)
        behind = _mixing(taken, feeds)
    elif fits and isinstance(norm, nn.RMSNorm):
        set_affine(norm, taken.gamma, None, taken.like)
        shift = ChannelMap(torch.ones_like(taken.beta), taken.beta).mixed(taken.mixing)
        behind = [_pointwise(taken, shift, feeds)]
    else:  # its weight is also another's, or it is a class of the user's that may use none
        for name in lock.before:
            own = norm.get_parameter(name)
            own.requires_grad_(False).fill_(PINNED[name])
        behind = [_pointwise(taken, ChannelMap(taken.gamma, taken.beta).mixed(taken.mixing), feeds)]
    if behind:
        _put_behind(taken, feeds, *behind)


def _mixing(taken: _Taken, feeds: Feeds) -> list[nn.Module]:
    """What is to run behind a norm that has gamma and beta."""
    if taken.mixing is None:
        return []
    return [_pointwise(taken, ChannelMap(taken.mixing, None), feeds)]


def _pointwise(taken: _Taken, change: ChannelMap, feeds: Feeds) -> nn.Module:
    if taken.lock.channel_dim == -1:
        return pointwise(change, None, taken.like)
    rank = feeds.rank(taken.holder)
    if rank is None or not 2 <= rank <= 5:
        raise LockError(
            f"{taken.name}: how many dimensions its output has is not known; give an example of "
            "the model's input (export_model's example, or --example-shape)"
        )
    return pointwise(change, rank, taken.like)


def _put_behind(taken: _Taken, feeds: Feeds, *behind: nn.Module) -> None:
    if feeds.reads(taken.holder, values=False):
        raise LockError(
            f"{taken.name}: the model reads this layer's weight itself, so that nothing can be put "
            "behind the layer; lock others, or leave it to the silo to run the locked model"
        )
    put_behind(taken.holder, *behind)


def _takes(layer: nn.Module, change: ChannelMap, feeds: Feeds) -> bool:
    """Whether a map of its output can be folded into a convolution or linear layer."""
    own = is_plain(layer) and not feeds.shares(layer) and not feeds.reads(layer, values=True)
    return own and not (change.dense and is_grouped(layer))
