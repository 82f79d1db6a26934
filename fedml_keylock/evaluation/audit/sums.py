"""Sums of silos' updates: what colluding silos see of the others under the sealed lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import AttackError
from ...inversion import LocalTraining
from ...tensors import copy_of
from ...types import ClientUpdate
from .controls import recover, recovered
from .subject import Subject
from .training import train_update

__all__ = ["Sums", "averaged", "groups_of", "spread", "sums_of"]

ALIKE = 1e-3
"""Relative difference of two steps that rounding explains."""


@dataclass(frozen=True)
class Sums:
    """Averages of silos' updates.

    A colluding silo subtracts its own update from the round's average. It then has the average of
    the others, which no secure aggregation hides from it.

    Attributes:
        silos: number of silos in each average.
        updates: the audit's variant to averages, one for each group: undefended, and of the
            defense's updates as their own silos know them.
        training: each silo's training, as the attacker simulates it; None if the average is one
            plain step on all the pictures.

    """

    silos: int
    updates: dict[str, list[ClientUpdate]]
    training: LocalTraining | None


def sums_of(subject: Subject, plain: Sequence[ClientUpdate], silos: int) -> Sums:
    """The averages that an audit attacks, from the subject and its undefended updates.

    Raises:
        AttackError: the defense has no such sum, nobody has the silos' private state, or a round
            has fewer audited updates.

    """
    _check_defense(subject)
    groups = groups_of(subject, silos)
    sent = {"none": plain, subject.defense: recovered(subject)}
    training = subject.training
    if training is None and not _is_one_step(subject, plain, groups[0]):
        training = LocalTraining(batch_size=subject.batch)
    return Sums(
        silos,
        {v: [averaged([every[row] for row in g]) for g in groups] for v, every in sent.items()},
        training,
    )


def groups_of(subject: Subject, silos: int) -> list[list[int]]:
    """Rows of the updates in each average: disjoint, of one round; the remainder is left out.

    Raises:
        AttackError: no round of a stage has enough updates.

    """
    rounds: dict[tuple[str, int], list[int]] = {}
    for row, update in enumerate(subject.updates):
        rounds.setdefault((subject.stages[row], update.round), []).append(row)
    groups, most = [], dict.fromkeys(subject.stages, 0)
    for (stage, _), rows in rounds.items():
        most[stage] = max(most[stage], len(rows))
        whole = len(rows) - len(rows) % silos
        groups += [rows[at : at + silos] for at in range(0, whole, silos)]
    for stage, count in most.items():
        if count < silos:
            raise AttackError(
                f"a sum of {silos}: no round of {stage} weights has more than {count} audited "
                "updates; ask for smaller sums, or audit more (--images)"
            )
    return groups


def averaged(updates: Sequence[ClientUpdate]) -> ClientUpdate:
    """The average of updates of one round, weighted by the samples that their silos reported.

    Raises:
        AttackError: they did not start from one model at one learning rate.

    Example:
        >>> start = {"w": torch.zeros(1)}
        >>> one, other = (ClientUpdate(start, {"w": torch.ones(1) * to}, 1.0, n)
        ...               for to, n in ((1, 3), (5, 1)))
        >>> averaged([one, other]).after["w"]
        tensor([2.])

    """
    first, total = updates[0], sum(update.samples for update in updates)
    for other in updates[1:]:
        same = all(torch.equal(value, other.before[n]) for n, value in first.before.items())
        if not same or other.learning_rate != first.learning_rate:
            raise AttackError(
                f"silos {first.silo} and {other.silo} did not begin round {first.round} with one "
                "model at one learning rate: the sum of their updates is no step of any model"
            )
    after = {
        name: torch.stack([u.after[name].double() * (u.samples / total) for u in updates]).sum(0)
        if value.is_floating_point()
        else value
        for name, value in first.after.items()
    }
    after = {name: value.to(first.after[name].dtype) for name, value in after.items()}
    return replace(first, after=after, samples=total)


def spread(values: Tensor, groups: Sequence[Sequence[int]], updates: int) -> Tensor:
    """Spread values of averages ``(g, k * n, ...)`` to their updates ``(u, n, ...)``, others NaN.

    Example:
        >>> spread(torch.tensor([[1.0, 2.0]]), [[2, 0]], 3)
        tensor([[2.],
                [nan],
                [1.]])

    """
    size = values.shape[1] // len(groups[0])
    made = values.new_full((updates, size, *values.shape[2:]), torch.nan)
    for rows, one in zip(groups, values, strict=True):
        made[list(rows)] = one.unflatten(0, (len(rows), size))
    return made


def _check_defense(subject: Subject) -> None:
    """Raise AttackError for a defense under which sums tell a colluding silo nothing more."""
    if subject.attacker_model is None:
        return
    transform, secrets = subject.update_transform, subject.secrets
    if transform is None:
        raise AttackError(
            f"{subject.defense}: no sum is attacked, since each silo trains under private state of "
            "its own and the average is no step of an open model; ask for sums of lock: sealed, or "
            "without a defense"
        )
    if secrets is None:
        raise AttackError(
            f"{subject.defense}: sums are of opened updates: give the silos' vaults (--vault)"
        )
    row = {name: value[:1] for name, value in secrets.items()}
    own, seen = (
        recover(subject.updates[:1], transform, row, colluding=colluding)[0].after
        for colluding in (False, True)
    )
    if all(torch.equal(own[name], seen[name]) for name in own):
        raise AttackError(
            f"{subject.defense}: a silo that colludes opens each update by itself, so that a sum "
            "adds nothing: ask for level insider"
        )


def _is_one_step(subject: Subject, plain: Sequence[ClientUpdate], rows: Sequence[int]) -> bool:
    """Whether the average of steps is the step on all their pictures.

    False under batch normalisation, and for a loss that sums over pictures or weights classes.
    """
    mean = averaged([replace(plain[row], samples=1) for row in rows])
    copy = copy_of(subject.model)
    copy.load_state_dict({**copy.state_dict(), **mean.before}, strict=False)
    images, labels = (part[list(rows)].flatten(0, 1) for part in (subject.images, subject.labels))
    whole = train_update(
        copy, images, labels, learning_rate=mean.learning_rate, loss=subject.loss, silo=mean.silo
    )
    for name, _ in copy.named_parameters():
        one, other = mean.pseudo_gradient(name), whole.pseudo_gradient(name)
        if (one - other).abs().max() > ALIKE * torch.maximum(one.abs().max(), other.abs().max()):
            return False
    return True
