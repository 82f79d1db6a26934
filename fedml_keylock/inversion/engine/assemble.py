"""Assembles a search: the objective of all candidates, and each one's start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from ...errors import AttackError
from ...types import ClientUpdate
from ..cost import COSTS
from ..knowledge import Knowledge, Secrets
from ..levels import GRANTS
from ..prior import Prior
from .local_training import draw_orders
from .norm_statistics import given_statistics
from .objective import SURROGATE, Layout, Objective
from .observe import Observation
from .search_settings import SearchSettings

__all__ = ["assemble", "draw_starts", "leaders"]


def assemble(
    attack: SearchSettings,
    updates: Sequence[ClientUpdate],
    observation: Observation,
    knowledge: Knowledge,
    labels: Tensor | None,
    generator: torch.Generator,
) -> Objective:
    """The objective of all candidates: ``restarts`` consecutive rows for each update.

    The labels are ``(u, n, ...)`` targets, or None to optimise them. The generator draws the
    searched orders of local training. AttackError if weights, secrets or statistics do not fit the
    updates and the model.
    """
    like = next(iter(observation.public.values()))
    count, secrets = len(updates), knowledge.secrets
    parameters = dict(observation.model.named_parameters())
    shapes = attack.parametrisation.shapes(knowledge)
    if labels is None:
        knowledge.loss.check_search(knowledge.batch, knowledge.outputs)
        if not attack.parametrisation.makes_labels:
            shapes["labels"] = (knowledge.batch, *knowledge.outputs)
        elif len(knowledge.outputs) > 1:
            raise AttackError(f"{attack.name} makes one label an image, and the model gives more")
    if attack.surrogate:
        if knowledge.training is None:
            raise AttackError(
                f"{attack.name} is for several local steps: one step's gradient is of the state "
                "before it; give Knowledge.training, or use another attack"
            )
        shapes[SURROGATE] = (1,)
    given = {}
    if secrets is not None and secrets.draw is not None:
        shapes |= {name: tuple(parameters[name].shape) for name in secrets.names}
    elif secrets is not None and secrets.given is not None:
        given = {
            name: _checked(secrets.given[name], name, count, parameters[name])
            for name in secrets.names
        }
    if knowledge.statistics is not None and not attack.batch_norm:
        raise AttackError(
            f"{attack.name} has no use for Knowledge.statistics: give it a batch_norm weight, or "
            "leave them out"
        )
    objective = Objective(
        model=observation.model,
        knowledge=knowledge,
        parametrisation=attack.parametrisation,
        layout=Layout(shapes),
        state=observation.state,
        public=observation.public,
        fixed=observation.fixed,
        given=given,
        labels=None if labels is None else labels.to(like.device),
        targets=observation.targets,
        weights=_weights(attack.layer_weights, observation).to(like),
        cost=COSTS[attack.cost],
        prior=Prior(
            # total variation needs pixels; a table's row has no neighbours
            total_variation=attack.total_variation if len(knowledge.input_shape) == 3 else 0.0,
            squared_norm=attack.squared_norm,
            group_consistency=attack.group_consistency,
            batch_norm=attack.batch_norm,
            bounds=knowledge.bounds,
        ),
        update=torch.arange(count, device=like.device),
        rates=torch.tensor([update.learning_rate for update in updates]).to(like),
        statistics=given_statistics(
            observation.model, knowledge.statistics or {}, updates=count, like=like
        ),
    )
    each = torch.arange(count, device=like.device).repeat_interleave(attack.restarts)
    order = None
    if not attack.surrogate:
        order = draw_orders(knowledge, updates=count, restarts=attack.restarts, generator=generator)
    pooled = "rounds" in GRANTS[knowledge.level]
    return replace(
        objective.select(each),
        order=None if order is None else order.to(like.device),
        leader=leaders(updates, attack.restarts).to(like.device) if pooled else None,
    )


def _weights(patterns: Mapping[str, float], observation: Observation) -> Tensor:
    """The layers' weights ``(u, layers)``; the last pattern that matches a parameter decides."""
    weights = dict.fromkeys(observation.targets, 1.0)
    for pattern, weight in patterns.items():
        named = [name for name in weights if fnmatchcase(name, pattern)]
        if not named:
            raise AttackError(
                f"layer_weights names no target: {pattern}; there are {', '.join(weights)}"
            )
        weights |= dict.fromkeys(named, weight)
    weighted = observation.moved * torch.tensor(list(weights.values())).to(observation.moved)
    if not weighted.any(1).all():
        raise AttackError("layer_weights leave an update without any layer to compare")
    return weighted


