"""The lock module: a key, the weights that map it to gamma and beta, and their use on a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import LockError
from ..config import KeyLockConfig
from ..entropy import Uniform, normal, secret_uniform
from ..private import Unsent

__all__ = ["EPS", "KeyLock", "apply_lock", "draw_key", "locks"]

EPS = 1e-5
"""Epsilon of a norm that a lock adds."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}

GAMMA_SPREAD = 0.7
"""Largest distance of a new gamma from 1. Away from 1, so that another silo's lock does not work;
away from 0, where relu would kill a channel, and its zero gradient would show that to the
server."""
BETA_SPREAD = 0.3
"""Standard deviation of a new beta; under relu, before its magnitude is taken."""


class KeyLock(Unsent):
    """One holder's lock: ``gamma = act(W_gamma k + b_gamma)``, ``beta = act(W_beta k + b_beta)``.

    Everything in it is private. Its parameters train in the silo with the model's, and are in
    `parameters()`; `state_dict()` leaves them all out, and pickling raises.

    For a fixed key only ``W k`` matters, and the gradient of W is a column times the key's
    transpose. So training moves W only along the key, and only this part of it is stored: ``W = w
    d^T`` with the key's direction ``d``, one number a channel for any key length. This is the
    published formula at the cost of a vector, and its step size does not depend on the key's
    length. In a chained lock the key is the previous lock's gamma and beta, which change in
    training: there W is stored whole.

    Args:
        channels: how many channels the holder has.
        config: the activation and the key length.
        normalise: None on a normalisation layer; "batch" or "layer" on a layer that has none behind
            it, where the lock adds its own (its statistics are private).
        channel_dim: 1 for ``(n, c, ...)``, -1 for ``(..., c)``.
        key: ``(K,)``; None draws it from the system's entropy.
        keys: for a chained lock, the previous lock's gamma and beta.
        uniform: the source of random numbers; pass another than the default only for attackers.

    Example:
        >>> config = KeyLockConfig(lock="paper", key_length=16)
        >>> lock = KeyLock(12, config, normalise="batch")
        >>> lock(torch.rand(2, 12, 5, 5)).shape
        torch.Size([2, 12, 5, 5])
        >>> lock.state_dict()
        OrderedDict()

    """

    key: Tensor | None
    direction: Tensor | None
    weight_gamma: nn.Parameter
    bias_gamma: nn.Parameter
    weight_beta: nn.Parameter
    bias_beta: nn.Parameter
    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(
        self,
        channels: int,
        config: KeyLockConfig,
        *,
        normalise: str | None = None,
        channel_dim: int = 1,
        key: Tensor | None = None,
        keys: tuple[Tensor, Tensor] | None = None,
        uniform: Uniform = secret_uniform,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.normalise = normalise
        self.channel_dim = channel_dim
        self.activation = config.activation
        self.chained = keys is not None
        # the values that the chain gave this lock in the current forward pass
        self.values: tuple[Tensor, Tensor] | None = None
        # the holder's own weight and bias, for unlock_model
        self.before: dict[str, tuple[Tensor, bool]] = {}
        self.fused = False
        self.layers: tuple[str, ...] = ()  # names of the layers that it locks
        self.share_statistics = config.share_norm_statistics
        if keys is None:
            key = draw_key(config.key_length, uniform) if key is None else key.detach().clone()
            direction = key / key.dot(key)
        self.register_buffer("key", None if keys else key)
        self.register_buffer("direction", None if keys else direction)
        for index, name in enumerate(("gamma", "beta")):
            wanted = _wanted(name, channels, config.activation, uniform)
            if keys is None:
                weight = BETA_SPREAD * normal((channels,), uniform)
                bias = wanted - weight
            else:
                before = keys[index].detach()
                scale = before.norm().clamp(min=1e-6).reciprocal()
                weight = BETA_SPREAD * normal((channels, before.numel()), uniform)
                bias = wanted - torch.mv(weight, scale * before)
                self.register_buffer(f"scale_{name}", scale)
            self.register_parameter(f"weight_{name}", nn.Parameter(weight))
            self.register_parameter(f"bias_{name}", nn.Parameter(bias))
        batch = normalise == "batch"
        self.register_buffer("running_mean", torch.zeros(channels) if batch else None)
        self.register_buffer("running_var", torch.ones(channels) if batch else None)
        self._config = config

    def scale(self, key: Tensor | None = None) -> Tensor:
        """Gamma ``(c,)`` (arXiv 2305.04095, equation 5); a chained lock needs its key."""
        return self._make("gamma", key)

    def shift(self, key: Tensor | None = None) -> Tensor:
        """Beta ``(c,)`` (arXiv 2305.04095, equation 6); a chained lock needs its key."""
        return self._make("beta", key)

    def _make(self, name: str, key: Tensor | None) -> Tensor:
        weight, bias = getattr(self, f"weight_{name}"), getattr(self, f"bias_{name}")
        if not self.chained:
            assert self.key is not None
            assert self.direction is not None
            along = torch.dot(self.direction, self.key)
            return ACTIVATIONS[self.activation](torch.addcmul(bias, weight, along))
        if key is not None:
            scaled = getattr(self, f"scale_{name}") * key
            return ACTIVATIONS[self.activation](torch.addmv(bias, weight, scaled))
        if self.values is None:
            raise LockError(
                "a chained lock gets its key from the lock before it: call the whole model, not "
                "a part of it, or lock it with chained: false"
            )
        return self.values[0 if name == "gamma" else 1]

    def forward(self, x: Tensor) -> Tensor:
        """Lock a layer's output; the shape stays the same."""
        # a fused holder has already applied gamma and beta as its own weight and bias
        if self.normalise == "batch":
            # one fused call, with gamma and beta as an affine norm's weight and bias
            x = F.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.scale(),
                self.shift(),
                training=self.training,
                eps=EPS,
            )
        elif self.normalise == "layer":
            x = F.layer_norm(x, (self.channels,), self.scale(), self.shift(), EPS)
        elif not self.fused:
            x = apply_lock(x, self.scale(), self.shift(), channel_dim=self.channel_dim)
        return x

    def fresh(self) -> KeyLock:
        """A new lock of the same kind with fresh random values; not for a chained one."""
        return KeyLock(
            self.channels, self._config, normalise=self.normalise, channel_dim=self.channel_dim
        )

    def extra_repr(self) -> str:
        """Describe the kind of lock; never its values."""
        own = f", own {self.normalise} norm" if self.normalise else ""
        key = "chained" if self.key is None else f"key_length={self.key.numel()}"
        return f"{self.channels}, {key}{own}"


