"""Checks updates against the attacker's model, and stacks them into tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...errors import AttackError
from ...tensors import PREFIXES, copy_of
from ...types import ClientUpdate
from ..knowledge import Knowledge

__all__ = ["Observation", "observe"]

_WRAPPED = ("_module.", *PREFIXES)
"""Prefixes of names by Opacus' ``GradSampleModule``, and torch's parallel and compiled modules."""


@dataclass(frozen=True)
class Observation:
    """Checked and stacked updates: u updates from g distinct states that the server sent.

    Attributes:
        model: a copy of the attacker's model. In train mode it normalises by batch statistics and
            keeps none, in eval mode by the statistics that were sent.
        state: index of each update's sent state ``(u,)``.
        public: shared and trainable state, name to ``(g, *shape)``.
        fixed: shared state that is not trainable, name to ``(g, *shape)``.
        targets: pseudo-gradients, name to ``(u, *shape)``, in the order of ``public``.
        moved: 1 if the update changed the entry, else 0, ``(u, layers)``.

    """

    model: nn.Module
    state: Tensor
    public: dict[str, Tensor]
    fixed: dict[str, Tensor]
    targets: dict[str, Tensor]
    moved: Tensor

    def started(self, name: str) -> Tensor:
        """A trainable parameter at each update's start, ``(u, *shape)``."""
        return self.public[name][self.state]


def observe(updates: Sequence[ClientUpdate], model: nn.Module, knowledge: Knowledge) -> Observation:
    """Check updates, model and knowledge, then stack the updates.

    An entry that an update left unchanged was not trained, such as a frozen layer or a locked
    normalisation layer's own weight. It is left out of that update's cost. AttackError if updates,
    model and knowledge do not fit together.
    """
    if not updates:
        raise AttackError("there is no update to attack")
    if knowledge.labels is not None and len(knowledge.labels) != len(updates):
        raise AttackError(f"{len(updates)} updates but labels for {len(knowledge.labels)}")
    # a state has tied weights under several names
    tensors: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    updates = [_named_as(update, tensors) for update in updates]
    names = _public_names(updates[0], model, knowledge)
    for update in updates:
        _check_update(update, tensors, names, first=updates[0])
    copied = _prepare(model, knowledge)
    if knowledge.norms == "eval":
        unseen = sorted(
            name
            for name in dict(copied.named_buffers())
            if name.endswith(("running_mean", "running_var")) and name not in updates[0].before
        )
        if unseen:
            raise AttackError(f"norms in eval mode need {', '.join(unseen)}, which was not sent")
    # drop statistics that the prepared copy does not keep
    kept = {**dict(copied.named_parameters()), **dict(copied.named_buffers())}
    fixed = [name for name in updates[0].before if name in kept and name not in names]

    representatives, state = _distinct(updates, (*names, *fixed))
    public = {name: _stack(representatives, name, tensors[name]) for name in names}
    targets = {
        name: torch.stack([update.pseudo_gradient(name).to(tensors[name]) for update in updates])
        for name in names
    }
    moved = torch.stack([target.flatten(1).any(1) for target in targets.values()], dim=1)
    still = (~moved.any(1)).nonzero().flatten().tolist()
    if still:
        raise AttackError(f"{_where(updates[still[0]])} changed nothing: it has no gradient")
    return Observation(
        model=copied,
        state=torch.tensor(state),
        public=public,
        fixed={name: _stack(representatives, name, tensors[name]) for name in fixed},
        targets=targets,
        moved=moved.to(next(iter(targets.values())).dtype),
    )


def _where(update: ClientUpdate) -> str:
    return f"the update of silo {update.silo} in round {update.round}"


def _named_as(update: ClientUpdate, tensors: Mapping[str, Tensor]) -> ClientUpdate:
    """The state by the model's names, if only one of the two is wrapped."""

    def renamed(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if not state.keys().isdisjoint(tensors):
            return state
        for prefix in _WRAPPED:
            if all(name.startswith(prefix) for name in state):
                return {name.removeprefix(prefix): value for name, value in state.items()}
            if all(name.startswith(prefix) for name in tensors):
                return {prefix + name: value for name, value in state.items()}
        return state

    return replace(update, before=renamed(update.before), after=renamed(update.after))


def _public_names(update: ClientUpdate, model: nn.Module, knowledge: Knowledge) -> tuple[str, ...]:
    parameters = dict(model.named_parameters())
    secret = knowledge.secrets.names if knowledge.secrets else ()
    unknown = [name for name in secret if name not in parameters]
    if unknown:
        raise AttackError(f"the attacker's model has no parameter {', '.join(unknown)} (a secret)")
    shared = [name for name in secret if name in update.before]
    if shared:
        raise AttackError(f"the update holds {', '.join(shared)}: it is not secret")
    trained = [name for name, value in parameters.items() if value.requires_grad]
    missing = [name for name in trained if name not in update.before and name not in secret]
    if missing:
        raise AttackError(
            f"the update lacks {', '.join(missing)}, which the attacker's model trains; "
            "if the silo keeps it, name it in Secrets"
        )
    names = tuple(name for name in trained if name not in secret)
    if not names:
        raise AttackError("the update and the attacker's model share no trainable parameter")
    return names


def _check_update(
    update: ClientUpdate, tensors: Mapping[str, Tensor], names: Sequence[str], first: ClientUpdate
) -> None:
    where = _where(update)
    if not 0 < update.learning_rate < float("inf"):
        raise AttackError(f"{where} has learning rate {update.learning_rate}: not above 0")
    entries = set(update.before)
    for other, against in ((update.after, "what was sent"), (first.before, "the first update")):
        if set(other) != entries:
            odd = ", ".join(sorted(set(other) ^ entries))
            raise AttackError(f"{where} and {against} differ in the entries: {odd}")
    for name in update.before:
        before, after = update.before[name], update.after[name]
        if before.shape != after.shape or (name in tensors and before.shape != tensors[name].shape):
            shapes = [tuple(value.shape) for value in (before, after)]
            model = f", in the model {tuple(tensors[name].shape)}" if name in tensors else ""
            raise AttackError(f"{where} has {name} as {shapes[0]}, then {shapes[1]}{model}")
        if not (before.isfinite().all() and after.isfinite().all()):
            raise AttackError(f"{where} has NaN or infinite values in {name}")
        # other names for frozen entries and counters do not matter
        if name not in tensors and before.is_floating_point() and not torch.equal(before, after):
            raise AttackError(f"{where} trained {name}, which the attacker's model does not have")
        if name in names and not before.is_floating_point():
            raise AttackError(f"{where} has {name} as {before.dtype}: not a floating-point type")


def _prepare(model: nn.Module, knowledge: Knowledge) -> nn.Module:
    model = copy_of(model)
    if knowledge.norms == "eval":
        return model.eval()
    model.train()
    # torch has no public type for it
    torch.func.replace_all_batch_norm_modules_(model)
    return model


def _distinct(
    updates: Sequence[ClientUpdate], names: Sequence[str]
) -> tuple[list[ClientUpdate], list[int]]:
    """One update for each sent state, and every update's index of its state."""
    representatives: list[ClientUpdate] = []
    state = []
    for update in updates:
        for index, other in enumerate(representatives):
            if all(torch.equal(update.before[name], other.before[name]) for name in names):
                state.append(index)
                break
        else:
            state.append(len(representatives))
            representatives.append(update)
    return representatives, state


def _stack(updates: Sequence[ClientUpdate], name: str, like: Tensor) -> Tensor:
    return torch.stack([update.before[name].detach().to(like) for update in updates])
