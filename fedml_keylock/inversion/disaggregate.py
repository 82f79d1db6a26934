"""A linear layer's gradient, taken apart into what each input of a batch adds to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AttackError

__all__ = ["check_batch", "disaggregate", "low_rank"]

_ROUNDING = 1e-11
"""Of the greatest entry: what is as good as 0 in double precision."""
_POLISHING = 5
"""How often directions are computed again from what they say of the units."""
_GAP = 10.0
"""How many times greater the last singular value of a batch is than the first of rounding."""
_SAME = 1e-4
"""By how much the cosine of two directions may miss 1 before they are two."""


def check_batch(name: str, batch: int, gradients: Tensor) -> None:
    """Refuse a batch that leaves a linear layer's gradients ``(u, out, in)`` no rank to see.

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

    Rows and columns that are all 0 are left out first: behind units that no input reaches they make
    a gap of their own. Without a gap, as under noise, the rank is full. Returns the rank r, and the
    gradient as ``(m, r)`` times ``(r, n)``; the second has orthonormal rows.

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
    """A layer's gradient as ``left`` times ``basis``, and what else is known of it."""

    left: Tensor
    basis: Tensor
    bias_gradient: Tensor
    weight: Tensor
    bias: Tensor
    noise: float

    def zeros(self, directions: Tensor) -> Tensor:
        """``(k, r)`` directions -> ``(k, m)``: which rows they leave out."""
        return (directions @ self.left.T).abs() <= self.noise

    def rough(self, directions: Tensor) -> Tensor:
        """The same of directions that few rows have given, and so are not exact."""
        return (directions @ self.left.T).abs() <= 100 * self.noise

    def refined(self, direction: Tensor) -> Tensor:
        """The direction ``(r,)`` that all of the rows agree on which this one leaves out."""
        for _ in range(3):
            left_out = self.left[self.rough(direction[None])[0]]
            direction = torch.linalg.svd(left_out)[2][-1]
        return direction

    def inputs(self, directions: Tensor) -> Tensor | None:
        """The r inputs ``(r, n)`` that r directions ``(r, r)`` stand for; None if they are none."""
        # what the inputs add to the gradient adds up to the bias's
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
        """What ``(r, r)`` directions come to once they are right, or None.

        They are right if each leaves out, up to the noise, just the rows in which its own input
        leaves the unit inactive, and if these rows leave no other direction.
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
    D, one an input, and so of rank b: ``D = L Q`` for any ``L R`` that it is. A column of D is 0 in
    about half of the rows, and its column of Q is the kernel of any b - 1 such rows of L that are
    independent. So kernels of random submatrices are drawn, those are kept that leave out the most
    rows, the b sparsest that are independent are taken, and exchanged one by one with others while
    the sparsity matching coefficient gets better. The bias's gradient gives their lengths.

    It differs from the source in this. The search ends where the inputs are certain, and a set that
    is not is no result, whatever its coefficient: one of .99 may stand for other inputs. From all
    of the rows that it leaves out a direction is computed again, which single precision needs. And
    the ``4 b`` sparsest are kept in the place of all above a quantile, so that nothing is assumed
    of how many units are active.

    Args:
        weight_gradient: ``(m, n)``.
        bias_gradient: ``(m,)``.
        weight: ``(m, n)`` of the layer.
        bias: ``(m,)``.
        most: inputs in the batch: a higher rank is not searched.
        samples: submatrices to draw, at most.
        chunk: how many at once.
        generator: of the rows.

    Returns:
        The inputs ``(b, n)``, in float64, b being the rank; and one minus the coefficient, which is
        0 but for what is below the noise of single precision. None where the rank is above
        ``most``, or no set of directions is certain (``_Layer.certain``).

    """
    rank, left, basis = low_rank(weight_gradient)
    if rank > most:
        return None
    rest = weight_gradient.double() - left @ basis
    free = max(1, (rest.shape[0] - rank) * (rest.shape[1] - rank))
    # a rounding error in the gradient is one in the rows, whose basis is orthonormal
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
    """``(count, r)`` unit vectors, each orthogonal to r - 1 rows that are drawn."""
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
    """Of directions ``(k, r)`` the 4 r, at most, that leave out the most rows, each once."""
    rank = directions.shape[1]
    # not exact yet: a row of a kernel's own few may be all but dependent on the others
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
    """Of directions ``(k, r)``, best first, the first r that are independent; None if too few."""
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
    """Exchange directions one by one with others as long as that lowers the mismatch."""
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
