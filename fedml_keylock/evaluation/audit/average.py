"""Membership inference on averages of updates, which every silo sees."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor, nn

from ...tensors import copy_of
from ...types import ClientUpdate
from ..membership import cosines, flattened, gradients_of, likelihoods, membership
from .controls import recovered
from .subject import Subject

__all__ = ["in_average"]

LEAST, OTHERS, PUBLIC = 20, 100, 300
"""Numbers of public pictures: the least to report anything, the most used as non-members, and the
most used to estimate the distribution of gradients."""
NUMBERS = 1 << 27
"""Public pictures whose gradients are in memory at once."""


def in_average(subject: Subject, *, silos: int | None = None) -> dict[str, str]:
    """Infer membership of pictures in averages of the audited updates.

    A lock that hides single updates leaves the average unchanged but for its noise. So the averages
    are made from the updates as their own silos know them.

    Args:
        subject: with public data, which are not in the average.
        silos: number of updates in an average; None for all of a round.

    Returns:
        Lines for a report: the average and the attack, to the result. None if the lock is part of
        the model, nobody has the silos' private state, or there are no public data.

    """
    public, transform = subject.public, subject.update_transform
    opened = subject.attacker_model is None or (
        transform is not None and subject.secrets is not None
    )
    if public is None or len(public.images) < LEAST or not opened:
        return {}
    loss = subject.loss
    labels = loss.fitted(public.labels, subject.output_shape or (subject.classes,))
    count = min(OTHERS, len(labels) // 2)
    others = public.images[:count], labels[:count]
    numbers = sum(parameter.numel() for parameter in subject.model.parameters())
    room = slice(count, count + min(PUBLIC, max(4, NUMBERS // numbers)))
    rest = public.images[room], labels[room]
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    updates = recovered(subject)
    for stage, index in dict.fromkeys(zip(subject.stages, (u.round for u in updates), strict=True)):
        rows = [row for row, one in enumerate(updates) if one.round == index]
        model, names = _model(subject, updates[rows[0]])
        outside, kind = (gradients_of(model, names, *part, loss) for part in (others, rest))
        size = silos or len(rows)
        for start in range(0, len(rows) - size + 1, size):
            some = rows[start : start + size]
            shown = subject.images[some].flatten(0, 1), subject.labels[some].flatten(0, 1)
            inside = gradients_of(model, names, *shown, loss)
            moved = [flattened(model, _moved(updates[row], names)) for row in some]
            # the gradient of a step is the mean of its pictures' gradients
            total = subject.batch * torch.stack(moved).sum(0)
            both = torch.cat([inside, outside])
            scores = {"cosine": cosines(total, both)}
            if subject.training is None:
                scores["likelihood"] = likelihoods(total, both, kind, count=len(inside))
            for attack, values in scores.items():
                title = f"who is in an average of {size} updates, {stage}, by {attack}"
                members, odd = found.setdefault(title, ([], []))
                members.append(values[: len(inside)])
                odd.append(values[len(inside) :])
    return {
        title: str(membership(torch.cat(members), torch.cat(odd)))
        for title, (members, odd) in found.items()
    }


def _model(subject: Subject, update: ClientUpdate) -> tuple[nn.Module, Set[str]]:
    """The model with the weights at a round's start, and the parameters that are sent."""
    model = copy_of(subject.model)
    model.load_state_dict({**model.state_dict(), **update.before}, strict=False)
    return model, {name for name, _ in model.named_parameters()} & update.before.keys()


def _moved(update: ClientUpdate, names: Set[str]) -> dict[str, Tensor]:
    return {name: update.pseudo_gradient(name) for name in names}
