"""Decides, round by round, which tensors are clipped and noised, and which are not sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import ConfigError, UpdateRefused
from ...privacy.adaptive import QuantileClip
from ...privacy.budget import honest_silos
from ...privacy.noise_config import NoiseConfig
from ...types import ClientUpdate
from .noise import ClippedUpdate, Release, RoundNoise
from .sealing import Opened

__all__ = ["JobNoise"]


@dataclass
class JobNoise:
    """A silo's view of its job's noise under `unit: silo`.

    Attributes:
        config: the noise section of the YAML.
        colluders: how many silos may collude with the server.
        multiplier: z of a round; None until the job's rounds are known, if the YAML gives epsilon.
        silos: how many take part in a round; 0 until known.
        clip: of the round; it may follow the updates.
        update: what was sealed last, before noise.

    """

    weighs: ClassVar[bool] = False
    """Whether silos weight their updates by their numbers of examples."""

    config: NoiseConfig
    colluders: int
    multiplier: float | None = None
    silos: int = 0
    clip: float = 0.0
    update: ClippedUpdate | None = field(default=None, repr=False)
    _buffers: set[str] = field(default_factory=set)
    _frozen: set[str] = field(default_factory=set)
    _home: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.multiplier = self.config.multiplier
        self.clip = self.config.clip

    def look(self, model: nn.Module) -> None:
        """Record which names are buffers of the model, and which parameters do not train."""
        every = model.named_parameters(remove_duplicate=False)
        self._frozen = {name for name, parameter in every if not parameter.requires_grad}
        self._buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}

    @property
    def of_round(self) -> RoundNoise:
        """How much noise is added in the round.

        Raises:
            ConfigError: it is not known yet, or too many silos may collude.

        """
        honest = honest_silos(self.silos, self.colluders)
        if self.multiplier is None:
            raise ConfigError(
                "keylock.noise.epsilon: the number of rounds is known only in a job; give "
                "multiplier"
            )
        clips = {"update": self.clip}
        if self.config.buffer_clip is not None:
            clips["buffer"] = self.config.buffer_clip
        multiplier, votes = self.multiplier, 0.0
        if (adaptive := self._adaptive) is not None:
            multiplier, votes = adaptive.multiplier, adaptive.votes
        return RoundNoise(multiplier, self.silos, honest, clips, votes, self.config.canaries)

    @property
    def _adaptive(self) -> QuantileClip | None:
        config = self.config.adaptive
        if config is None or self.multiplier is None:
            return None
        return QuantileClip.of(config, self.multiplier, self.silos)

    def follow(self, opened: Opened) -> None:
        """Set the next round's clip by the votes of this one."""
        if (adaptive := self._adaptive) is not None:
            votes = math.ldexp(opened.votes, self.of_round.vote_grid.exponent)
            self.clip = adaptive.next(self.clip, votes)

    def parts(self, payload: Mapping[str, Tensor]) -> dict[str, str]:
        """The clip of each noised name: `update` or `buffer`."""
        found = {}
        for name, tensor in payload.items():
            numbers = tensor.is_floating_point() or tensor.is_complex()
            if name in self._buffers:
                if numbers and self.config.buffer_clip is not None:
                    found[name] = "buffer"
            elif numbers and name not in self._frozen:
                found[name] = "update"
        return found

    def begin(self, model: nn.Module) -> None:
        """Called before a silo trains a round; nothing under this unit."""

    def batches(self, data: Any, told: Callable[[float], Sequence[float]]) -> Any:
        """The silo's data for a round, unchanged under this unit."""
        return data

    def end(self) -> None:
        """Called when a silo has trained a round."""

    def outgoing(
        self, payload: Mapping[str, Tensor], base: Mapping[str, Tensor], samples: float
    ) -> Mapping[str, Tensor]:
        """The part of the payload to release or seal; under this unit all of it."""
        return payload

    def release(
        self, payload: Mapping[str, Tensor]
    ) -> Callable[[Mapping[str, Tensor]], Release] | None:
        """What is sent of a payload, given the base of the difference.

        None if the payload is sealed as it is, because it has noise already.
        """
        noise, parts = self.of_round, self.parts(payload)
        if "update" not in parts.values():
            raise UpdateRefused("nothing of what it would send trains, so noise would hide nothing")

        def of(base: Mapping[str, Tensor]) -> Release:
            self._check_rest(payload, base, parts)
            self.update = ClippedUpdate(noise, base, payload, parts)
            return self.update

        return of

    def _check_rest(
        self, payload: Mapping[str, Tensor], base: Mapping[str, Tensor], parts: Mapping[str, Any]
    ) -> None:
        """Check that no tensor has changed that is neither noised nor kept in the silo."""
        for name in payload.keys() - parts.keys() - self._buffers:
            if name not in base or not torch.equal(payload[name].cpu(), base[name].cpu()):
                raise UpdateRefused(
                    f"{name} has changed, and is no floating-point parameter that trains: "
                    "under keylock.noise nothing else is sent"
                )

    def audited(self, update: ClientUpdate) -> Release:
        """What is sent of an update that an audit made."""
        payload = {**update.before, **update.after}
        return ClippedUpdate(self.of_round, update.before, payload, self.parts(payload))

    @property
    def done(self) -> str:
        """Describe what was done to the last sealed update, for the silo's own log."""
        update = self.update
        if update is None:
            return "nothing was noised"
        if update.infinite:
            return "the update has numbers that are NaN or infinite: only noise was sent"
        clips = update.noise.clips
        return ", ".join(
            f"the {part}'s norm {norm:.3g} under a clip of {clips[part]:.3g}"
            for part, norm in update.norms.items()
        )

    def keep(self, payload: Mapping[str, Tensor]) -> None:
        """Save the tensors that are not sent; `opened` puts them back."""
        away = self.parts(payload)
        self._home = {
            name: payload[name].detach().clone()
            for name in payload.keys() & self._buffers
            if name not in away
        }

    def opened(self, opened: Opened) -> Mapping[str, Tensor]:
        """What FedML loads: the average, and this silo's own buffers."""
        self.follow(opened)
        own = {name: tensor for name, tensor in self._home.items() if name in opened.state}
        return {**opened.state, **own}
