"""Attacks that search for what a generator makes pictures from."""

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

    Two small generators make images and labels from fixed noise, and their weights are searched:
    the L2 distance of gradients, squared and plain, and total variation 1e-3, by RMSprop with
    learning rate 1e-4 and momentum 0.99, 10,000 steps.

    The paper has a Wasserstein distance where its code has the plain L2 distance; this is the
    code's. The paper's is the cost ``l2_wasserstein``. It differs from both in this: distances are
    relative to the target's, and total variation is of absolute and not of squared differences.

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

    The latent of a generator that was trained on public data is searched in the pixels' place: by
    CMA-ES, 500 generations of 50, or by Adam with learning rate 0.1 on the gradient's sign, 2,500
    steps. The cost is the squared distance of gradients, the prior the divergence of the latent
    from N(0, I). Labels are recovered first. What a defense did to the gradient
    (``Knowledge.transforms``) is done to every candidate's too.

    It differs from the source in this: the distance is relative to the target's, and the prior's
    weight the one that the source's code names for its relative cost (for its absolute one 0.1);
    the first latent is drawn from N(0, I), where the source's CMA-ES starts at 0; and CMA-ES has
    the prior too, where the source squashes its latents by tanh.

    Args:
        generator: maps ``(m, *latent_shape)`` latents to images. Needed.
        latent_shape: of one latent.
        output_range: least and greatest value of its images.
        divergence: weight of that prior.
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
