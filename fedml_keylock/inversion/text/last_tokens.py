"""Recovers the last token of each text of a causal model from the output layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..outputs import logits_of

__all__ = ["with_last_tokens"]

_TRIED = 8
"""Number of candidates to try for each text."""
_ENOUGH = 1e-4
"""Relative distance from the gradient at which nothing is left to explain."""


def with_last_tokens(
    model: nn.Module,
    name: str,
    texts: Sequence[Tensor],
    gradients: Mapping[str, Tensor],
) -> list[Tensor]:
    """Texts with the token after each, for a model trained to predict the next token.

    The gradient of the output layer is a sum over places: the layer's input times the error of its
    prediction. All places but the last are known, and the unexplained rest shows the token. Of the
    likeliest candidates, those whose whole gradient is closest to the sent one are chosen.

    Args:
        model: with the weights that the server sent, without dropout.
        name: name of the output layer's weight in the gradients, ``(vocabulary, width)``.
        texts: each without its last token.
        gradients: the sent gradients, by the names of the model's parameters.

    """
    parameters = dict(model.named_parameters())
    head = model.get_output_embeddings()  # type: ignore[operator]  # of transformers' models

    def gradient_of(each: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
        """The gradient of the mean loss of all places; a last target of -1 is left out."""
        losses = [
            cross_entropy(
                logits_of(model(text[None, :-1]))[0], text[1:], ignore_index=-1, reduction="sum"
            )
            for text in each
        ]
        loss = torch.stack(losses).sum() / sum(len(text) - 1 for text in each)
        return list(torch.autograd.grad(loss, [parameters[n] for n in names]))

    unknown = [torch.cat([text, text.new_tensor([-1])]) for text in texts]
    count = sum(map(len, texts))
    rest = gradients[name] - gradient_of(unknown, [name])[0]
    last = [_last(model, head, text) for text in texts]
    logits, seen = (torch.stack([each[part] for each in last]) for part in (0, 1))
    # for each last place: (prediction - token) times the head's input
    said = torch.linalg.lstsq(seen.T.double(), count * rest.T.double(), driver="gelsd").solution
    scores = logits.softmax(1) - said
    likely = list(scores.topk(min(_TRIED, scores.shape[1])).indices)
    chosen = [torch.cat([t, options[:1]]) for t, options in zip(texts, likely, strict=True)]
    names = [n for n in gradients if n in parameters]
    size = torch.stack([gradients[n].norm() for n in names]).norm()

    def cost(each: Sequence[Tensor]) -> float:
        made = gradient_of(each, names)
        rest = [(g - gradients[n]).norm() for n, g in zip(names, made, strict=True)]
        return float(torch.stack(rest).norm() / size)

    return _nearest(chosen, likely, cost)


def _nearest(
    chosen: list[Tensor], likely: Sequence[Tensor], cost: Callable[[Sequence[Tensor]], float]
) -> list[Tensor]:
    """Choose the last token with the lowest cost, text by text, until none changes."""
    changed = True
    best = cost(chosen)
    while changed and best > _ENOUGH:
        changed = False
        for index, options in enumerate(likely):
            for token in options:
                tried = [*chosen]
                tried[index] = torch.cat([chosen[index][:-1], token[None]])
                if not torch.equal(tried[index], chosen[index]) and (now := cost(tried)) < best:
                    chosen, best, changed = tried, now, True
    return chosen


@torch.no_grad()
def _last(model: nn.Module, head: nn.Module, text: Tensor) -> tuple[Tensor, Tensor]:
    """At the last place, the model's scores ``(vocabulary,)`` and the head's input ``(width,)``."""
    got: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _module, inputs: got.append(inputs[0]))
    try:
        logits = logits_of(model(text[None]))
    finally:
        hook.remove()
    return logits[0, -1], got[0][0, -1]
