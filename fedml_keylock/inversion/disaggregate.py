"""Decomposes a linear layer's gradient into the parts of a batch's single inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AttackError

__all__ = ["check_batch", "disaggregate", "low_rank"]

_ROUNDING = 1e-11
"""Numbers below this share of the largest entry count as 0 in double precision."""
_POLISHING = 5
"""How often directions are refined from the units that they leave out."""
_GAP = 10.0
"""Least ratio between a batch's last singular value and the first of rounding."""
_SAME = 1e-4
"""Two directions are the same if their cosine is this close to 1."""


def check_batch(name: str, batch: int, gradients: Tensor) -> None:
    """Refuse a batch so large that gradients ``(u, out, in)`` of a linear layer show no rank.

    Raises:
        AttackError: naming the attack.

    """
    width, inputs = gradients.shape[1:]
    if batch >= min(width, inputs):
        raise AttackError(
            f"{name} needs a batch below both dimensions of the first layer, {width} and "
            f"{inputs}: {batch} inputs leave no rank to see"
        )


def low_rank(gradient: Tensor) -> tuple[int, Tensor, Tensor]:
    """The rank of a ``(m, n)`` gradient by the largest gap of its singular values.

    All-zero rows and columns are left out first: units and inputs that are never active would make
    a gap of their own. Without a gap, as under noise, the rank is full. Returns the rank r, and the
    gradient as ``(m, r)`` times ``(r, n)``; the second factor has orthonormal rows.

    Example:
        >>> one, two = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 1.0, 3.0])
        >>> low_rank(torch.outer(one, two) + torch.outer(two, one))[0]
        2

    """
    rows, columns = gradient.any(1), gradient.any(0)
    _, values, right = torch.linalg.svd(gradient[rows][:, columns].double(), full_matrices=False)
    values = values.clamp(min=torch.finfo(gradient.dtype).eps * float(values[0]))
    gaps = values[:-1] / values[1:]
    found = len(gaps) > 0 and float(gaps.max()) >= _GAP
    rank = int(gaps.argmax()) + 1 if found else len(values)
    basis = right.new_zeros(rank, gradient.shape[1])
    basis[:, columns] = right[:rank]
    return rank, gradient.double() @ basis.T, basis


@dataclass(frozen=True)
class _Layer:
    """A layer's gradient as ``left`` times ``basis``, and what else is known of the layer."""

    left: Tensor
    basis: Tensor
    bias_gradient: Tensor
    weight: Tensor
    bias: Tensor
    noise: float

    def zeros(self, directions: Tensor) -> Tensor:
        """``(k, r)`` directions -> ``(k, m)``: which rows are 0 for them."""
        return (directions @ self.left.T).abs() <= self.noise

    def rough(self, directions: Tensor) -> Tensor:
        """The same for directions from few rows, which are not exact yet."""
        return (directions @ self.left.T).abs() <= 100 * self.noise

    def refined(self, direction: Tensor) -> Tensor:
        """The direction ``(r,)`` refitted to all rows that are 0 for this one."""
        for _ in range(3):
            left_out = self.left[self.rough(direction[None])[0]]
            direction = torch.linalg.svd(left_out)[2][-1]
        return direction

    def inputs(self, directions: Tensor) -> Tensor | None:
        """The r inputs ``(r, n)`` of r directions ``(r, r)``; None if they are not inputs."""
        # the inputs' parts of the gradient add up to the bias's gradient
        scale = torch.linalg.lstsq(
            self.left @ directions.T, self.bias_gradient[:, None]
        ).solution.flatten()
        scaled = directions * scale[:, None]
        found, info = torch.linalg.solve_ex(scaled.T, self.basis)
        return None if info or not found.isfinite().all() else found

    def mismatch(self, directions: Tensor) -> float:
        """One minus the sparsity matching coefficient of ``(r, r)`` directions."""
        found = self.inputs(directions)
        if found is None:
            return 1.0
        above = found @ self.weight.T + self.bias > 0
        return float((above == self.zeros(directions)).double().mean())

    def certain(self, directions: Tensor) -> Tensor | None:
        """The refined ``(r, r)`` directions if they are right, or None.

        They are right if each is 0, up to noise, in exactly the rows in which its own input leaves
        the unit inactive, and if these rows determine it.
        """
        for _ in range(_POLISHING):
            found = self.inputs(directions)
            if found is None:
                return None
            inactive = found @ self.weight.T + self.bias <= 0
            if int(inactive.sum(1).min()) < len(directions):
                return None
            parts = [torch.linalg.svd(self.left[rows], full_matrices=False) for rows in inactive]
            directions = torch.stack([part[2][-1] for part in parts])
            sizes = [
                part[1] / rows.sum() ** 0.5 for part, rows in zip(parts, inactive, strict=True)
            ]
            last = max(float(size[-1]) for size in sizes)
            other = min((float(size[-2]) for size in sizes if len(size) > 1), default=float("inf"))
            if last <= self.noise < other:
                return directions
        return None


