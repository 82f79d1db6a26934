"""DAGER: recovers whole texts, in order, from the gradient of a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import AttackError
from ...settings import Count, Share, checked
from ...types import ClientUpdate, TokenReconstruction
from ..base import check_level, check_one_step
from ..engine.observe import Observation, observe
from ..knowledge import Knowledge
from ..outputs import logits_of
from .assembly import by_descent, by_prefix
from .attention import AttentionLayer, attention_layers
from .last_tokens import with_last_tokens
from .span import Span

__all__ = ["DagerAttack"]

_TOKENS = 1024
"""Number of tokens to try at once."""


@checked
class DagerAttack:
    """The texts of a batch, exactly, from the gradient of a transformer.

    Petrov, Dimitrov, Baader, Mueller and Vechev, NeurIPS 2024 (arXiv 2405.15586). The gradient of a
    linear layer is a sum over its inputs: it spans exactly them, while they are fewer than the
    layer is wide. In the first self-attention layer an input is a token at a place: every
    combination is tried. In the second layer it is a token and what came before it. This orders the
    tokens into texts: prefix by prefix and exactly in a causal model, by search in an encoder.

    If a layer norm only scales the sum of token and place, the first layer shows no more dimensions
    than there are tokens and places. When tokens recur often enough, any token then fits any place,
    and the second layer decides.

    Differences from the source: it uses the value projection, which has one input more a text than
    the query; the rank is where singular values fall most, not by a tolerance; the last token of a
    causal model's text, which no attention layer shows, is read from the output layer; and an
    encoder's texts are found by descent from random starts.

    It returns no images, so a FedML job cannot name it as an ``Attack``.

    Attributes:
        name: name of the attack in reports.
        tolerance: the largest distance of an input from a span, relative to its size, at which it
            counts as contained. It is lowered to the gradient's rounding.
        most: how many prefixes are followed in a causal model.
        restarts: restarts of an encoder's search, for each length and first token.

    Example:
        >>> DagerAttack().name
        'dager'

    """

    name: str = "dager"
    tolerance: Share = 1e-2
    most: Count = 1000
    restarts: Count = 8

    needs: ClassVar[frozenset[str]] = frozenset()
    """Nothing: it uses the sent gradients."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Nothing: no lock affects it, or it finds nothing."""

    def reconstruct(
        self,
        updates: Sequence[ClientUpdate],
        model: nn.Module,
        *,
        knowledge: Knowledge,
        generator: torch.Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> TokenReconstruction:
        """Recover each update's texts, from one plain SGD step on all of them without dropout.

        ``knowledge`` has the ``(length,)`` of the longest text as ``input_shape``, the size of the
        vocabulary as ``classes``, the number of texts as ``batch``, and level ``oblivious``. Frozen
        parts of the model must have their true values in ``model``.

        The cost is the largest distance of a found text's tokens from the second layer's span: for
        a true text, about the gradient's rounding. Equal texts are found once, and a text that is a
        prefix of another is not found, so there may be fewer than in the batch. Adapters alone do
        not show a causal model's last tokens.

        Raises:
            AttackError: the attack does not fit the level or the silo's training. The model lacks
                two known self-attention layers, or they are frozen or without gradient. The batch
                has as many tokens as the layers are wide, or more than an adapter's rank. Or the
                search is infeasible, or finds nothing.

        """
        # it uses only name, needs and uses; this result has no images
        check_level(self, knowledge.level)  # type: ignore[arg-type]
        if len(knowledge.input_shape) != 1:
            raise AttackError(
                f"{self.name} reads texts: input_shape is the (length,) of the longest, not "
                f"{knowledge.input_shape}"
            )
        check_one_step(self.name, knowledge)
        observation = observe(updates, model, knowledge)
        found, costs = [], []
        for index, update in enumerate(updates):
            where = f"silo {update.silo} in round {update.round}"
            try:
                texts, cost = self._texts(observation, index, knowledge, generator)
            except AttackError as error:
                raise AttackError(f"{self.name}, the update of {where}: {error}") from None
            found.append(tuple(texts))
            costs.append(cost)
            if progress is not None:
                progress(index + 1, len(updates))
        none = torch.empty(0, dtype=torch.long)
        sets = [torch.unique(torch.cat([none, *texts])) for texts in found]
        return TokenReconstruction(
            tokens=tuple(sets),
            attack=self.name,
            knowledge=knowledge.level,
            texts=tuple(found),
            cost=torch.tensor(costs),
        )

    def _texts(
        self,
        observation: Observation,
        index: int,
        knowledge: Knowledge,
        generator: torch.Generator | None,
    ) -> tuple[list[Tensor], float]:
        """The texts of one update, and its cost."""
        model, (length,) = observation.model.eval(), knowledge.input_shape
        state = int(observation.state[index])
        with torch.no_grad():
            for name, sent in {**observation.public, **observation.fixed}.items():
                model.state_dict(keep_vars=True)[name].copy_(sent[state])
        gradients = {name: target[index] for name, target in observation.targets.items()}
        tokens = torch.arange(knowledge.classes)[:, None].expand(-1, length)
        first, second = attention_layers(model, tokens[:1])[:2]
        causal = _is_causal(second, tokens)
        span, behind = (layer.span(gradients, causal=causal) for layer in (first, second))
        some = torch.split(tokens, _TOKENS)
        places = torch.cat([span.distance(first.inputs(part)) for part in some])
        options = places <= span.tolerance(self.tolerance)
        _check_options(options, span, behind)

        def distances(tried: Tensor) -> Tensor:
            return behind.distance(second.inputs(tried))

        def of_last(tried: Tensor) -> Tensor:
            return behind.distance(second.inputs(tried)[:, -1])

        within = behind.tolerance(self.tolerance)
        if causal:
            texts = by_prefix(options, of_last, tolerance=within, most=self.most)
            if torch.allclose(places, places[:, :1], rtol=0, atol=1e-6):  # without positions
                texts = _without_repeats(texts)
        else:
            texts = by_descent(
                options,
                distances,
                tolerance=within,
                count=knowledge.batch,
                restarts=self.restarts,
                generator=generator or torch.Generator().manual_seed(0),
            )
        # rounding may leave more texts than there were
        costs = sorted((float(distances(text[None]).max()), at) for at, text in enumerate(texts))
        texts = [texts[at] for _, at in costs[: knowledge.batch]]
        if not texts:
            raise AttackError("no text of the tokens that are there was found: no result")
        cost = costs[len(texts) - 1][0]
        head = _output_layer(model, length) if causal else None
        if head in gradients:
            texts = with_last_tokens(model, head, texts, gradients)
        return texts, cost


def _check_options(options: Tensor, span: Span, behind: Span) -> None:
    """Refuse spans that contain every token, none, or not all true ones."""
    for which, one in (("first", span), ("second", behind)):
        width = one.basis.shape[1]
        if one.rank >= width - 1:  # the most that a layer norm leaves
            raise AttackError(
                f"the {which} self-attention layer's gradient has rank {one.rank}, of a width of "
                f"{width}: every token is in its span; the batch has too many tokens for this "
                "model, or what was sent is no gradient of it; no result"
            )
    if not options.any():
        raise AttackError(
            f"the first self-attention layer's gradient has rank {span.rank}, and no token is in "
            "its span: more tokens than the rank of an adapter, dropout, or no gradient of this "
            "model; no result"
        )
    if behind.rank < span.rank:
        raise AttackError(
            f"the second self-attention layer's gradient has rank {behind.rank}, the first's "
            f"{span.rank}: it does not show all tokens; no result"
        )


def _without_repeats(texts: list[Tensor]) -> list[Tensor]:
    """Without texts of one repeated token with which another text begins.

    Without positions, attention maps a token preceded only by copies of itself to the same result
    as the token alone. So each text's first token passes for a text of any length.
    """
    told = {int(text[0]) for text in texts if (text != text[0]).any()}
    return [text for text in texts if (text != text[0]).any() or int(text[0]) not in told]


def _is_causal(layer: AttentionLayer, tokens: Tensor) -> bool:
    """Whether a token's input to the second layer is independent of later tokens."""
    texts = tokens[:1].repeat(2, 1)
    if texts.shape[1] < 2:
        return True
    texts[1, -1] = tokens[-1, 0]
    one, other = layer.inputs(texts)[:, 0]
    return bool(torch.dist(one, other) <= 1e-6 * one.norm())


def _output_layer(model: nn.Module, length: int) -> str | None:
    """Name of the output layer's weight in a model that predicts each next token, or None."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter is not None else None
    if head is None:
        return None
    with torch.no_grad():
        logits = logits_of(model(torch.zeros(1, length, dtype=torch.long)))
    if logits.dim() != 3 or logits.shape[1] != length:
        return None
    weight = head.weight
    return next((name for name, value in model.named_parameters() if value is weight), None)