def leaders(updates: Sequence[ClientUpdate], restarts: int) -> Tensor:
    """Each candidate's leader ``(u * restarts,)``: the candidate of its silo's first update.

    AttackError if no silo has more than one update, so that there is nothing to pool.

    Example:
        >>> some = [ClientUpdate({}, {}, 1.0, silo=silo) for silo in (4, 7, 4)]
        >>> leaders(some, 2)
        tensor([0, 1, 2, 3, 0, 1])

    """
    first: dict[int, int] = {}
    for index, update in enumerate(updates):
        first.setdefault(update.silo, index)
    if len(first) == len(updates):
        raise AttackError("a temporal attacker pools the rounds of a silo: no silo has two updates")
    starts = torch.tensor([first[update.silo] * restarts for update in updates])
    return (starts[:, None] + torch.arange(restarts)).flatten()


def draw_starts(
    attack: SearchSettings, objective: Objective, knowledge: Knowledge, generator: torch.Generator
) -> Tensor:
    """Starts ``(b, d)``, drawn all at once so that ``chunk`` does not change them.

    AttackError if ``Secrets.draw`` gives other names or shapes than needed.
    """
    count, layout = len(objective.state), objective.layout
    like = next(iter(objective.public.values()))
    parts = attack.parametrisation.draw(count, knowledge, generator)
    if "labels" in layout.shapes:
        shape = (count, *layout.shapes["labels"])
        parts["labels"] = torch.randn(shape, generator=generator, device=generator.device)
    if SURROGATE in layout.shapes:
        parts[SURROGATE] = torch.full((count, 1), 0.5)
    secrets = knowledge.secrets
    if secrets is not None and secrets.draw is not None:
        drawn = secrets.draw(count, generator)
        if set(drawn) != set(secrets.names):
            odd = ", ".join(sorted(set(drawn) ^ set(secrets.names)))
            raise AttackError(f"Secrets.draw and Secrets.names differ in: {odd}")
        parameters = dict(objective.model.named_parameters())
        for name in secrets.names:
            parts[name] = _checked(drawn[name], name, count, parameters[name])
        if secrets.peers is not None:
            parts |= _from_peers(secrets, parts, attack.restarts, count)
    return layout.join({name: part.to(like) for name, part in parts.items()})


def _from_peers(
    secrets: Secrets, drawn: Mapping[str, Tensor], restarts: int, count: int
) -> dict[str, Tensor]:
    starts = {}
    for name, peers in (secrets.peers or {}).items():
        peers = _checked(peers, name, len(peers), drawn[name][0])
        restart = torch.arange(count, device=peers.device) % restarts
        start = peers[restart % len(peers)]
        # one restart at each peer's state; a second from the same start would find the same
        away = (restart >= len(peers)).view(-1, *[1] * (start.dim() - 1))
        starts[name] = torch.where(away, torch.lerp(start, drawn[name], 0.25), start)
    return starts


def _checked(value: Tensor, name: str, count: int, like: Tensor) -> Tensor:
    if value.shape != (count, *like.shape):
        raise AttackError(
            f"secret {name} is {tuple(value.shape)} where {(count, *like.shape)} is needed"
        )
    if not value.isfinite().all():
        raise AttackError(f"secret {name} has NaN or infinite values")
    return value.detach().to(like)
