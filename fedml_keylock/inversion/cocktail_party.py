"""Separates the inputs of a batch behind a first linear layer by independent component analysis."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..settings import Count, NotNegative, Positive, checked
from ..tensors import copy_of, under
from ..types import ClientUpdate, Reconstruction
from .base import SEARCH, check_level, check_one_step
from .disaggregate import check_batch, low_rank
from .engine.evaluate import run
from .engine.layer_inputs import first_linear, output_gradient
from .engine.observe import Observation, observe
from .engine.search import points
from .knowledge import Knowledge
from .labels import labels_if_any
from .prior import total_variation

__all__ = ["CocktailPartyAttack"]

SEPARATED = 0.5
"""Median cosine from which a batch was separated; see ``reconstruct``.

Measured on MLPs (PSNR aligned): dead leaves .95 to .98 at 25 to 31 dB, and .88 at 21 dB; 9 digits
.55 at 18 dB, 32 digits .497 at 14 dB, where the mean image gives 12.
"""


@checked
class CocktailPartyAttack:
    """The inputs of a model that starts with a linear layer, unmixed from its gradient.

    Each row of the weight's gradient is a mixture of the batch's inputs. The inputs are
    non-Gaussian, smooth and unlike one another. So independent component analysis finds them, for
    any model behind the layer. The attack is not exact: it gets worse with more inputs, fewer
    pixels and more similar inputs. An input's length and sign are those that explain its part of
    the bias's gradient; without a bias its range is the bounds'.

    Attributes:
        name: name of the attack in reports.
        start: ``fastica``: scikit-learn's FastICA first; or ``identity``, as in the source.
        steps: of Adam on the source's loss.
        learning_rate: of Adam.
        total_variation: weight of the smoothness, for images only.
        decorrelation: weight of the similarity between the directions of two inputs.
        temperature: how much more two very similar inputs cost.
        non_gaussianity: weight of the negentropy.

    Example:
        >>> CocktailPartyAttack(steps=100).start
        'fastica'

    """

    name: str = "cocktail_party"
    start: Literal["fastica", "identity"] = "fastica"
    steps: Count = 25_000
    learning_rate: Positive = 1e-3
    total_variation: NotNegative = 3.1
    decorrelation: NotNegative = 1.47
    temperature: Positive = 12.4
    non_gaussianity: NotNegative = 1.0

    needs: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it decomposes the sent gradients."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it searches nothing that a lock hides."""

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Reconstruction:
        """Separate the inputs of the first layer, in any order.

        The history is of the source's loss: the lower the less the inputs look like mixtures. It
        says nothing of how near they are, since every mixture explains the layer's gradient. The
        cost does: one minus the median, over the inputs, of how alike (by cosine) what each adds to
        the gradient is to what the model itself, run on it alone, gives for some class. Batch
        normalisation is then by the running statistics, and this rougher. Where the loss has no
        classes the cost is the history's last.

        An update counts as diverged, with an infinite cost, where the gradient's rank is above the
        batch, the loss is not finite or the median is below ``SEPARATED``: a failed separation, and
        no defense. Inputs that are the same add up to one; each of the places that are left then
        has one of those that were found. The labels are sorted, and not matched to the images.

        It takes updates of one plain SGD step, at level ``oblivious``, and refuses others by an
        AttackError.
        """
        check_level(self, knowledge.level)
        check_one_step(self.name, knowledge, instead=SEARCH)
        observation = observe(updates, model, knowledge)
        name = first_linear(observation.model, knowledge, bias=False)
        weight = observation.targets[under(name, "weight")]
        check_batch(self.name, knowledge.batch, weight)
        labels = labels_if_any(observation.model, observation.targets, knowledge)
        images = weight.new_full(
            (len(updates), knowledge.batch, *knowledge.input_shape), sum(knowledge.bounds) / 2
        )
        history = weight.new_full((points(self.steps)[1], len(updates)), float("inf"))
        cost = history[0].clone()
        for index in range(len(updates)):
            found = self._separate(observation, name, index, knowledge, generator)
            if found is not None:
                places = torch.arange(knowledge.batch) % len(found[0])
                images[index], history[:, index] = found[0][places].to(images), found[1].to(images)
                alike = _explained(observation, name, index, found[0], knowledge)
                cost[index] = history[-1, index] if alike is None else 1 - alike
                if alike is not None and not alike >= SEPARATED:
                    cost[index] = float("inf")
            if progress is not None:
                progress(index + 1, len(updates))
        return Reconstruction(
            images=images.clamp(*knowledge.bounds),
            labels=labels.to(weight.device),
            cost=cost,
            history=history,
            diverged=cost.isinf().long(),
            attack=self.name,
            knowledge=knowledge.level,
        )

    def _separate(
        self,
        observation: Observation,
        name: str,
        index: int,
        knowledge: Knowledge,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor] | None:
        """The inputs ``(r, *input_shape)`` of one update, and the loss over the steps."""
        rank, left, basis = low_rank(observation.targets[under(name, "weight")][index])
        if rank > knowledge.batch:
            return None
        mean = basis.mean(1, keepdim=True)
        _, _, right = torch.linalg.svd(basis - mean, full_matrices=False)
        size = basis.shape[1] ** 0.5
        white = size * right
        # the whitening matrix of the basis
        whiten = white @ torch.linalg.pinv(basis - mean)
        unmixing = torch.eye(rank).to(white)
        if self.start == "fastica" and rank > 1:
            unmixing = _fast_ica(white, generator)
        unmixing, history = self._descend(unmixing, white, whiten @ mean, knowledge)
        if not history[-1].isfinite():
            return None
        inputs = unmixing @ (white + whiten @ mean)
        bias = observation.targets.get(under(name, "bias"))
        low, high = knowledge.bounds
        if bias is None:
            inputs = inputs * inputs.mean(1, keepdim=True).sign()
            least, most = inputs.amin(1, keepdim=True), inputs.amax(1, keepdim=True)
            inputs = low + (high - low) * (inputs - least) / (most - least)
        else:
            # the bias is like a pixel that is 1 in every input
            of_bias = torch.linalg.lstsq(left, bias[index].double()[:, None]).solution
            inputs = inputs / (unmixing @ (whiten @ of_bias))
        return inputs.view(rank, *knowledge.input_shape), history

    def _descend(
        self, unmixing: Tensor, white: Tensor, mean: Tensor, knowledge: Knowledge
    ) -> tuple[Tensor, Tensor]:
        """Run Adam on the loss from ``(r, r)`` rows; return the final unit rows and the history."""
        white, mean = white.float(), mean.float()
        rows = unmixing.float().clone().requires_grad_()
        optimizer = torch.optim.Adam([rows], lr=self.learning_rate)
        others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        every, count = points(self.steps)
        history = []
        for step in range(self.steps):
            unit = nn.functional.normalize(rows, dim=1)
            sources = unit @ white
            loss = -self.non_gaussianity * sources.cosh().log().mean(1).square().mean()
            if len(knowledge.input_shape) == 3:
                images = (sources + unit @ mean).view(1, -1, *knowledge.input_shape)
                loss = loss + self.total_variation * total_variation(images).mean()
            alike = (unit @ unit.T)[others].abs()
            if len(alike):
                loss = loss + self.decorrelation * (self.temperature * alike).expm1().mean()
            if step % every == 0:
                history.append(loss.detach())
            (rows.grad,) = torch.autograd.grad(loss, rows)
            optimizer.step()
        history[-1] = loss.detach()
        return nn.functional.normalize(rows.detach(), dim=1).double(), torch.stack(history[:count])


