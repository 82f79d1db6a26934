"""A locked state as whoever audits it has it: concealed, revealed, and what is left to be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...types import ClientUpdate
from ..job_key import JobKey
from .mask import masked, scales_of, width_of
from .turns import OPEN, Part, Turns, parts_of

__all__ = ["RotationTransform"]


@dataclass(frozen=True)
class RotationTransform:
    """What a lock on the whole state makes of updates: see ``types.UpdateTransform``.

    Attributes:
        parts: of the model's state.
        peers: how many other silos an update that is concealed has masks with.

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
    peers: int = 0

    @classmethod
    def of(cls, model: nn.Module, *, peers: int = 0) -> RotationTransform:
        """That of a model's lock.

        Raises:
            LockError: it has nothing to lock.

        """
        return cls(parts_of(model), peers)

    def protect(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, dict[str, Tensor]]:
        """The update as it is sent in a first round, whose model the server knows.

        In later rounds the server has less: what it had sent is turned too.
        """
        drawn = torch.randint(256, (1 + self.peers, 32), generator=generator, dtype=torch.uint8)
        root, *pairs = (bytes(row) for row in drawn.tolist())
        key = JobKey(root, 0, dict(enumerate(pairs, 1)), dict.fromkeys(range(1 + self.peers), 1))
        place = {"before": torch.tensor(OPEN), "after": torch.tensor(0)}
        after = {**update.after, **Turns(self.parts, key, 0).turned(update.after)}
        after |= masked(after, self.parts, scales_of(self.parts, update.before), key, 0)
        return replace(update, after=after), {**key.tensors, **place}

    def recover(
        self, update: ClientUpdate, private: Mapping[str, Tensor], *, colluding: bool = False
    ) -> ClientUpdate:
        """The update as it was before it was turned and masked, by whoever has the key.

        Who colludes has it too, and the masks that he shares: of two silos the only one. One that
        he does not share hides the silo as well as two, so that all are left on.
        """
        key, last = JobKey.from_tensors(private), int(private["after"])
        sent, received = dict(update.after), dict(update.before)
        scales = scales_of(self.parts, received)
        seen = key.unpaired() if colluding and len(key.pairs) > 1 else key
        sent |= masked(sent, self.parts, scales, seen, last, undo=True)
        sent |= Turns(self.parts, key, last).opened(sent)
        received |= Turns(self.parts, key, int(private["before"])).opened(received)
        return replace(update, before=received, after=sent)

    def observable(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
        """All that a uniform turn leaves of updates ``(b, parts)``: how long each part has become.

        A vector that a uniform orthogonal matrix has turned is, but for its length, chance.

        Args:
            before: what the server had sent, name to ``(b, *shape)``.
            after: what came back, likewise.

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
        """Updates under masks drawn anew for each, for an attacker who simulates what silos send.

        Their lengths are those of what is sent, where a mask is on it; they need not be turned.

        Args:
            before: what the server had sent, name to ``(b, *shape)``.
            after: what came back, likewise.
            generator: of the masks.

        """
        made = dict(after)
        for part in self.parts if self.peers else ():
            if not all(name in after for name in part.names):
                continue
            width = width_of(part, {name: before[name][0] for name in part.names}, self.peers)
            for name in part.names:
                noise = torch.randn(after[name].shape, generator=generator, device=generator.device)
                made[name] = after[name] + width * noise.to(after[name])
        return made
