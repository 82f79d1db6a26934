"""Priors on images, as an attacker can know them without data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .knowledge import Statistics

__all__ = ["Prior", "batch_norm_statistics", "group_consistency", "squared_norm", "total_variation"]


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring pixels (Geiping et al. 2020, section 4).

    For b candidates of n images ``(b, n, c, h, w)`` the ``(b,)`` vertical plus horizontal means, in
    the pixels' unit.

    Example:
        >>> total_variation(torch.eye(2).reshape(1, 1, 1, 2, 2))
        tensor([2.])

    """
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().flatten(1).mean(1)
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    return across + down


def squared_norm(images: Tensor) -> Tensor:
    """Mean square of the pixels: the squared L2 norm of Yin et al. 2021, by number of pixels.

    For ``(b, n, c, h, w)`` images, ``(b,)``. It pulls towards 0, which for the paper's normalised
    pixels is the data's mean.

    Example:
        >>> squared_norm(torch.tensor([1.0, -3.0]).reshape(1, 1, 1, 1, 2))
        tensor([5.])

    """
    return images.square().flatten(1).mean(1)


def group_consistency(images: Tensor, update: Tensor) -> Tensor:
    """Distance of each restart to the mean of its update's restarts (Yin et al. 2021, section 3.4).

    The paper's L2 norm, divided by the root of the number of pixels. The paper's mean is of images
    that were registered to one another first; this is the plain mean, from which the paper starts.
    The mean pulls on each restart, and gets no gradient itself. A restart with a value that is not
    finite does not count in it.

    For ``(b, n, c, h, w)`` images, and ``(b,)`` indices of the update that each explains: ``(b,)``,
    0 for an update's only restart.

    Example:
        >>> pixels = torch.tensor([1.0, 3.0, 7.0]).reshape(3, 1, 1, 1, 1)
        >>> group_consistency(pixels, torch.tensor([0, 0, 1]))
        tensor([1., 1., 0.])

    """
    flat = images.flatten(1)
    fixed = flat.detach()
    finite = fixed.isfinite().all(1, keepdim=True)
    groups = int(update.max()) + 1
    sums = flat.new_zeros(groups, flat.shape[1])
    sums = sums.index_add(0, update, torch.where(finite, fixed, 0))
    counts = flat.new_zeros(groups, 1).index_add(0, update, finite.to(flat))
    mean = (sums / counts.clamp(min=1))[update]
    distance: Tensor = torch.linalg.vector_norm(flat - mean, dim=1)
    return distance / math.sqrt(flat.shape[1])


def batch_norm_statistics(
    found: Mapping[str, tuple[Tensor, Tensor]], given: Mapping[str, tuple[Tensor, Tensor]]
) -> Tensor:
    """``sum_l |mean_l - given mean_l|_2 + |variance_l - given variance_l|_2`` (Yin et al. 2021).

    The paper's R_BN ``(b,)``, over the BatchNorm layers l with given statistics. Both map names to
    mean and variance of the layer's input, each ``(b, c)``; at least one name must be given.

    Example:
        >>> found = {"norm": (torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 3.0]]))}
        >>> given = {"norm": (torch.zeros(1, 2), torch.ones(1, 2))}
        >>> batch_norm_statistics(found, given)
        tensor([7.])

    """
    distances = [
        torch.linalg.vector_norm(one - other, dim=1)
        for name, pair in given.items()
        for one, other in zip(found[name], pair, strict=True)
    ]
    return torch.stack(distances).sum(0)


@dataclass(frozen=True)
class Prior:
    """The weighted sum of the priors above.

    Attributes:
        total_variation: weight of that prior, for pixels in units of the bounds' width.
        squared_norm: likewise, for pixels relative to the middle of the bounds.
        group_consistency: likewise.
        batch_norm: weight of ``batch_norm_statistics``; 0 without statistics.
        bounds: lowest and highest pixel value.

    Example:
        >>> prior = Prior(total_variation=0.5, bounds=(0.0, 2.0))
        >>> prior(2 * torch.eye(2).reshape(1, 1, 1, 2, 2), torch.tensor([0]), {}, {})
        tensor([1.])

    """

    total_variation: float = 0.0
    squared_norm: float = 0.0
    group_consistency: float = 0.0
    batch_norm: float = 0.0
    bounds: tuple[float, float] = (0.0, 1.0)

    def __call__(
        self, images: Tensor, update: Tensor, found: Statistics, given: Statistics
    ) -> Tensor:
        """``(b,)`` for ``(b, n, c, h, w)`` images and the statistics that they produce."""
        low, high = self.bounds
        width = high - low
        total = images.new_zeros(len(images))
        if self.total_variation:
            total = total + self.total_variation / width * total_variation(images)
        if self.squared_norm:
            total = total + self.squared_norm * squared_norm((images - (low + high) / 2) / width)
        if self.group_consistency:
            total = total + self.group_consistency / width * group_consistency(images, update)
        if self.batch_norm and given:
            total = total + self.batch_norm * batch_norm_statistics(found, given)
        return total
