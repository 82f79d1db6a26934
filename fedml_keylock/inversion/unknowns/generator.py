"""Parametrises images by a generator: searches its weights, or its input."""

from __future__ import annotations

import copy
import math
from dataclasses import field
from functools import lru_cache, partial
from itertools import chain, pairwise

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, vmap

from ...errors import AttackError, ConfigError, first_line
from ...settings import Count, NotNegative, Positive, checked
from ...tensors import fingerprint
from ..knowledge import Knowledge
from .pixels import Parametrisation, Unknowns

__all__ = ["GeneratorWeights", "Latent"]

_NOISE = "generator.noise"
_IMAGES = "generator.images."
_LABELS = "generator.labels."


@checked
class GeneratorWeights(Parametrisation):
    """The weights of one generator of images and one of labels (GRNN, Ren et al. 2022, section 3).

    Each candidate has generators and noise of its own: a vector for each image, drawn once, for
    both generators. That of labels is one linear layer. That of images makes 4x4 feature maps by a
    transposed convolution, and doubles their size until it reaches the image's: nearest-neighbour
    upsampling, 3x3 convolution, batch normalisation by batch statistics, gated linear unit. A final
    sigmoid is scaled to the bounds.

    It makes squares whose side is a power of two, 8 or more, like the source. For an image of
    another size it makes the next larger square, and uses its centre.

    Attributes:
        width: channels before the last doubling, d in the source's code; twice as many at each
            smaller size.
        inputs: length of a noise vector.
        deviation: of the normal initial weights; biases start at 0. The source's code intends 0.02,
            but sets it on blocks and not on the layers in them, which keep torch's own
            initialisation.

    Example:
        >>> known = Knowledge("oblivious", input_shape=(1, 28, 28), classes=10, batch=2)
        >>> small = GeneratorWeights(width=4, inputs=16)
        >>> images, logits = small.decode(small.draw(3, known, torch.Generator()), known)
        >>> images.shape, logits.shape
        (torch.Size([3, 2, 1, 28, 28]), torch.Size([3, 2, 10]))

    """

    width: Count = 32
    inputs: Count = 128
    deviation: Positive = 0.02
    makes_labels = True

    def shapes(self, knowledge: Knowledge) -> dict[str, tuple[int, ...]]:
        """The noise, then each layer's weights; AttackError if the input is not an image."""
        if len(knowledge.input_shape) != 3:
            raise AttackError(
                f"a generator makes images (c, h, w), not {tuple(knowledge.input_shape)}"
            )
        made = {
            f"{_IMAGES}{name}": tuple(value.shape)
            for name, value in self._network(knowledge).named_parameters()
        }
        return {
            _NOISE: (knowledge.batch, self.inputs),
            f"{_LABELS}weight": (knowledge.classes, self.inputs),
            f"{_LABELS}bias": (knowledge.classes,),
            **made,
        }

    def draw(self, count: int, knowledge: Knowledge, generator: Generator) -> dict[str, Tensor]:
        """Normal noise and weights; biases 0, and each normalisation's scale 1."""
        starts = {}
        for name, shape in self.shapes(knowledge).items():
            whole = (count, *shape)
            if len(shape) > 1:
                start = torch.randn(whole, generator=generator, device=generator.device)
                starts[name] = start if name == _NOISE else self.deviation * start
            elif name.endswith("bias"):
                starts[name] = torch.zeros(whole, device=generator.device)
            else:
                starts[name] = torch.ones(whole, device=generator.device)
        return starts

    def decode(self, unknowns: Unknowns, knowledge: Knowledge) -> tuple[Tensor, Tensor | None]:
        """The generators' outputs for the noise."""
        # the noise stays fixed in every optimiser, also in one without rates
        noise = unknowns[_NOISE].detach()
        weights = {
            name.removeprefix(_IMAGES): value
            for name, value in unknowns.items()
            if name.startswith(_IMAGES)
        }
        run = partial(functional_call, self._network(knowledge))
        square = vmap(run)(weights, noise[..., None, None])
        _, height, width = knowledge.input_shape
        top, left = (square.shape[-2] - height) // 2, (square.shape[-1] - width) // 2
        images = square[..., top : top + height, left : left + width]
        low, high = knowledge.bounds
        logits = noise @ unknowns[f"{_LABELS}weight"].mT + unknowns[f"{_LABELS}bias"][:, None]
        return low + (high - low) * images, logits

    def rates(self, knowledge: Knowledge) -> dict[str, float]:
        """The weights' own unit."""
        return {name: float(name != _NOISE) for name in self.shapes(knowledge)}

    def _network(self, knowledge: Knowledge) -> nn.Module:
        channels, height, width = knowledge.input_shape
        doublings = max(1, math.ceil(math.log2(max(height, width))) - 2)
        return _network(self.inputs, self.width, channels, doublings)


