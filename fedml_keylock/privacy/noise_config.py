"""The settings `keylock: {noise: ...}`: distributed differential privacy under `lock: sealed`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ..errors import ConfigError
from ..settings import Count, Natural, Positive, Settings

__all__ = ["AdaptiveClip", "NoiseConfig"]

Delta = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class AdaptiveClip(Settings):
    """A clip that follows a quantile of the updates' norms (Andrew et al. 2021, algorithm 1).

    Example:
        >>> AdaptiveClip().quantile
        0.5

    """

    section: ClassVar[str] = "keylock.noise.adaptive"

    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The share of updates that the clip should not shorten."""
    rate: Positive = 0.2
    """How fast the clip adapts: it changes by at most e^rate in a round."""
    deviation: Positive | None = None
    """Standard deviation of the noise on the count of unclipped updates. None: a twentieth of the
    silos, or twice the multiplier if that is more."""


class NoiseConfig(Settings):
    """How much noise silos add under the seal, and whom it protects.

    Example:
        >>> NoiseConfig(clip=1.0, multiplier=1.1, delta=1e-5).unit
        'silo'

    """

    section: ClassVar[str] = "keylock.noise"

    clip: Positive
    """The L2 norm to which each unit is clipped: a silo's update, over all tensors sent, or an
    example's gradient."""
    delta: Delta
    """Of (epsilon, delta)."""
    multiplier: Positive | None = None
    """z: the standard deviation of the noise in the sum, divided by clip. It leaves out the
    noise of the colluding silos, of one silo at least."""
    epsilon: Positive | None = None
    """Instead of multiplier: the epsilon that all rounds together may cost."""
    unit: Literal["silo", "example"] = "silo"
    """The protected unit: whether a silo took part, or whether an example is among a silo's."""
    stop_at: Positive | None = None
    """Train no round after which epsilon would exceed this."""
    buffer_clip: Positive | None = None
    """For unit: silo: the L2 norm to which the change of floating-point buffers is clipped, such as
    BatchNorm's statistics. None: buffers are not sent, and each silo keeps its own."""
    adaptive: AdaptiveClip | None = None
    """For unit: silo: let the clip adapt to the updates' norms, starting from `clip`."""
    rate: Annotated[Positive, Field(le=1)] | None = None
    """For unit: example: the probability of each of a silo's examples to be in a batch, drawn
    independently and in secret (Poisson sampling). 1: all of them."""
    steps: Count = 1
    """For unit: example: gradient steps a round. With one step, silos share the noise; with more,
    each silo adds all of it at every step."""
    canaries: Natural = 0
    """Number of random directions that silo 0 adds like further units, to estimate epsilon from the
    averages (arXiv 2302.03098); 0 for none."""

    @model_validator(mode="after")
    def _goes_together(self) -> NoiseConfig:
        if (self.multiplier is None) == (self.epsilon is None):
            raise ConfigError(
                "keylock.noise: give multiplier, the noise over the clip, or epsilon, what all "
                "rounds may cost; not both"
            )
        for name in ("rate",) if self.unit == "silo" else ("buffer_clip", "adaptive"):
            if getattr(self, name) is not None:
                other = "example" if self.unit == "silo" else "silo"
                raise ConfigError(
                    f"keylock.noise.{name}: applies to unit: {other}; leave it out, or set that "
                    "unit"
                )
        if self.unit == "silo" and self.steps != 1:
            raise ConfigError(
                "keylock.noise.steps: applies to unit: example; with unit: silo a silo trains as "
                "long as it likes"
            )
        if self.unit == "example" and self.rate is None:
            raise ConfigError(
                "keylock.noise.rate: needed with unit: example: the share of a silo's examples "
                "that is in a batch, such as 0.01"
            )
        if self.canaries == 1 or (self.canaries and self.steps > 1):
            raise ConfigError(
                "keylock.noise.canaries: with steps above 1 no sum contains them; leave it out"
                if self.steps > 1
                else "keylock.noise.canaries: one tells nothing; take some hundreds"
            )
        return self
