"""Recovers the tokens of texts from the gradient of a model's embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import AttackError
from ..settings import Share, checked
from ..tensors import under
from ..types import ClientUpdate, TokenReconstruction
from .base import check_level
from .engine.layer_inputs import watch
from .engine.observe import observe
from .gradient_transform import Noise, Quantise
from .knowledge import Knowledge

__all__ = ["TokenRecovery", "embedding_tokens"]


def embedding_tokens(gradient: Tensor, *, tolerance: float = 0.0) -> list[Tensor]:
    """The tokens that an embedding looked up: the nonzero rows of its gradient.

    Only the rows that were looked up get a gradient, so it names the set of tokens of a batch of
    any size, without order and counts. It does not show ``padding_idx``, and nothing if the output
    layer shares the weight. Source: Fowl et al., "Decepticons", ICLR 2023 (arXiv 2201.12675), on
    token leakage.

    Args:
        gradient: ``(u, vocabulary, width)`` gradient of the embedding's weight.
        tolerance: a row counts if its largest entry exceeds this fraction of the update's largest;
            0 for an exact gradient, more for one with noise.

    Returns:
        u tensors of sorted token indices, one for each update, of as many tokens as were found.

    Raises:
        AttackError: the shape does not fit, a value is not finite, or the tolerance is not in
            [0, 1).

    Example:
        >>> gradient = torch.zeros(1, 6, 2)
        >>> gradient[0, [4, 1]] = torch.tensor([0.5, -0.5])
        >>> embedding_tokens(gradient)
        [tensor([1, 4])]

    """
    if gradient.ndim != 3:
        raise AttackError(
            f"an embedding's gradients are (u, vocabulary, width), not {tuple(gradient.shape)}"
        )
    if not 0 <= tolerance < 1:
        raise AttackError(f"tolerance must be at least 0 and below 1, not {tolerance}")
    if not gradient.isfinite().all():
        raise AttackError("the embedding's gradient has NaN or infinite values")
    rows = gradient.abs().amax(2)
    found = rows > tolerance * rows.amax(1, keepdim=True)
    return [update.nonzero().flatten() for update in found]


@checked
class TokenRecovery:
    """The set of tokens behind each update, from the rows of an embedding that changed.

    It works for a batch of any size and any number of local steps, without order and counts. Every
    token that it names was there. It misses padding, and tokens whose step was too small to change
    their row in the weights' precision: those far back in a text of which a recurrent net uses the
    end only.

    A lock behind an embedding does not hide which rows changed, whatever it does to their values.
    So the key-lock refuses a model whose first layer is an embedding: it would only seem to
    protect.

    It returns no images, so a FedML job cannot name it as an ``Attack``.

    Attributes:
        name: name of the attack in reports.
        tolerance: see ``embedding_tokens``.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
        >>> before = {name: value.detach() for name, value in model.state_dict().items()}
        >>> tokens = torch.tensor([[7, 2, 2], [5, 7, 1]])
        >>> loss = nn.functional.cross_entropy(model(tokens), torch.tensor([0, 1]))
        >>> gradients = torch.autograd.grad(loss, list(model.parameters()))
        >>> after = {n: v - g for (n, v), g in zip(before.items(), gradients, strict=True)}
        >>> TokenRecovery().reconstruct(
        ...     [ClientUpdate(before, after, 1.0)],
        ...     model,
        ...     knowledge=Knowledge("oblivious", input_shape=(3,), classes=2, batch=2),
        ... ).tokens
        (tensor([1, 2, 5, 7]),)

    """

    name: str = "tokens"
    tolerance: Share = 0.0

    needs: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it finds the rows that changed."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it does not search, and no lock affects it."""

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> TokenReconstruction:
        """Name the tokens of each update.

        It takes updates of any number of local steps by SGD, without weight decay, which would
        change every row; at level ``oblivious``, with the ``(length,)`` of one text as
        ``input_shape``.

        Raises:
            AttackError: the level or the silo's training does not suit it, no embedding gets the
                tokens, its weight is frozen or shared with another layer, or updates, model and
                knowledge do not fit together. It is raised before any work is done.

        """
        # it only uses name, needs and uses; this result has no images
        check_level(self, knowledge.level)  # type: ignore[arg-type]
        if knowledge.training is not None and knowledge.training.weight_decay:
            raise AttackError(f"{self.name} sees which rows moved: weight decay moves all of them")
        moved = [type(t).__name__ for t in knowledge.transforms if isinstance(t, Noise | Quantise)]
        if moved and not self.tolerance:
            raise AttackError(
                f"{self.name} sees which rows moved: {' and '.join(moved)} moves all of them; "
                "give it a tolerance"
            )
        observation = observe(updates, model, knowledge)
        weight = _embedding(observation.model, knowledge)
        found = embedding_tokens(observation.targets[weight], tolerance=self.tolerance)
        if progress is not None:
            progress(1, 1)
        return TokenReconstruction(tuple(found), attack=self.name, knowledge=knowledge.level)


def _embedding(model: nn.Module, knowledge: Knowledge) -> str:
    """Name of the weight of the first embedding that gets the tokens unchanged."""
    embeddings = {n: m for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if not embeddings:
        raise AttackError("the model has no embedding: use another attack")
    least = min(module.num_embeddings for module in embeddings.values())
    # counted down from the last token, so that neither positions nor segments look the same
    tokens = (least - 1 - torch.arange(prod(knowledge.input_shape))) % least
    tokens = tokens.view(1, *knowledge.input_shape).to(next(model.parameters()).device)
    # an error may occur behind the embedding, where it does not matter
    calls, error = watch(model, embeddings, tokens)
    seen = [
        name
        for name, _, got in calls
        if got is not None and torch.equal(got.flatten(), tokens.flatten())
    ]
    if not seen:
        raise AttackError(
            f"no embedding of the model gets tokens of shape {knowledge.input_shape} as they are"
        ) from error
    name, weight = seen[0], embeddings[seen[0]].weight
    label = f"{name or 'the model'} (Embedding)"
    if not weight.requires_grad:
        raise AttackError(f"the model's embedding, {label}, is frozen: it has no gradient")
    tied = [
        other
        for other, module in model.named_modules()
        if other != name and any(p is weight for p in module.parameters(recurse=False))
    ]
    if tied:
        raise AttackError(
            f"the model's embedding, {label}, has its weight in common with {', '.join(tied)}: "
            "all rows move"
        )
    return under(name, "weight")
