"""The lock itself: a key, the weights that make gamma and beta of it, and how they are applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PrivateStateError
from .config import KeyLockConfig
from .key import Uniform, draw_key, normal, orthogonal, secret_uniform

__all__ = ["ACTIVATIONS", "KeyLock", "apply_lock"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "identity": lambda x: x,
}

GAMMA_RANGE = (0.3, 1.7)
"""Where a new gamma lies. Away from 1, so that another lock does not do; away from 0, where relu
would leave a channel dead, and its vanishing gradient would show that to the server."""
BETA_SPREAD = 0.3
"""Standard deviation of a new beta; under relu, of the value whose magnitude it is."""


def apply_lock(
    x: Tensor, gamma: Tensor, beta: Tensor, mixing: Tensor | None, *, channel_dim: int
) -> Tensor:
    """``mixing (gamma * x + beta)`` along one dimension of x (arXiv 2305.04095, equation 7).

    Args:
        x: ``(n, c, ...)`` with channel_dim 1, or ``(..., c)`` with channel_dim -1; normalised.
        gamma: ``(c,)`` scale.
        beta: ``(c,)`` shift.
        mixing: ``(c, c)``, or None for the published lock.
        channel_dim: 1 or -1.

    Example:
        >>> apply_lock(torch.ones(1, 2, 3), torch.ones(2), torch.ones(2), None, channel_dim=1).sum()
        tensor(12.)

    """
    if channel_dim == -1:
        y = gamma * x + beta
        return y if mixing is None else F.linear(y, mixing)
    shape = (-1, *[1] * (x.dim() - 2))
    y = torch.addcmul(beta.view(shape), gamma.view(shape), x)
    return y if mixing is None else (mixing @ y.flatten(2)).view_as(y)


class KeyLock(nn.Module):
    """One layer's lock: ``gamma = act(W_gamma k + b_gamma)``, ``beta = act(W_beta k + b_beta)``.

    Everything in it is private. Its parameters are trained in the silo like any other of the
    model, and are in `parameters()`; `state_dict()` leaves them all out, and pickling raises.

    Args:
        channels: how many channels the locked layer has.
        config: which module, activation and key length.
        normalise: None behind a normalisation layer; "batch" or "layer" when the locked layer has
            none, and the lock brings its own (its statistics are private).
        channel_dim: 1 for ``(n, c, ...)``, -1 for ``(..., c)``.
        key: ``(K,)``; drawn from the system's entropy when not given.
        uniform: where random numbers come from; anything but the default is for attackers.

    Example:
        >>> lock = KeyLock(12, KeyLockConfig(key_length=16), normalise="batch")
        >>> lock(torch.rand(2, 12, 5, 5)).shape
        torch.Size([2, 12, 5, 5])
        >>> lock.state_dict()
        OrderedDict()

    """

    key: Tensor
    weight_gamma: nn.Parameter
    bias_gamma: nn.Parameter
    weight_beta: nn.Parameter
    bias_beta: nn.Parameter
    mixing: nn.Parameter | None
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
        uniform: Uniform = secret_uniform,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.normalise = normalise
        self.channel_dim = channel_dim
        self.activation = config.activation
        key = draw_key(config.key_length, uniform) if key is None else key.detach().clone()
        self.register_buffer("key", key)
        for name in ("gamma", "beta"):
            weight, bias = _start(name, channels, key, config.activation, uniform)
            self.register_parameter(f"weight_{name}", nn.Parameter(weight))
            self.register_parameter(f"bias_{name}", nn.Parameter(bias))
        mixing = nn.Parameter(orthogonal(channels, uniform)) if config.module == "mixing" else None
        self.register_parameter("mixing", mixing)
        batch = normalise == "batch"
        self.register_buffer("running_mean", torch.zeros(channels) if batch else None)
        self.register_buffer("running_var", torch.ones(channels) if batch else None)
        # what the locked normalisation layer's own weight and bias were, for unlock_model
        self.before: dict[str, tuple[Tensor, bool]] = {}
        self.share_statistics = config.share_norm_statistics

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Gamma and beta, ``(c,)`` each (arXiv 2305.04095, equations 5 and 6)."""
        act = ACTIVATIONS[self.activation]
        gamma = act(torch.mv(self.weight_gamma, self.key) + self.bias_gamma)
        beta = act(torch.mv(self.weight_beta, self.key) + self.bias_beta)
        return gamma, beta

    def forward(self, x: Tensor) -> Tensor:
        """Lock a layer's output; the shape stays."""
        gamma, beta = self.scale_and_shift()
        if self.normalise == "batch":
            # one fused call, with gamma and beta in the place of an affine norm's own
            x = F.batch_norm(
                x, self.running_mean, self.running_var, gamma, beta, training=self.training
            )
            return x if self.mixing is None else (self.mixing @ x.flatten(2)).view_as(x)
        if self.normalise == "layer":
            x = F.layer_norm(x, (self.channels,))
        return apply_lock(x, gamma, beta, self.mixing, channel_dim=self.channel_dim)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing: private state is not part of a model's state."""
        return kwargs.get("destination", args[0] if args else type(super().state_dict())())

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        _metadata: Any,
        strict: bool,
        _missing: list[str],
        unexpected_keys: list[str],
        _errors: list[str],
    ) -> None:
        """Load nothing and miss nothing; a state that has private names is not a model's state."""
        if strict:
            unexpected_keys += [name for name in state_dict if name.startswith(prefix)]

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyLock:
        # the ordinary way goes through __reduce_ex__, which is closed
        copy = self.__new__(type(self))
        memo[id(self)] = copy
        copy.__dict__.update({name: deepcopy(value, memo) for name, value in vars(self).items()})
        return copy

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PrivateStateError(
            "a locked model cannot be pickled: its lock is private to the silo. Save "
            "model.state_dict() for the public part, and let the vault keep the private one"
        )

    def extra_repr(self) -> str:
        """What kind of lock it is; never its values."""
        kind = "affine" if self.mixing is None else "mixing"
        own = f", own {self.normalise} norm" if self.normalise else ""
        return f"{self.channels}, {kind}, key_length={self.key.numel()}{own}"


def _start(
    name: str, channels: int, key: Tensor, activation: str, uniform: Uniform
) -> tuple[Tensor, Tensor]:
    """Weight ``(c, K)`` and bias ``(c,)`` that give gamma or beta a new lock's distribution."""
    if activation == "sigmoid":  # its range is (0, 1), which holds no such gamma
        wanted = normal((channels,), uniform)
    elif name == "gamma":
        low, high = GAMMA_RANGE
        wanted = low + (high - low) * uniform((channels,))
    else:
        wanted = BETA_SPREAD * normal((channels,), uniform)
        if activation != "identity":
            wanted = wanted.abs() + 1e-3
    if activation == "softplus":
        wanted = wanted.expm1().log()
    weight = normal((channels, key.numel()), uniform) * (BETA_SPREAD / float(key.norm()))
    return weight, wanted - torch.mv(weight, key)
