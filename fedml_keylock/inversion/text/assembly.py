"""Assembles texts from the first attention layer's tokens, checked against the second layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import AttackError

__all__ = ["Distances", "by_descent", "by_prefix"]

Distances = Callable[[Tensor], Tensor]
"""Distances of tokens ``(n, length)`` from the second layer's span, after the first layer."""


def by_prefix(
    options: Tensor, distances: Distances, *, tolerance: float, most: int
) -> list[Tensor]:
    """The texts of a causal model, exactly: a token depends on none that comes after it.

    Every prefix found so far is tried with each possible next token. A prefix without a
    continuation is a whole text.

    Args:
        options: ``(vocabulary, length)``, whether a token may stand at a place.
        distances: of the last token of each prefix, ``(n,)``.
        tolerance: the largest distance of a prefix that is kept.
        most: how many prefixes may be kept at once.

    Returns:
        The texts, longest last.

    Raises:
        AttackError: more than ``most`` prefixes would be kept: the search is infeasible.

    """
    texts: list[Tensor] = []
    prefixes = torch.empty(1, 0, dtype=torch.long)
    for place in range(options.shape[1]):
        if not len(prefixes):
            break
        tokens = options[:, place].nonzero().flatten()
        tried = torch.cat(
            [
                prefixes.repeat_interleave(len(tokens), 0),
                tokens.repeat(len(prefixes))[:, None],
            ],
            dim=1,
        )
        kept = torch.zeros(len(tried), dtype=torch.bool)
        if len(tried):
            kept = distances(tried) <= tolerance
        goes_on = kept.view(len(prefixes), -1).any(1)
        texts += list(prefixes[~goes_on])
        prefixes = tried[kept]
        if len(prefixes) > most:
            raise AttackError(
                f"{len(prefixes)} beginnings of {place + 1} tokens are left, and no more than "
                f"{most} are followed: the search is infeasible, and no result"
            )
    return [text for text in (*texts, *prefixes) if len(text)]


def by_descent(
    options: Tensor,
    distances: Distances,
    *,
    tolerance: float,
    count: int,
    restarts: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """The texts of an encoder, by search: each token depends on all others of its text.

    A search starts from each option of one place and random options of the others. In turn each
    place takes the option with which the whole text is closest to the span, until none changes. A
    text counts only if all of its tokens are within the tolerance, so found texts are right; some
    may be missed.

    Args:
        options: ``(vocabulary, length)``, whether a token may stand at a place.
        distances: of each token of whole texts, ``(n, length)``.
        tolerance: the largest distance of a token that is taken for true.
        count: how many texts are looked for.
        restarts: searches for each length, from the longest; the first fixes the first place.
        generator: for the starts.

    Returns:
        At most ``count`` texts.

    """
    found: list[Tensor] = []
    choices = [options[:, place].nonzero().flatten() for place in range(options.shape[1])]
    while choices and not len(choices[-1]):
        choices.pop()
    if not all(map(len, choices)):
        return []
    for length in range(len(choices), 0, -1):
        for anchor in (restart % length for restart in range(restarts)):
            starts = [
                choice[torch.randint(len(choice), choices[anchor].shape, generator=generator)]
                for choice in choices[:length]
            ]
            starts[anchor] = choices[anchor]
            texts = _descended(torch.stack(starts, 1), anchor, choices[:length], distances)
            for text in texts[distances(texts).amax(1) <= tolerance]:
                if not any(torch.equal(other[:length], text) for other in found):
                    found.append(text)
            if len(found) >= count:
                return found[:count]
    return found


def _descended(texts: Tensor, anchor: int, choices: list[Tensor], distances: Distances) -> Tensor:
    """Texts ``(n, length)`` after the descent; tokens at the anchor stay."""
    length = texts.shape[1]
    for _ in range(2 * length):
        before = texts.clone()
        for place in range(length):
            options = choices[place]
            if place == anchor or len(options) < 2:
                continue
            tried = texts.repeat_interleave(len(options), 0)
            tried[:, place] = options.repeat(len(texts))
            cost = distances(tried).square().sum(1).view(len(texts), -1)
            texts[:, place] = options[cost.argmin(1)]
        if torch.equal(texts, before):
            break
    return texts
