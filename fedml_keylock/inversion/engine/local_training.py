"""Simulates a round of local training in a differentiable form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...errors import AttackError
from ..knowledge import Knowledge, LocalTraining

__all__ = ["draw_orders", "replay"]


def replay(
    gradient: Callable[[dict[str, Tensor], Tensor, Tensor], dict[str, Tensor]],
    public: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    training: LocalTraining,
    order: Tensor,
    learning_rate: Tensor,
) -> dict[str, Tensor]:
    """Simulate the update of a silo with these images, as a pseudo-gradient.

    The steps are those of ``torch.optim.SGD``. The update is inverted through all of its steps
    (Geiping et al. 2020, section 6, on federated averaging), and not taken for a gradient.

    Args:
        gradient: gives the gradient of the mean loss of a batch at given weights.
        public: name to the weights at the round's start.
        images: ``(n, *input_shape)``.
        labels: ``(n, ...)`` targets.
        training: how the silo trained.
        order: the images' places in each epoch, ``(epochs, n)``.
        learning_rate: a scalar.

    Returns:
        Name to ``(before - after) / learning_rate``.

    Example:
        >>> pull = lambda weights, x, y: {"w": weights["w"] - x.mean()}
        >>> replay(pull, {"w": torch.tensor(0.0)}, torch.tensor([1.0, 3.0]), torch.zeros(2),
        ...        training=LocalTraining(batch_size=1), order=torch.tensor([[0, 1]]),
        ...        learning_rate=torch.tensor(0.5))
        {'w': tensor(-3.5000)}

    """
    weights = dict(public)
    buffers: dict[str, Tensor] = {}
    for epoch in order:
        for batch in epoch.split(training.batch_size):
            found = gradient(weights, images[batch], labels[batch])
            for name, step in found.items():
                if training.weight_decay:
                    step = step + training.weight_decay * weights[name]
                if training.momentum:
                    old = buffers.get(name)
                    buffers[name] = step if old is None else training.momentum * old + step
                    nesterov = step + training.momentum * buffers[name]
                    step = nesterov if training.nesterov else buffers[name]
                weights[name] = weights[name] - learning_rate * step
    return {name: (public[name] - weights[name]) / learning_rate for name in public}


def draw_orders(
    knowledge: Knowledge, *, updates: int, restarts: int, generator: torch.Generator
) -> Tensor | None:
    """The images' places ``(updates * restarts, epochs, n)``; None for a single step on all images.

    For an average of several silos, each silo has places of its own, in the silos' order.
    AttackError if a known order has another shape or a wrong place.

    Example:
        >>> known = Knowledge("oblivious", input_shape=(3,), classes=2, batch=3,
        ...                   training=LocalTraining(batch_size=2))
        >>> draw_orders(known, updates=1, restarts=1, generator=torch.Generator())
        tensor([[[0, 1, 2]]])

    """
    training = knowledge.training
    if training is None:
        return None
    shape, silos = (training.epochs, knowledge.batch), knowledge.silos
    if isinstance(training.order, Tensor):
        if training.order.shape != (updates, *shape):
            raise AttackError(
                f"the order of images is {tuple(training.order.shape)} where {(updates, *shape)} "
                "is needed: (updates, epochs, images)"
            )
        places = torch.arange(knowledge.batch, device=training.order.device)
        own = training.order.view(updates, training.epochs, silos, -1).sort(-1).values
        if not torch.equal(own.flatten(2), places.expand_as(training.order)):
            raise AttackError("every epoch's order must name each image once")
        return training.order.repeat_interleave(restarts, 0)
    if training.order == "fixed":
        return torch.arange(knowledge.batch).expand(updates * restarts, *shape)
    noise = torch.rand(updates * restarts, *shape, generator=generator, device=generator.device)
    # an integer offset for every silo keeps its images together
    return (noise + torch.arange(silos).repeat_interleave(shape[1] // silos).to(noise)).argsort(-1)