def _explained(
    observation: Observation, name: str, index: int, inputs: Tensor, knowledge: Knowledge
) -> float | None:
    """The median cosine of what each input ``(r, *input_shape)`` adds with what the model gives.

    None where the loss has no classes to try.
    """
    if knowledge.loss.targets != "classes" or len(knowledge.outputs) > 1:
        return None
    count, classes = len(inputs), knowledge.classes
    gradient = observation.targets[under(name, "weight")][index]
    parts = gradient.double() @ torch.linalg.pinv(inputs.flatten(1))
    shown = inputs.clamp(*knowledge.bounds).to(gradient).repeat_interleave(classes, 0)
    labels = torch.arange(classes, device=shown.device).repeat(count)
    state = {
        part: value[observation.state[index]]
        for part, value in {**observation.public, **observation.fixed}.items()
    }
    model = copy_of(observation.model).eval()
    made = output_gradient(model, name, lambda: knowledge.loss(run(model, state, shown), labels))[
        1
    ].double()
    found = nn.functional.cosine_similarity(made.view(count, classes, -1), parts.T[:, None], dim=2)
    return float(found.amax(1).median())


def _fast_ica(white: Tensor, generator: torch.Generator) -> Tensor:
    """Rows ``(r, r)`` that unmix whitened sources ``(r, n)`` (Hyvarinen and Oja 2000)."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
    ica = FastICA(whiten=False, max_iter=500, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # an unconverged result is a start too
        ica.fit(white.T.cpu().numpy())
    return torch.from_numpy(ica.components_).to(white)
