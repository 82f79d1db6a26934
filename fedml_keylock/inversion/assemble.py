"""What an attack runs on: the objective of all candidates, and where each of them starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import AttackError
from .cost import COSTS
from .knowledge import Knowledge
from .objective import Layout, Objective
from .observe import Observation
from .prior import Prior
from .statistics import given_statistics

if TYPE_CHECKING:
    from .attack import GradientInversion

__all__ = ["assemble", "draw_starts"]


def assemble(
    attack: GradientInversion,
    observation: Observation,
    knowledge: Knowledge,
    labels: Tensor | None,
) -> Objective:
    """The objective of all candidates: ``restarts`` rows for each update, side by side.

    Args:
        attack: for its cost, its priors, its restarts and its layers' weights.
        observation: of u updates.
        knowledge: what else the attacker knows.
        labels: ``(u, n)`` integers, or None to optimise them.

    Raises:
        AttackError: weights, secrets or statistics do not fit the updates and the model.

    """
    unknown = set(attack.layer_weights) - set(observation.targets)
    if unknown:
        raise AttackError(f"layer_weights names no target: {', '.join(sorted(unknown))}")
    like = next(iter(observation.public.values()))
    weights = [attack.layer_weights.get(name, 1.0) for name in observation.targets]
    weighted = observation.moved * torch.tensor(weights).to(like)
    if not weighted.any(1).all():
        raise AttackError("layer_weights leave an update without any layer to compare")

    updates, secrets = len(observation.state), knowledge.secrets
    parameters = dict(observation.model.named_parameters())
    shapes: dict[str, tuple[int, ...]] = {"images": (knowledge.batch, *knowledge.input_shape)}
    if labels is None:
        shapes["labels"] = (knowledge.batch, knowledge.classes)
    given = {}
    if secrets is not None and secrets.draw is not None:
        shapes |= {name: tuple(parameters[name].shape) for name in secrets.names}
    elif secrets is not None and secrets.given is not None:
        given = {
            name: _checked(secrets.given[name], name, updates, parameters[name])
            for name in secrets.names
        }
    if knowledge.statistics is not None and not attack.batch_norm:
        raise AttackError(
            f"{attack.name} has no use for Knowledge.statistics: give it a batch_norm weight, or "
            "leave them out"
        )
    objective = Objective(
        model=observation.model,
        layout=Layout(shapes),
        state=observation.state,
        public=observation.public,
        fixed=observation.fixed,
        given=given,
        labels=None if labels is None else labels.to(like.device),
        targets=observation.targets,
        weights=weighted,
        cost=COSTS[attack.cost],
        prior=Prior(
            total_variation=attack.total_variation,
            squared_norm=attack.squared_norm,
            group_consistency=attack.group_consistency,
            batch_norm=attack.batch_norm,
            bounds=knowledge.bounds,
        ),
        update=torch.arange(updates, device=like.device),
        statistics=given_statistics(
            observation.model, knowledge.statistics or {}, updates=updates, like=like
        ),
    )
    return objective.select(torch.arange(updates).repeat_interleave(attack.restarts))


def draw_starts(
    attack: GradientInversion,
    objective: Objective,
    knowledge: Knowledge,
    generator: torch.Generator,
) -> Tensor:
    """``(b, d)`` starts, drawn all at once so that ``chunk`` does not change them.

    Raises:
        AttackError: ``Secrets.draw`` gives other names or shapes than are needed.

    """
    count, layout = len(objective.state), objective.layout
    like = next(iter(objective.public.values()))
    device = generator.device
    low, high = knowledge.bounds
    shape = (count, *layout.shapes["images"])
    parts = {}
    if attack.start == "uniform":
        parts["images"] = low + (high - low) * torch.rand(shape, generator=generator, device=device)
    elif attack.optimizer == "lbfgs":
        parts["images"] = torch.randn(shape, generator=generator, device=device)
    else:
        noise = torch.randn(shape, generator=generator, device=device)
        parts["images"] = (low + high) / 2 + (high - low) / 4 * noise
    if "labels" in layout.shapes:
        shape = (count, *layout.shapes["labels"])
        parts["labels"] = torch.randn(shape, generator=generator, device=device)
    secrets = knowledge.secrets
    if secrets is not None and secrets.draw is not None:
        drawn = secrets.draw(count, generator)
        if set(drawn) != set(secrets.names):
            odd = ", ".join(sorted(set(drawn) ^ set(secrets.names)))
            raise AttackError(f"Secrets.draw and Secrets.names differ in: {odd}")
        parameters = dict(objective.model.named_parameters())
        for name in secrets.names:
            parts[name] = _checked(drawn[name], name, count, parameters[name])
    return layout.join({name: part.to(like) for name, part in parts.items()})


def _checked(value: Tensor, name: str, count: int, like: Tensor) -> Tensor:
    if value.shape != (count, *like.shape):
        raise AttackError(
            f"secret {name} is {tuple(value.shape)} where {(count, *like.shape)} is needed"
        )
    if not value.isfinite().all():
        raise AttackError(f"secret {name} has NaN or infinite values")
    return value.detach().to(like)