@lru_cache(maxsize=8)
def _network(inputs: int, width: int, channels: int, doublings: int) -> nn.Module:
    """``(n, inputs, 1, 1)`` -> ``(n, channels, s, s)``, s = 4 * 2^doublings; without weights."""
    planes = [width * 2**level for level in reversed(range(doublings))]
    layers: list[nn.Module] = [nn.ConvTranspose2d(inputs, 2 * planes[0], 4, device="meta")]
    layers.append(nn.GLU(1))
    for before, after in pairwise([*planes, channels]):
        layers += [
            nn.Upsample(scale_factor=2),
            nn.Conv2d(before, 2 * after, 3, padding=1, bias=False, device="meta"),
            nn.BatchNorm2d(2 * after, track_running_stats=False, device="meta"),
            nn.GLU(1),
        ]
    return nn.Sequential(*layers, nn.Sigmoid())


@checked
class Latent(Parametrisation):
    """The input of a trained generator (GGL, Li et al. 2022, arXiv 2203.15696).

    Latents start from N(0, I), on which the generator was trained. At 0 a generator's gradient may
    be exactly 0.

    Attributes:
        generator: maps ``(m, *shape)`` latents to ``(m, *input_shape)`` images. A copy of it is
            used in eval mode, and not trained. A generator with further inputs (a class) needs a
            wrapper that supplies them.
        shape: of one image's latent, ``(128,)`` or ``(100, 1, 1)`` for instance.
        output_range: lowest and highest value of its images; scaled to ``Knowledge.bounds``.
        divergence: weight of the prior on latents: the Kullback-Leibler divergence from N(0, 1) of
            a normal distribution with the mean and variance of a latent's entries, averaged over
            the images (the source's regulariser R(G; z), as in its published code).

    Example:
        >>> decoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)))
        >>> known = Knowledge("oblivious", input_shape=(1, 4, 4), classes=10, batch=2)
        >>> latent = Latent(decoder, (8,))
        >>> latent.shapes(known)
        {'latent': (2, 8)}
        >>> latent.decode(latent.draw(3, known, torch.Generator()), known)[0].shape
        torch.Size([3, 2, 1, 4, 4])

    """

    generator: nn.Module = field(repr=False)
    shape: tuple[Count, ...]
    output_range: tuple[float, float] = (-1.0, 1.0)
    divergence: NotNegative = 0.0
    makes_labels = False

    def __post_init__(self) -> None:
        if not self.shape:
            raise ConfigError(f"shape is that of one latent, (128,) say, not {self.shape}")
        if not self.output_range[0] < self.output_range[1]:
            raise ConfigError(
                f"output_range must be (low, high) with low < high, not {self.output_range}"
            )
        mine = copy.deepcopy(self.generator).eval().requires_grad_(False)
        object.__setattr__(self, "generator", mine)

    def __repr__(self) -> str:
        # with its weights, so that a checkpoint recognises another generator
        state = self.generator.state_dict().values()
        return (
            f"Latent({type(self.generator).__name__} {fingerprint('', state)}, {self.shape}, "
            f"{self.output_range}, {self.divergence})"
        )

    def shapes(self, knowledge: Knowledge) -> dict[str, tuple[int, ...]]:
        """One variable; AttackError if the generator's input or output has another shape."""
        latent = torch.zeros(1, 1, *self.shape)
        try:
            with torch.no_grad():
                made = self._images(latent)
        except (RuntimeError, ValueError) as error:
            raise AttackError(
                f"the generator takes no latents of shape {tuple(self.shape)}: {first_line(error)}"
            ) from error
        if made.shape != (1, *knowledge.input_shape):
            raise AttackError(
                f"the generator makes images of shape {tuple(made.shape[1:])}, the silos' are "
                f"{tuple(knowledge.input_shape)}"
            )
        return {"latent": (knowledge.batch, *self.shape)}

    def draw(self, count: int, knowledge: Knowledge, generator: Generator) -> dict[str, Tensor]:
        """N(0, I)."""
        shape = (count, knowledge.batch, *self.shape)
        return {"latent": torch.randn(shape, generator=generator, device=generator.device)}

    def decode(self, unknowns: Unknowns, knowledge: Knowledge) -> tuple[Tensor, Tensor | None]:
        """The generator's images."""
        latent = unknowns["latent"]
        made = self._images(latent)
        made = made.reshape(*latent.shape[:2], *made.shape[1:])
        (least, greatest), (low, high) = self.output_range, knowledge.bounds
        return low + (made.to(latent) - least) * ((high - low) / (greatest - least)), None

    def rates(self, knowledge: Knowledge) -> dict[str, float]:
        """The standard deviation of its initial values."""
        return {"latent": 1.0}

    def penalty(self, unknowns: Unknowns) -> Tensor:
        """``(b,)``: how far the entries of each latent are from a standard normal sample."""
        entries = unknowns["latent"].flatten(2)
        mean, variance = entries.mean(2), entries.var(2, unbiased=False)
        # the source's 1e-10: a variance of 0 is far from 1, but not infinitely far
        distance = (mean.square() + variance - 1 - (variance + 1e-10).log()) / 2
        return self.divergence * distance.mean(1)

    def _images(self, latent: Tensor) -> Tensor:
        """``(b, n, *shape)`` -> ``(b * n, *input_shape)``, in the generator's own type."""
        like = next(chain(self.generator.parameters(), self.generator.buffers()), latent)
        made: Tensor = self.generator(latent.flatten(0, 1).to(like))
        return made
