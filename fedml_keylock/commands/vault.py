"""`fedml-keylock vault`: manages the silos' private state on disk, and never shows its values."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ..errors import VaultError

if TYPE_CHECKING:
    from ..locks.vault.cipher import Cipher
    from ..locks.vault.file import Stored

__all__ = ["current_cipher", "vault"]

Command = TypeVar("Command", bound=Callable[..., None])


@click.group()
def vault() -> None:
    """Manage the silos' private state on disk.

    Each silo's files are in a folder that never leaves the silo: keylock_vault, or the one that the
    YAML names. Under lock: sealed, the default, files need checkpoint or keep_history.

    \b
    List the files:         fedml-keylock vault list
    Check them:             fedml-keylock vault verify
    Encrypt it:             fedml-keylock vault rekey --encrypt

    None of these prints a private value. The passphrase of an encrypted vault is never an argument.
    It is read from FEDML_KEYLOCK_PASSPHRASE, from the owner-only file that
    FEDML_KEYLOCK_PASSPHRASE_FILE names, or from a terminal.
    """  # noqa: D301  # click wants the character that the escape stands for


def _folder(command: Command) -> Command:
    """The argument FOLDER of a command."""
    return click.argument(
        "folder", type=click.Path(path_type=Path), default=Path("keylock_vault"), required=False
    )(command)


def _silo(*, required: bool) -> Callable[[Command], Command]:
    """The option --silo of a command."""
    what = "Index of the silo, from 0." if required else "Only this silo, counted from 0."
    return click.option("--silo", type=click.IntRange(min=0), required=required, help=what)


@vault.command("list")
@_folder
def list_silos(folder: Path) -> None:
    """List the silos that have files in FOLDER.

    One line per silo, from its file's header; needs no passphrase. ROUND is the round that the silo
    trains next, or under lock: sealed the round whose checkpoint the file opens. HISTORY is the
    number of files of past rounds. Only verify proves a header.

    Example: fedml-keylock vault list keylock_vault
    """
    from ..locks.vault.silo import history_of
    from .job import read_silo

    silos = _silos(folder, None)
    click.echo(
        f"{'SILO':>4}  {'ROUND':>5}  {'LAYOUT':16}  {'FORM':9}  {'BYTES':>9}  HISTORY  MODIFIED"
    )
    failed = 0
    for silo in silos:
        try:
            found = read_silo(folder, silo)
            changed = datetime.fromtimestamp(found.path.stat().st_mtime)
            click.echo(
                f"{silo:4}  {found.round_index:5}  {found.layout:16}  {_form(found):9}  "
                f"{len(found.content):9}  {len(history_of(folder, silo)):7}  "
                f"{changed:%Y-%m-%d %H:%M:%S}"
            )
        except VaultError as error:
            failed += 1
            click.echo(f"{silo:4}  {error}")
    if failed:
        raise VaultError(f"vault {folder}: {failed} of {len(silos)} silos' files cannot be read")


@vault.command()
@_folder
@_silo(required=True)
def show(folder: Path, silo: int) -> None:
    """Show the contents of a silo's file, without values.

    Prints its header, and the names, types and shapes of its private tensors. An encrypted vault
    needs the passphrase: the names are encrypted too.

    Example: fedml-keylock vault show keylock_vault --silo 0
    """
    from .job import read_silo

    found = read_silo(folder, silo)
    state = found.state(current_cipher() if found.sealed else None)
    for name, value in sorted(found.header.items()):
        if name not in ("sha256", "salt", "nonce"):
            click.echo(f"{name:8} {value}")
    click.echo()
    width = max(map(len, state), default=0)
    for name, tensor in sorted(state.items()):
        kind = str(tensor.dtype).removeprefix("torch.")
        click.echo(f"{name:{width}}  {kind:8}  {tuple(tensor.shape)}")


@vault.command()
@_folder
def verify(folder: Path) -> None:
    """Check that every file in FOLDER is intact.

    Checks mode and owner, the header, and checksum or decryption, for files of the history too. If
    a file fails, it prints a line that names the file, and exits with status 1. Encrypted files
    need the passphrase.

    Example: fedml-keylock vault verify keylock_vault
    """
    from ..locks.vault.silo import files_of

    cipher = cache(current_cipher)  # asked for at most once, and only for an encrypted file
    failed = whole = 0
    for silo in _silos(folder, None):
        for path in files_of(folder, silo):
            try:
                found = _verified(path, silo, cipher)
            except VaultError as error:
                failed += 1
                click.echo(f"FAIL  {error}")
            else:
                whole += 1
                click.echo(f"ok    vault {path}: round {found.round_index}, {_form(found)}")
    if failed:
        raise VaultError(f"vault {folder}: {failed} of {failed + whole} files failed")
    click.echo(f"all {whole} files are whole")


def _verified(path: Path, silo: int, cipher: Callable[[], Cipher]) -> Stored:
    from ..locks.vault.file import Stored

    found = Stored.read(path)
    if found.silo != silo:
        raise VaultError(f"vault {path}: its silo is {found.silo}: it is in another's place")
    kept = path.stem.removeprefix("round-")
    if kept != path.stem and kept != f"{found.round_index:05d}":
        raise VaultError(f"vault {path}: its round is {found.round_index}: it is misnamed")
    found.state(cipher() if found.sealed else None)
    return found


@vault.command()
@_folder
@_silo(required=False)
@click.option("--encrypt", "way", flag_value="encrypt", help="Encrypt plain files.")
@click.option("--decrypt", "way", flag_value="decrypt", help="Decrypt encrypted files.")
def rekey(folder: Path, silo: int | None, way: str | None) -> None:
    """Change the passphrase, encrypt or decrypt.

    \b
    To encrypt:  FEDML_KEYLOCK_PASSPHRASE_FILE=~/.vault fedml-keylock vault rekey --encrypt
    To change:   fedml-keylock vault rekey
    To decrypt:  fedml-keylock vault rekey --decrypt

    The new passphrase is read from FEDML_KEYLOCK_NEW_PASSPHRASE, from the owner-only file that
    FEDML_KEYLOCK_NEW_PASSPHRASE_FILE names, or twice from a terminal. With --encrypt it is the
    job's own, from FEDML_KEYLOCK_PASSPHRASE.

    All files are read before the first is changed, and each is replaced whole or not at all, the
    history's too. If it is interrupted, run it again: finished files are left alone. The disk or a
    backup may still hold the old files: a passphrase that leaked still opens them.
    """  # noqa: D301  # click wants the character that the escape stands for
    from ..locks.vault.cipher import PASSPHRASE
    from .rekey import rekey_files

    silos = _silos(folder, silo)
    old = None if way == "encrypt" else current_cipher()
    if way == "encrypt":
        new = _cipher(PASSPHRASE, "Passphrase", confirm=True)
    elif way == "decrypt":
        new = None
    else:
        new = _cipher(NEW_PASSPHRASE, "New passphrase", confirm=True)
    changed, left = rekey_files(folder, silos, old, new)
    done = {"encrypt": "encrypted", "decrypt": "decrypted", None: "encrypted anew"}[way]
    click.echo(f"{changed} files {done}" + (f", {left} were already" if left else ""))
    if way:
        wanted = str(way == "encrypt").lower()
        click.echo(f"set keylock.encrypt_vault to {wanted} in the YAML of this silo")


NEW_PASSPHRASE = "FEDML_KEYLOCK_NEW_PASSPHRASE"  # noqa: S105  # the name of a variable


def _form(found: Stored) -> str:
    return "encrypted" if found.sealed else "plain"


def _silos(folder: Path, silo: int | None) -> list[int]:
    """The silos that a command acts on; VaultError if there are none."""
    from ..locks.vault.silo import silos_in

    there = silos_in(folder)
    if not there:
        raise VaultError(f"vault {folder}: no silo has a file here; name the vault's folder")
    if silo is not None and silo not in there:
        those = ", ".join(map(str, there))
        raise VaultError(f"vault {folder}: silo {silo} has no file here; those that have: {those}")
    return there if silo is None else [silo]


def current_cipher() -> Cipher:
    """The cipher of a vault's current passphrase, from the environment or a terminal.

    Raises:
        ConfigError: there is no passphrase, and no terminal to ask at.
        VaultError: the passphrase's file cannot be read, or others may read it.

    """
    from ..locks.vault.cipher import PASSPHRASE

    return _cipher(PASSPHRASE, "Passphrase")


def _cipher(variable: str, prompt: str, *, confirm: bool = False) -> Cipher:
    """A cipher from the environment or a terminal; else an error that names the variables."""
    from ..locks.vault.cipher import Cipher

    given = os.environ.get(variable) or os.environ.get(f"{variable}_FILE")
    if given or not sys.stdin.isatty():
        return Cipher.from_environment(variable)
    typed = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm)
    return Cipher(str(typed).encode())
