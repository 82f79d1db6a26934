"""Checks whether the server's first model is the one that a silo expects."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import ConfigError, UpdateRefused, first_line
from .rounds import digest_of

__all__ = ["FirstModel"]


@dataclass
class FirstModel:
    """The first model that a silo expects.

    Attributes:
        wanted: ``keylock.first_model``: own, a digest in hexadecimal, or a file; None for any.

    """

    wanted: str | None
    _pinned: str = ""
    _own: dict[str, bytes] = field(default_factory=dict)

    def remember(self, state: Mapping[str, Tensor]) -> None:
        """Remember the model that this silo built, by name: the server may send a part of it.

        Raises:
            ConfigError: the file of the wanted model cannot be read.

        """
        self._own = {name: digest_of({name: tensor}) for name, tensor in state.items()}
        self._pinned = str(self.wanted).lower()
        if self.wanted is not None and self.wanted.endswith(".safetensors"):
            try:
                self._pinned = digest_of(load_file(self.wanted)).hex()
            except (OSError, SafetensorError) as error:
                raise ConfigError(
                    f"keylock.first_model: {self.wanted} cannot be read: {first_line(error)}"
                ) from None

    def check(self, state: Mapping[str, Tensor], digest: bytes) -> None:
        """Refuse a first model that is not the wanted one, and log where it comes from.

        Args:
            state: the first model.
            digest: of the first model.

        Raises:
            UpdateRefused: it is another model.

        """
        own = all(self._own.get(name) == digest_of({name: t}) for name, t in state.items())
        if self.wanted is not None and not (
            own if self.wanted == "own" else digest.hex() == self._pinned
        ):
            raise UpdateRefused(
                f"round 0: the server's first model ({digest.hex()}) is not what "
                f"keylock.first_model asks for ({self.wanted}); "
                "if it is meant, name its digest there"
            )
        if own:
            logging.info("the first model is this silo's own; its digest is %s", digest.hex())
        elif self.wanted is None:
            logging.warning(
                "the first model is not the one that this silo built from the same code and seed: "
                "a server that chose it can make the average say mostly one silo's; pin it by "
                "keylock: {first_model: %s}",
                digest.hex(),
            )
