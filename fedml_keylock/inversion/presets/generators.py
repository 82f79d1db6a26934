"""Presets that search the inputs or weights of a generator of pictures."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ...errors import ConfigError
from ..attack import GradientInversion
from ..unknowns.generator import GeneratorWeights, Latent
from .make import preset

__all__ = ["ggl", "grnn"]


def grnn(**overrides: Any) -> GradientInversion:
    """Generative regression neural network: Ren, Deng and Xie 2022 (arXiv 2105.00529).

    Two small generators make images and labels from fixed noise, and the attack searches their
    weights. The cost is the L2 distance of gradients, squared plus plain, with total variation
    1e-3. RMSprop runs 10,000 steps with learning rate 1e-4 and momentum 0.99.

    The paper has a Wasserstein distance and its code a plain L2 distance; this follows the code.
    The cost ``l2_wasserstein`` follows the paper. Differences from both: distances are relative to
    the target's norm, and total variation is of absolute, not squared, differences.

    Example:
        >>> grnn(restarts=2).parametrisation
        GeneratorWeights(width=32, inputs=128, deviation=0.02)

    """
    return preset(
        overrides,
        name="grnn",
        optimizer="rmsprop",
        cost="l2_twice",
        steps=10_000,
        learning_rate=1e-4,
        momentum=0.99,
        total_variation=1e-3,
        parametrisation=GeneratorWeights(),
    )


def ggl(
    generator: nn.Module | None = None,
    latent_shape: tuple[int, ...] = (128,),
    *,
    output_range: tuple[float, float] = (-1.0, 1.0),
    divergence: float = 1e-4,
    optimizer: Literal["cma", "adam"] = "cma",
    **overrides: Any,
) -> GradientInversion:
    """Generative gradient leakage: Li, Zhang, Liu and Liu, CVPR 2022 (arXiv 2203.15696).

    The attack searches the latent of a generator trained on public data: by CMA-ES, 500
    generations of 50, or by Adam with learning rate 0.1 on the gradient's sign, 2,500 steps. The
    cost is the squared distance of gradients, the prior the divergence of the latent from N(0, I).
    Labels are recovered first. A defense's changes to the gradient (``Knowledge.transforms``) are
    applied to every candidate's gradient.

    Differences from the source: the distance is relative to the target's norm, and the prior's
    weight is the one in the source's code for a relative cost (0.1 for an absolute one). The first
    latent is drawn from N(0, I), where the source's CMA-ES starts at 0. CMA-ES has the prior too,
    where the source squashes latents by tanh.

    Args:
        generator: required; maps latents ``(m, *latent_shape)`` to images.
        latent_shape: shape of a latent.
        output_range: least and greatest value of the generator's images.
        divergence: weight of the prior.
        optimizer: ``cma`` (the extra ``ggl``) or ``adam``.
        overrides: any field of ``GradientInversion``.

    Raises:
        ConfigError: there is no generator.

    Example:
        >>> decoder = nn.Sequential(nn.Linear(8, 784), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))
        >>> ggl(decoder, (8,), optimizer="adam", restarts=4).steps
        2500

    """
    if generator is None:
        raise ConfigError(
            "ggl needs a generator: ggl(generator, latent_shape), a torch.nn.Module that maps "
            "latents to images; a job's YAML can name such an attack once a plugin has "
            "registered it: register('my_ggl', lambda **fields: ggl(generator, (128,), **fields))"
        )
    searches: dict[str, dict[str, Any]] = {
        "cma": {"steps": 500, "population": 50, "learning_rate": 1.0},
        "adam": {"steps": 2500, "learning_rate": 0.1, "signed": True},
    }
    if optimizer not in searches:
        raise ConfigError(f"ggl's optimizer {optimizer!r} is none of {', '.join(searches)}")
    return preset(
        overrides,
        name="ggl",
        optimizer=optimizer,
        cost="squared_l2",
        parametrisation=Latent(generator, latent_shape, output_range, divergence),
        **searches[optimizer],
    )
