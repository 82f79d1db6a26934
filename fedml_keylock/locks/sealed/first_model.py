"""Whether the first model is the one that a silo expects, and what is said of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ...errors import UpdateRefused
from .rounds import digest_of

__all__ = ["FirstModel"]


@dataclass
class FirstModel:
    """What a silo compares the server's first model with.

    Attributes:
        wanted: ``keylock.first_model``: own, a digest in hexadecimal or a file; None for any.
        own: digest of the model that this silo built from the same code and seed.

    """

    wanted: str | None
    own: bytes = b""

    def check(self, digest: bytes) -> None:
        """Refuse a first model that is not the wanted one, and log whose it is.

        Raises:
            UpdateRefused: it is another one.

        """
        if self.wanted is not None and not self._is_wanted(digest):
            raise UpdateRefused(
                f"round 0: the server's first model ({digest.hex()}) is not what "
                f"keylock.first_model asks for ({self.wanted})"
            )
        if digest == self.own:
            logging.info("the first model is this silo's own; its digest is %s", digest.hex())
        elif self.wanted is None:
            logging.warning(
                "the first model is not the one that this silo built from the same code and seed: "
                "a server that chose it can make the average say mostly one silo's; pin it by "
                "keylock: {first_model: %s}",
                digest.hex(),
            )

    def _is_wanted(self, digest: bytes) -> bool:
        if self.wanted == "own":
            return digest == self.own
        path = Path(str(self.wanted))
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return digest == digest_of(load_file(path))
        return digest.hex() == str(self.wanted).lower()