def disaggregate(
    weight_gradient: Tensor,
    bias_gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    most: int,
    samples: int,
    chunk: int,
    generator: torch.Generator,
) -> tuple[Tensor, float] | None:
    """The inputs of a linear layer with a ReLU behind it, from its gradients.

    Dimitrov, Baader, Mueller and Vechev, "SPEAR: Exact gradient inversion of batches in federated
    learning", NeurIPS 2024 (arXiv 2403.03945). The weight's gradient is ``D X`` with b columns of
    D, one for each input, and so of rank b: ``D = L Q`` for any factors ``L R`` of it. About half
    of a column of D is 0, and its column of Q is the kernel of any b - 1 independent such rows of
    L. So the search draws kernels of random submatrices, and keeps those with the most zero rows.
    It takes the b sparsest independent ones, and exchanges them one by one while the sparsity
    matching coefficient improves. The bias's gradient gives their lengths.

    Differences from the source: the search ends when the inputs are certain, and a set that is not
    certain is no result, whatever its coefficient: with .99 it may stand for other inputs. Each
    direction is refitted to all of its zero rows, which single precision needs. And the ``4 b``
    sparsest are kept instead of all above a quantile, so that no share of active units is assumed.

    Args:
        weight_gradient: ``(m, n)``.
        bias_gradient: ``(m,)``.
        weight: ``(m, n)`` of the layer.
        bias: ``(m,)``.
        most: the inputs in the batch: a higher rank is not searched.
        samples: the most submatrices to draw.
        chunk: how many to draw at once.
        generator: for the drawn rows.

    Returns:
        The inputs ``(b, n)``, in float64, with b the rank; and one minus the coefficient, which is
        0 up to the noise of single precision. None if the rank exceeds ``most``, or no set of
        directions is certain (``_Layer.certain``).

    """
    rank, left, basis = low_rank(weight_gradient)
    if rank > most:
        return None
    rest = weight_gradient.double() - left @ basis
    free = max(1, (rest.shape[0] - rank) * (rest.shape[1] - rank))
    # rounding errors of the gradient appear unchanged in the rows, because the basis is orthonormal
    noise = max(10 * float(rest.square().sum() / free) ** 0.5, _ROUNDING * float(left.abs().max()))
    layer = _Layer(left, basis, bias_gradient.double(), weight.double(), bias.double(), noise)
    alive = left[left.norm(dim=1) > noise * rank]
    found = left.new_zeros(0, rank)
    for first in range(0, samples, chunk):
        before = found
        kernels = _kernels(alive, min(chunk, samples - first), generator)
        found = _sparsest(layer, torch.cat([found, kernels]))
        chosen = None if torch.equal(found, before) else _independent(found)
        if chosen is None:
            continue
        right = layer.certain(_repaired(layer, chosen, found))
        inputs = None if right is None else layer.inputs(right)
        if right is not None and inputs is not None:
            return inputs, layer.mismatch(right)
    return None


def _kernels(left: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``(count, r)`` unit vectors, each orthogonal to r - 1 random rows."""
    rows, rank = left.shape
    if rank == 1:
        return left.new_ones(1, 1)
    if rows < rank:
        return left.new_zeros(0, rank)
    drawn = torch.rand(count, rows, generator=generator, device=generator.device)
    some = left[drawn.topk(rank - 1, dim=1).indices.to(left.device)]
    square: Tensor = torch.linalg.qr(some.transpose(1, 2), mode="complete")[0]
    return square[..., -1]


def _sparsest(layer: _Layer, directions: Tensor) -> Tensor:
    """The directions of ``(k, r)`` with the most zero rows, at most 4 r, without duplicates."""
    rank = directions.shape[1]
    # not exact yet: a kernel's own few rows may be almost dependent
    counts = layer.rough(directions).sum(1)
    kept: list[Tensor] = []
    while len(kept) < 4 * rank and counts.numel():
        best = int(counts.argmax())
        if counts[best] < rank:
            break
        direction = layer.refined(directions[best])
        new = all(float((direction @ one).abs()) < 1 - _SAME for one in kept)
        if new:
            kept.append(direction)
        near = (directions @ torch.stack([directions[best], direction]).T).abs().amax(1)
        counts = counts.masked_fill(near >= 1 - _SAME, -1)
    kept.sort(key=lambda one: -int(layer.zeros(one[None]).sum()))
    return torch.stack(kept) if kept else directions[:0]


def _independent(directions: Tensor) -> Tensor | None:
    """The first r independent directions of ``(k, r)``, best first; None if there are too few."""
    rank = directions.shape[1]
    chosen: list[Tensor] = []
    span = directions.new_zeros(0, rank)
    for direction in directions:
        rest = direction - (span @ direction) @ span
        if float(rest.norm()) > _SAME:
            chosen.append(direction)
            span = torch.cat([span, (rest / rest.norm())[None]])
        if len(chosen) == rank:
            return torch.stack(chosen)
    return None


def _repaired(layer: _Layer, chosen: Tensor, others: Tensor) -> Tensor:
    """Exchange directions one by one with others while that lowers the mismatch."""
    cost = layer.mismatch(chosen)
    better = True
    while better and cost > 0:
        better = False
        for other in others:
            for place in range(len(chosen)):
                trial = chosen.clone()
                trial[place] = other
                value = layer.mismatch(trial)
                if value < cost:
                    chosen, cost, better = trial, value, True
    return chosen
