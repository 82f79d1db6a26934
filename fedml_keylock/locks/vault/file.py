"""Reads and writes a vault's file: safetensors, with the header as its metadata.

In a plain file the tensors are the private state, and the header holds a checksum of both. In a
sealed file the one tensor is the ciphertext of a safetensors file, authenticated with the header.
Nothing in either is ever executed. The header holds nothing private.
"""

from __future__ import annotations

import json
import shlex
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ...disk import open_private, write_private
from ...errors import VaultError
from ...tensors import raw, tensors_of
from .cipher import Cipher

__all__ = ["SCHEMA", "Stored", "write_state"]

SCHEMA = "fedml-keylock/vault/2"
SEALED = "ciphertext"
LONGEST_HEADER = 16 * 2**20
"""Bytes: a hundred times the need of the largest models. A foreign file may claim any size."""


@dataclass(frozen=True)
class Stored:
    """A vault's file as read, not yet decrypted.

    Attributes:
        path: of the file.
        header: schema, silo, layout, round; for a sealed file cipher and its parameters. Trust it
            only after `state` has succeeded.
        content: the whole file.

    """

    path: Path
    header: Mapping[str, str]
    content: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Stored:
        """Read a file of a vault.

        Raises:
            VaultError: the file is missing, truncated, foreign, another user's, or others may read
                it.

        """
        with open_private(path) as file:
            try:
                # the header first: a foreign file need not be read whole to recognise it
                header = _metadata(file.read(8), file.read)
                if header.get("schema") != SCHEMA:
                    raise VaultError(
                        f"vault {path}: its schema is {header.get('schema')!r}, not {SCHEMA!r}: "
                        "not a vault, or another version's"
                    )
                file.seek(0)
                content = file.read()
            except (OSError, ValueError) as error:
                raise VaultError(f"vault {path}: damaged ({error})") from None
        return cls(path, header, content)

    @property
    def sealed(self) -> bool:
        """Whether it is encrypted."""
        return "cipher" in self.header

    @property
    def silo(self) -> int:
        """Index of the silo."""
        return self._number("silo")

    @property
    def layout(self) -> str:
        """Digest of the model and the locked layers that it belongs to."""
        layout = self.header.get("layout", "")
        if not (layout.isascii() and layout.isalnum() and len(layout) <= 64):
            raise VaultError(f"vault {self.path}: damaged (it names no layout)")
        return layout

    @property
    def round_index(self) -> int:
        """The next round for this state."""
        return self._number("round")

    def state(self, cipher: Cipher | None) -> dict[str, Tensor]:
        """Decrypt and check the private state.

        Args:
            cipher: for a sealed file; None for a plain one.

        Raises:
            VaultError: the file is damaged, sealed under another passphrase, or sealed when it
                should be plain, or the reverse.

        """
        self._check_form(cipher)
        try:
            tensors = tensors_of(self.content)
            if cipher is None:
                if self.header.get("sha256") != _checksum(self.header, tensors):
                    raise VaultError("damaged (its checksum does not fit its content)")
                return tensors
            if list(tensors) != [SEALED] or tensors[SEALED].dtype != torch.uint8:
                raise VaultError("damaged (it holds no ciphertext)")
            return tensors_of(cipher.open(tensors[SEALED].numpy().tobytes(), self.header))
        except VaultError as error:
            raise VaultError(f"vault {self.path}: {error}") from None
        except ValueError as error:
            raise VaultError(f"vault {self.path}: damaged ({error})") from None

    def _check_form(self, cipher: Cipher | None) -> None:
        # found by its name: a file of the history lies one folder deeper
        inside = self.path.name.startswith("silo-")
        folder = self.path.parent if inside else self.path.parent.parent
        rekey = f"fedml-keylock vault rekey {shlex.quote(str(folder))} --silo {self.silo}"
        if self.sealed and cipher is None:
            raise VaultError(
                f"vault {self.path}: it is encrypted, and keylock.encrypt_vault is false: set it "
                f"to true, or decrypt the vault with: {rekey} --decrypt"
            )
        if cipher is not None and not self.sealed:
            raise VaultError(
                f"vault {self.path}: it is not encrypted, and keylock.encrypt_vault is true: "
                f"encrypt the vault with: {rekey} --encrypt"
            )

    def _number(self, name: str) -> int:
        text = self.header.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) < 12):
            raise VaultError(f"vault {self.path}: damaged (it names no {name})")
        return int(text)


def write_state(
    path: Path,
    state: Mapping[str, Tensor],
    cipher: Cipher | None,
    *,
    silo: int,
    layout: str,
    round_index: int,
) -> None:
    """Write a file of a vault, whole or not at all.

    Args:
        path: of the file.
        state: the private state.
        cipher: to seal it; None leaves it plain.
        silo: index of the silo.
        layout: digest of the model and locked layers that the state belongs to.
        round_index: the next round for the state.

    Raises:
        VaultError: the file cannot be written; an older one is untouched.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "silo-2.safetensors"
        >>> write_state(path, {"key": torch.ones(3)}, None, silo=2, layout="a1", round_index=7)
        >>> stored = Stored.read(path)
        >>> stored.round_index, stored.sealed, stored.state(None)["key"]
        (7, False, tensor([1., 1., 1.]))

    """
    header = {"schema": SCHEMA, "silo": str(silo), "layout": layout, "round": str(round_index)}
    if cipher is None:
        header["sha256"] = _checksum(header, state)
        content = save(dict(state), metadata=header)
    else:
        try:
            header, sealed = cipher.seal(save(dict(state)), header)
        except VaultError as error:
            raise VaultError(f"vault {path}: {error}") from None
        tensor = torch.frombuffer(bytearray(sealed), dtype=torch.uint8)
        content = save({SEALED: tensor}, metadata=header)
    write_private(path, content)


def _metadata(size: bytes, read: Callable[[int], bytes]) -> dict[str, str]:
    """The header of a safetensors file. Raises ValueError if there is none."""
    if len(size) < 8:
        raise ValueError("it ends within its header")
    (length,) = struct.unpack("<Q", size)
    if length > LONGEST_HEADER:
        raise ValueError("it has no header of a sensible length")
    text = read(length)
    if len(text) < length:
        raise ValueError("it ends within its header")
    try:
        found = json.loads(text.decode()).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError):
        raise ValueError("its header cannot be read") from None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError("its header cannot be read")
    return found


def _checksum(header: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    """A checksum of header, names, shapes and numbers: against accidents, not against attackers."""
    digest = sha256()
    for name in sorted(header.keys() - {"sha256"}):
        digest.update(f"{name} {header[name]}\n".encode())
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        digest.update(raw(state[name]))
    return digest.hexdigest()