def _wanted(name: str, channels: int, activation: str, uniform: Uniform) -> Tensor:
    """The input ``(c,)`` of the activation for a new lock's gamma or beta."""
    if activation == "sigmoid":  # its range (0, 1) holds no such gamma
        return normal((channels,), uniform)
    if name == "gamma":
        wanted = 1 + GAMMA_SPREAD * (2 * uniform((channels,)) - 1)
    else:
        wanted = BETA_SPREAD * normal((channels,), uniform)
        wanted = wanted.abs() + 1e-3
    return wanted


def locks(model: nn.Module) -> Iterator[tuple[str, nn.Module, KeyLock]]:
    """Each lock of a model, as (name of its holder, the holder, the lock)."""
    for name, module in model.named_modules():
        lock = module._modules.get("keylock")
        if isinstance(lock, KeyLock):
            yield name, module, lock


def apply_lock(x: Tensor, gamma: Tensor, beta: Tensor, *, channel_dim: int) -> Tensor:
    """``gamma * x + beta`` along one dimension of x (arXiv 2305.04095, equation 7).

    Args:
        x: ``(n, c, ...)`` with channel_dim 1, or ``(..., c)`` with channel_dim -1; normalised.
        gamma: ``(c,)`` scale.
        beta: ``(c,)`` shift.
        channel_dim: 1 or -1.

    Example:
        >>> apply_lock(torch.ones(1, 2, 3), torch.ones(2), torch.ones(2), channel_dim=1).sum()
        tensor(12.)

    """
    if channel_dim == 1:
        shape = (-1, *[1] * (x.dim() - 2))
        gamma, beta = gamma.view(shape), beta.view(shape)
    return torch.addcmul(beta, gamma, x)


def draw_key(length: int, uniform: Uniform = secret_uniform) -> Tensor:
    """A key ``(length,)``: uniform numbers scaled to unit length.

    The reference leaves the uniform numbers unscaled, so that the lock's step size grows with the
    key's
    length: a gradient step on W moves W k by |k|^2 times the step of gamma alone (|k|^2 is about
    341 for 1,024 numbers). Training diverges when every layer is locked. At unit length, a learning
    rate that suits the model suits the lock.

    Example:
        >>> round(float(draw_key(1024).norm()), 3)
        1.0

    """
    key = uniform((length,)) + 2**-25  # a key of zeros could not be scaled
    unit: Tensor = key / key.norm()
    return unit
