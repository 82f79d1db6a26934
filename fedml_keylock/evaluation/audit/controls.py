"""Controls: the updates of the same images without the lock, and with its normalisation alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...tensors import copy_of
from ...types import ClientUpdate, UpdateTransform
from .subject import Subject
from .training import train_update

__all__ = ["public_norm", "recover", "recovered", "undefended"]


def undefended(subject: Subject) -> tuple[ClientUpdate, ...]:
    """The updates of the undefended model from the same weights, images and training.

    Raises:
        AttackError: the model cannot be trained on these images.

    Example:
        >>> from .training import probe
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
        >>> subject = probe(net, torch.rand(2, 1, 12, 12), torch.tensor([0, 1]))
        >>> undefended(subject) is subject.updates
        True

    """
    if subject.attacker_model is None:
        return subject.updates
    return _retrained(subject, subject.model, subject.plain, (), recovered(subject))


def recovered(subject: Subject, *, colluding: bool = False) -> tuple[ClientUpdate, ...]:
    """The updates as a holder of the silos' private state reads them.

    If `colluding`, the holder has only the other silos' private state. Without private state the
    updates are as anybody reads them. A lock that is part of the model leaves them as sent.
    """
    if subject.attacker_model is None or subject.update_transform is None:
        return subject.updates
    if subject.secrets is None:
        return tuple(map(subject.attacker_model.read, subject.updates))
    return recover(subject.updates, subject.update_transform, subject.secrets, colluding=colluding)


def recover(
    updates: Sequence[ClientUpdate],
    update_transform: UpdateTransform,
    secrets: Mapping[str, Tensor],
    *,
    colluding: bool = False,
) -> tuple[ClientUpdate, ...]:
    """Undo the protection of updates, each by its row of the private state ``(u, *shape)``."""
    return tuple(
        update_transform.recover(
            update, {n: value[row] for n, value in secrets.items()}, colluding=colluding
        )
        for row, update in enumerate(updates)
    )


def public_norm(
    subject: Subject, plain: tuple[ClientUpdate, ...]
) -> tuple[ClientUpdate, ...] | None:
    """The updates with the lock's normalisation at a public scale of 1 and shift of 0.

    None if the lock brings no normalisation: they would equal those of `undefended`.
    """
    known = subject.attacker_model
    if known is None or known.update_transform is not None:  # the model is unchanged
        return None
    made = _retrained(subject, known.model, None, known.names, subject.updates)
    return None if _same(made[0], plain[0]) else made


def _retrained(
    subject: Subject,
    model: nn.Module,
    state: Mapping[str, Tensor] | None,
    private: tuple[str, ...],
    updates: Sequence[ClientUpdate],
) -> tuple[ClientUpdate, ...]:
    made: list[ClientUpdate] = []
    copy = copy_of(model)
    for update, images, labels in zip(updates, subject.images, subject.labels, strict=True):
        own = copy.state_dict()
        copy.load_state_dict({**own, **(update.before if state is None else state)}, strict=False)
        made.append(
            train_update(
                copy,
                images,
                labels,
                learning_rate=update.learning_rate,
                training=subject.training,
                loss=subject.loss,
                private=private,
                silo=update.silo,
                round_index=update.round,
            )
        )
    return tuple(made)


def _same(one: ClientUpdate, other: ClientUpdate) -> bool:
    """Whether two updates are equal in every tensor that both changed."""
    for name in set(one.before) & set(other.before):
        moved = torch.stack([one.pseudo_gradient(name), other.pseudo_gradient(name)])
        both = moved.is_floating_point() and moved.view(2, -1).any(1).all()
        if both and (moved[0] - moved[1]).abs().max() > 1e-3 * moved.abs().max():
            return False
    return True
