"""Checkpoints of a long search on disk, from which it can resume."""

from __future__ import annotations

import time
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import AttackError
from ...files import replacing

__all__ = ["Checkpoint"]


class Checkpoint:
    """A file of tensors by name that only its owner can read: it shows somebody's data.

    Args:
        path: path of the file.
        fingerprint: fingerprint of the search; files of other searches are refused.
        interval: seconds between two writes.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "search.safetensors"
        >>> Checkpoint(path, "00ff").save({"rows": torch.ones(2)})
        >>> Checkpoint(path, "00ff").load()
        {'rows': tensor([1., 1.])}

    """

    def __init__(self, path: Path, fingerprint: str, *, interval: float = 60.0) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.interval = interval
        self._written = time.monotonic()

    def load(self) -> dict[str, Tensor]:
        """The saved tensors, or none; AttackError if the file is damaged or of another search."""
        try:
            with safe_open(self.path, framework="pt") as file:
                found = (file.metadata() or {}).get("fingerprint")
                if found == self.fingerprint:
                    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a mapping
        except FileNotFoundError:
            return {}
        except (OSError, SafetensorError) as error:
            raise AttackError(f"checkpoint {self.path}: damaged: {error}; remove it") from None
        raise AttackError(
            f"checkpoint {self.path} is of another attack, or of other updates: remove it, or name "
            "another file"
        )

    def due(self) -> bool:
        """Whether the interval since the last write has passed."""
        return time.monotonic() - self._written >= self.interval

    def save(self, tensors: dict[str, Tensor]) -> None:
        """Replace the file, whole or not at all; AttackError if it cannot be written."""
        whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as part:
                save_file(whole, part, {"fingerprint": self.fingerprint})
        except (OSError, SafetensorError) as error:
            raise AttackError(f"checkpoint {self.path}: cannot be written: {error}") from None
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file after the search."""
        self.path.unlink(missing_ok=True)
