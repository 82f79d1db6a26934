"""Shows an audit a state as it is rotated, rotated back, and observed by an attacker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...types import ClientUpdate
from ..job_key import JobKey
from .round_rotation import UNROTATED, Part, RoundRotation, parts_of

__all__ = ["RotationTransform"]


@dataclass(frozen=True)
class RotationTransform:
    """The update transform of rotation: see ``types.UpdateTransform``.

    Attributes:
        parts: of the model's state.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> before = {n: t.detach() for n, t in model.state_dict().items()}
        >>> update = ClientUpdate(before, {n: t + 0.1 for n, t in before.items()}, 1.0)
        >>> update_transform = RotationTransform.of(model)
        >>> sent, private = update_transform.protect(update, torch.Generator().manual_seed(0))
        >>> opened = update_transform.recover(sent, private)
        >>> torch.allclose(opened.after["weight"], update.after["weight"], atol=1e-6)
        True

    """

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, model: nn.Module) -> RotationTransform:
        """The transform for a model.

        Raises:
            LockError: the model has nothing to lock.

        """
        return cls(parts_of(model))

    def protect(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, dict[str, Tensor]]:
        """The update as sent in a first round, whose model the server knows.

        In later rounds the server knows less: the model that it sent is rotated too.
        """
        root = torch.randint(256, (32,), generator=generator, dtype=torch.uint8)
        place = {"before": torch.tensor(UNROTATED), "after": torch.tensor(0)}
        rotated = RoundRotation(self.parts, JobKey.from_tensor(root), 0).rotate(update.after)
        return replace(update, after={**update.after, **rotated}), {"key": root, **place}

    def read(self, update: ClientUpdate) -> ClientUpdate:
        """The update unchanged: rotated states have the model's names and shapes."""
        return update

    def recover(
        self, update: ClientUpdate, private: Mapping[str, Tensor], *, colluding: bool = False
    ) -> ClientUpdate:
        """The update before rotation: a colluding silo has the key too."""
        key = JobKey.from_tensor(private["key"])
        sent, received = dict(update.after), dict(update.before)
        sent |= RoundRotation(self.parts, key, int(private["after"])).rotate_back(sent)
        received |= RoundRotation(self.parts, key, int(private["before"])).rotate_back(received)
        return replace(update, before=received, after=sent)

    def observable(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
        """What a uniform rotation leaves visible of updates ``(b, parts)``: each part's new length.

        A vector rotated by a uniform orthogonal matrix is random but for its length.

        Args:
            before: what the server had sent, name to ``(b, *shape)``.
            after: what the silo sent back, likewise.

        """
        seen = [
            sum(
                (after[n].double().square() - before[n].double().square()).flatten(1).sum(1)
                for n in part.names
            )
            for part in self.parts
            if all(name in after for name in part.names)
        ]
        return torch.stack([torch.as_tensor(one) for one in seen], 1)

    def simulate(
        self,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Updates as they are: their lengths, all that is visible, need no rotation."""
        return dict(after)
