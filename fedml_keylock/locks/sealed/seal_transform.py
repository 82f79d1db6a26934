"""Shows an audit sealed updates as the server reads them, and as the silo opens them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...tensors import real
from ...types import ClientUpdate
from ..entropy import Uniform
from .encoding import Encoding
from .entries import Entry
from .job_noise import JobNoise
from .record import Record
from .sealing import TRAILER, RoundKeys, seal
from .shares import Shares

__all__ = ["SealTransform", "noise_like"]

FEATURES = 256
"""How many words a learned attacker gets: none is better than another."""


@dataclass(frozen=True)
class SealTransform:
    """The update transform of sealing: see ``types.UpdateTransform``.

    Attributes:
        entries: of the model's state.
        silos: how many take part; from two on, each has pairwise masks.
        noise: of the job, if any.

    Example:
        >>> from .entries import entries_of
        >>> before = {"w": torch.zeros(2, 2)}
        >>> update = ClientUpdate(before, {"w": torch.full((2, 2), 0.1)}, 1.0)
        >>> transform = SealTransform(entries_of(before), 3)
        >>> sealed, private = transform.protect(update, torch.Generator().manual_seed(0))
        >>> sealed.after["w"].dtype
        torch.int32
        >>> transform.recover(sealed, private).after["w"][0, 0]
        tensor(0.1000)

    """

    entries: tuple[Entry, ...]
    silos: int = 3
    noise: JobNoise | None = None

    def protect(
        self, update: ClientUpdate, generator: torch.Generator
    ) -> tuple[ClientUpdate, dict[str, Tensor]]:
        """The update as sent in a first round, whose model the server knows."""
        drawn = torch.randint(256, (self.silos, 32), generator=generator, dtype=torch.uint8)
        group, *pairs = (bytes(row) for row in drawn.tolist())
        keys = RoundKeys(group, dict(enumerate(pairs, 1)), 0, self.silos, b"audit")
        shares, payload = Shares((1,) * self.silos), {**update.before, **update.after}
        release = None
        if self.noise is None:
            encoding = Encoding.of(update.before, shares)
        else:
            self.noise.silos = self.silos
            release = self.noise.audited(update)
            encoding = release.encoding(update.before, shares)
        message, _ = seal(encoding, payload, keys, release)
        private = Record.of(encoding, keys, 0, own=True).tensors
        return replace(update, after=message), private

    def read(self, update: ClientUpdate) -> ClientUpdate:
        """The update as read without keys: the words as fixed-point numbers.

        An update that is not sealed is read as it is.
        """
        return replace(
            update, before=self._numbers(update.before), after=self._numbers(update.after)
        )

    def recover(
        self, update: ClientUpdate, private: Mapping[str, Tensor], *, colluding: bool = False
    ) -> ClientUpdate:
        """The update as its own silo knows it.

        For an attacker who colludes with another silo, as that silo reads it: under the pairwise
        masks of the others, if any. Of two silos, the colluding one reads what the other sent.
        """
        record = Record.from_tensors(private)
        if colluding:
            masks, pads = record.covers[: -record.pads], record.covers[-record.pads :]
            record = replace(record, covers=(*masks[:1], *pads))
        return replace(
            update, before=dict(record.encoding.base), after=record.uncover(update.after)
        )

    def observable(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
        """Some sent words, ``(b, FEATURES)`` in [-1, 1): uniform, whatever the update is."""
        rows = [after[name].flatten(1) for name in sorted(after)]
        found = torch.cat([row.float() for row in rows], 1)[:, :FEATURES]
        size = found.abs().amax(1, keepdim=True).clamp(min=1e-12)
        return found / size

    def simulate(
        self,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Updates as read without keys, for an attacker who simulates what silos send."""
        return {
            name: torch.rand(tensor.shape, generator=generator, device=generator.device).to(tensor)
            * 2
            - 1
            for name, tensor in after.items()
        }

    def _numbers(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Words as numbers in [-1, 1), with the model's shapes and types."""
        if TRAILER not in state:
            return state
        numbers = {}
        for entry in self.entries:
            words = state.get(entry.name)
            if words is not None:
                high = words if words.shape == entry.shape else words[1]  # noised ones have one
                read = (high.double() * 2.0**-31).to(entry.dtype)
                numbers[entry.name] = torch.view_as_complex(read) if entry.complex else read
        return numbers


def noise_like(state: Mapping[str, Tensor], uniform: Uniform | None) -> dict[str, Tensor]:
    """The state that somebody without keys reads from the words: noise of each tensor's size.

    Args:
        state: of the model.
        uniform: the source of random numbers; None for torch's generator.

    Example:
        >>> bool((noise_like({"w": torch.ones(9)}, None)["w"].abs() <= 1).all())
        True

    """
    drawn, noise = uniform or torch.rand, {}
    for name, tensor in state.items():
        own = real(tensor)
        size = float(own.double().abs().max()) if own.numel() else 0.0
        made = ((2 * drawn(tuple(own.shape)) - 1) * size).to(own.dtype)
        noise[name] = torch.view_as_complex(made) if tensor.is_complex() else made
    return noise
