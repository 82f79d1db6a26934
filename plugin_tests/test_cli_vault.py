"""`fedml-keylock vault`: what it says of a vault, what it changes, and what it never tells."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fedml_keylock import cli
from fedml_keylock.builtin import keylock
from fedml_keylock.commands import rekey as rekey_module
from fedml_keylock.commands.vault import NEW_PASSPHRASE, vault
from fedml_keylock.errors import VaultError
from fedml_keylock.locks import private_state_dict
from fedml_keylock.locks.vault.cipher import PASSPHRASE, Cipher
from fedml_keylock.locks.vault.file import Stored

OLD, NEW = "old correct horse", "new battery staple"
SETTINGS = {"lock": "paper", "key_length": 16, "layers": "all", "keep_history": True}
MAIN = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(),
        nn.Linear(80, 3),
    )
"""


def invoke(*arguments: str, **options):
    result = CliRunner().invoke(cli.main, ["vault", *arguments], **options)
    said = str(result.output)
    # no private number, no passphrase, no traceback, whatever happens
    # (a layout is hexadecimal, and may begin as a number with an exponent does)
    assert not re.search(r"\d\.\d{3}|(?<!\w)\d[eE][-+]?\d{2,3}(?!\w)", said), said
    assert OLD not in said
    assert NEW not in said
    assert "Traceback" not in said
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def ok(*arguments: str, **options) -> list[str]:
    result = invoke(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def fails(*arguments: str, **options) -> str:
    """The one line that it fails with, after whatever it listed."""
    result = invoke(*arguments, **options)
    assert result.exit_code == 1, result.output
    last = result.output.splitlines()[-1]
    assert last.startswith("fedml-keylock: ")
    return last.removeprefix("fedml-keylock: ")


def net() -> nn.Module:
    found: dict = {}
    exec(MAIN, found)
    return found["net"]()


def job(silo: int, settings=SETTINGS, rounds: int = 2, folder: str = "keylock_vault") -> nn.Module:
    """Two rounds of a silo: three files."""
    defense, model = keylock({**settings, "vault": folder}), net()
    defense.protect(model, silo=silo, agreement=defense.describe(model))
    for index in range(rounds):
        defense.begin_round(model, round_index=index)
        nn.functional.cross_entropy(model(torch.rand(3, 1, 8, 8)), torch.arange(3)).backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.sub_(0.1 * p.grad)
        defense.end_round(model, round_index=index)
    return model


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in (PASSPHRASE, NEW_PASSPHRASE):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    for name in ("keylock_main", "keylock_other"):
        sys.modules.pop(name, None)
    (tmp_path / "keylock_main.py").write_text(MAIN)
    (tmp_path / "fedml_config.yaml").write_text("common_args: {training_type: cross_silo}")
    return tmp_path


@pytest.fixture
def plain(here):
    for silo in (0, 1):
        job(silo)
    return here / "keylock_vault"


@pytest.fixture
def sealed(plain, monkeypatch):
    monkeypatch.setenv(PASSPHRASE, OLD)
    ok("rekey", "--encrypt")
    return plain


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


def states(folder: Path, words: str | None = None) -> dict[str, dict[str, torch.Tensor]]:
    cipher = Cipher(words.encode()) if words else None
    return {name: Stored.read(folder / name).state(cipher) for name in files(folder)}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        s.keys() == other[n].keys() and all(torch.equal(t, other[n][k]) for k, t in s.items())
        for n, s in one.items()
    )


def lock_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the statistics."""
    found = {n: t for n, t in state.items() if ".keylock." in n and ".running_" not in n}
    assert found
    return found


# --- help


def test_help_teaches_every_command():
    listed = ok("--help")
    for name, command in vault.commands.items():
        assert any(line.split()[:1] == [name] for line in listed)
        lines = ok(name, "--help")
        assert any(f"fedml-keylock vault {name}" in line for line in lines), name
        assert "\\b" not in "\n".join(lines)
        assert command.get_short_help_str(80).endswith("."), name
    assert len(vault.commands) == 4


def test_no_option_takes_a_passphrase():
    options = {o for c in vault.commands.values() for p in c.params for o in p.opts}
    assert options == {"folder", "--silo", "--encrypt", "--decrypt"}


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from fedml_keylock.cli import main\n"
        "main(['vault', '--help'], standalone_mode=False)\n"
        "main(['vault', 'rekey', '--help'], standalone_mode=False)\n"
        "print({'torch', 'fedml', 'cryptography', 'numpy', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


# --- list, show, verify


def test_list_has_a_line_for_each_silo(plain):
    head, *lines = ok("list")
    assert head.split() == ["SILO", "ROUND", "LAYOUT", "FORM", "BYTES", "HISTORY", "MODIFIED"]
    layout = keylock(SETTINGS).describe(net()).layout
    size = (plain / "silo-0.safetensors").stat().st_size
    assert [line.split()[:6] for line in lines] == [
        [silo, "2", layout, "plain", str(size), "2"] for silo in "01"
    ]


@pytest.mark.usefixtures("sealed")
def test_list_needs_no_passphrase(monkeypatch):
    monkeypatch.delenv(PASSPHRASE)
    assert all(line.split()[3] == "encrypted" for line in ok("list", "keylock_vault")[1:])


def test_list_goes_on_after_a_file_that_cannot_be_read(plain):
    (plain / "silo-0.safetensors").chmod(0o644)
    result = invoke("list")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert "0644" in lines[1]
    assert lines[2].split()[:2] == ["1", "2"]
    assert "1 of 2 silos' files cannot be read" in lines[3]


@pytest.mark.parametrize("command", ["list", "verify", "rekey"])
def test_a_folder_that_is_none_or_empty_is_an_error(here, command):
    assert "vault nowhere: no such folder; run it in the job's folder" in fails(command, "nowhere")
    assert "vault fedml_config.yaml: it is not a folder; name the" in fails(
        command, "fedml_config.yaml"
    )
    (here / "empty").mkdir()
    assert "empty: no silo has a file here; name the vault's folder" in fails(command, "empty")


def test_show_names_every_tensor_and_no_value(plain):
    lines = ok("show", "--silo", "1")
    state = states(plain)["silo-1.safetensors"]
    shown = {line.split()[0]: line for line in lines if line}
    for name, tensor in state.items():
        assert str(tuple(tensor.shape)) in shown[name]
        assert str(tensor.dtype).removeprefix("torch.") in shown[name]
    assert shown["round"].split() == ["round", "2"]
    assert "sha256" not in shown  # even a digest of what is private stays


def test_show_of_an_encrypted_vault_needs_the_passphrase(sealed, monkeypatch):
    lines = ok("show", "keylock_vault", "--silo", "0")
    names = states(sealed, OLD)["silo-0.safetensors"]
    assert set(names) <= {line.split()[0] for line in lines if line}
    monkeypatch.setenv(PASSPHRASE, "another")
    assert "the passphrase is wrong" in fails("show", "--silo", "0")
    monkeypatch.delenv(PASSPHRASE)
    assert f"{PASSPHRASE}_FILE name an owner-only file" in fails("show", "--silo", "0")


@pytest.mark.usefixtures("plain")
def test_a_silo_that_is_not_there_is_named():
    said = "vault keylock_vault: silo 7 has no file here; those that have: 0, 1"
    assert said in fails("show", "--silo", "7")
    assert said in fails("rekey", "--silo", "7", "--encrypt")


def test_verify_reads_every_file(plain):
    lines = ok("verify")
    assert lines[-1] == "all 6 files are whole"
    assert all(line.startswith("ok    vault ") for line in lines[:-1])
    assert {line.split()[2].rstrip(":") for line in lines[:-1]} == {
        f"keylock_vault/{name}" for name in files(plain)
    }


@pytest.mark.usefixtures("sealed")
def test_verify_asks_once_for_all_files(monkeypatch):
    asked = []
    original = Cipher.from_environment
    monkeypatch.setattr(Cipher, "from_environment", lambda *a: (asked.append(a), original(*a))[1])
    assert ok("verify")[-1] == "all 6 files are whole"
    assert len(asked) == 1


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def open_to_all(path):
    path.chmod(0o604)


def swap(path):
    shutil.copy2(path.parent / path.name.replace("0", "1", 1), path)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("form", ["plain", "sealed"])
@pytest.mark.parametrize("damage", [flip, truncate, open_to_all, swap, empty])
def test_verify_names_the_file_that_fails(form, damage, request):
    folder = request.getfixturevalue(form)
    path = folder / "silo-0.safetensors"
    damage(path)
    result = invoke("verify")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    (failed,) = (line for line in lines if line.startswith("FAIL"))
    assert "keylock_vault/silo-0.safetensors: " in failed
    assert sum(line.startswith("ok ") for line in lines) == 5
    assert lines[-1] == "fedml-keylock: vault keylock_vault: 1 of 6 files failed"


def test_verify_sees_a_misnamed_file_of_the_history(plain):
    (plain / "silo-0" / "round-00001.safetensors").rename(
        plain / "silo-0" / "round-00005.safetensors"
    )
    assert "its round is 1: it is misnamed" in invoke("verify").output


# --- rekey


def test_encrypt_and_decrypt_change_every_file_and_no_content(plain, monkeypatch):
    before = states(plain)
    monkeypatch.setenv(PASSPHRASE, OLD)
    lines = ok("rekey", "--encrypt")
    assert lines[0] == "6 files encrypted"
    assert "set keylock.encrypt_vault to true" in lines[1]
    assert all(Stored.read(plain / name).sealed for name in files(plain))
    assert same(states(plain, OLD), before)
    lines = ok("rekey", "--decrypt")
    assert lines[0] == "6 files decrypted"
    assert same(states(plain), before)
    for path in plain.rglob("*.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_new_passphrase_opens_it_and_the_old_does_not(sealed, monkeypatch):
    before = states(sealed, OLD)
    monkeypatch.setenv(NEW_PASSPHRASE, NEW)
    assert ok("rekey") == ["6 files encrypted anew"]
    assert same(states(sealed, NEW), before)
    with pytest.raises(VaultError, match="the passphrase is wrong"):
        states(sealed, OLD)
    for name in files(sealed):
        assert Stored.read(sealed / name).round_index == (
            2 if name.startswith("silo-") and "/" not in name else int(name[-17:-12])
        )


def test_only_one_silo(sealed, monkeypatch):
    other = {n: c for n, c in files(sealed).items() if n.startswith("silo-0")}
    monkeypatch.setenv(NEW_PASSPHRASE, NEW)
    assert ok("rekey", "keylock_vault", "--silo", "1") == ["3 files encrypted anew"]
    assert {n: c for n, c in files(sealed).items() if n.startswith("silo-0")} == other
    assert len(other) == 3


def test_a_job_goes_on_under_the_new_passphrase(sealed, monkeypatch):
    monkeypatch.setenv(NEW_PASSPHRASE, NEW)
    ok("rekey")
    monkeypatch.setenv(PASSPHRASE, NEW)
    before = states(sealed, NEW)["silo-0.safetensors"]
    model = job(0, {**SETTINGS, "encrypt_vault": True}, rounds=0)
    assert same({"": private_state_dict(model)}, {"": before})


@pytest.mark.parametrize("after", [0, 1, 3, 5])
@pytest.mark.parametrize("way", ["--encrypt", "--decrypt", None])
def test_an_interrupted_run_is_finished_by_another(plain, monkeypatch, after, way):
    monkeypatch.setenv(PASSPHRASE, OLD)
    if way != "--encrypt":
        ok("rekey", "--encrypt")
    if way is None:
        monkeypatch.setenv(NEW_PASSPHRASE, NEW)
    before, options = files(plain), [way] if way else []
    count = 0

    def interrupted(*arguments, **options):
        nonlocal count
        if count == after:
            raise VaultError("the power went")
        count += 1
        return write(*arguments, **options)

    write = rekey_module.write_state
    with monkeypatch.context() as patch:
        patch.setattr(rekey_module, "write_state", interrupted)
        assert fails("rekey", *options) == "the power went"
    between = files(plain)
    assert sum(between[name] != before[name] for name in before) == after
    line = ok("rekey", *options)[0]
    assert line.startswith(f"{6 - after} files ")
    assert line.endswith(f", {after} were already") == (after > 0)
    states(plain, {"--encrypt": OLD, "--decrypt": None, None: NEW}[way])  # raises if one does not


@pytest.mark.parametrize("way", [[], ["--decrypt"]])
def test_a_wrong_passphrase_changes_nothing(sealed, monkeypatch, way):
    before = files(sealed)
    monkeypatch.setenv(PASSPHRASE, "another")
    monkeypatch.setenv(NEW_PASSPHRASE, NEW)
    assert "the passphrase is wrong" in fails("rekey", *way)
    assert files(sealed) == before


def test_a_damaged_file_changes_nothing(sealed, monkeypatch):
    flip(sealed / "silo-1.safetensors")
    before = files(sealed)
    monkeypatch.setenv(NEW_PASSPHRASE, NEW)
    assert "silo-1.safetensors: the passphrase is wrong, or the file was changed" in fails("rekey")
    assert files(sealed) == before


def test_what_is_encrypted_under_another_passphrase_is_not_encrypted_twice(sealed, monkeypatch):
    before = files(sealed)
    monkeypatch.setenv(PASSPHRASE, "another")
    assert "the passphrase is wrong" in fails("rekey", "--encrypt")
    assert files(sealed) == before


def test_a_plain_vault_has_no_passphrase_to_change(plain, monkeypatch):
    monkeypatch.setenv(PASSPHRASE, OLD)
    monkeypatch.setenv(NEW_PASSPHRASE, NEW)
    before = files(plain)
    assert "it is not encrypted; encrypt it with --encrypt" in fails("rekey")
    assert files(plain) == before


@pytest.mark.usefixtures("sealed")
def test_the_new_passphrases_variables_are_named():
    message = fails("rekey")
    assert f"set {NEW_PASSPHRASE}," in message
    assert f"{NEW_PASSPHRASE}_FILE" in message


def busy(descriptor, _operation):
    os.pwrite(descriptor, b"process 4711 on silo2", 0)
    raise BlockingIOError(11, "Resource temporarily unavailable")


def test_a_vault_that_a_job_uses_is_left_alone(sealed, monkeypatch):
    monkeypatch.setenv(NEW_PASSPHRASE, NEW)
    before = files(sealed)
    monkeypatch.setattr(fcntl, "lockf", busy)
    shutil.copytree(sealed, "copy")  # which this process has not claimed
    message = fails("rekey", "copy")
    assert "vault copy: silo 0 is in use by process 4711 on silo2" in message
    assert files(sealed) == before == files(Path("copy"))


# --- on a terminal


def at_a_terminal(arguments: list[str], answers: list[str]) -> tuple[int, str]:
    """Run the command on a terminal of its own, and type an answer to each question."""
    outer, inner = os.openpty()

    def take_it():
        os.setsid()
        fcntl.ioctl(inner, termios.TIOCSCTTY, 0)

    code = "from fedml_keylock.cli import main; main(prog_name='fedml-keylock')"
    child = subprocess.Popen(
        [sys.executable, "-c", code, "vault", *arguments],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        preexec_fn=take_it,
    )
    os.close(inner)
    said = ""
    try:
        while True:
            try:
                part = os.read(outer, 4096).decode()
            except OSError:  # the terminal is gone with the process
                break
            if not part:
                break
            said += part
            if said.endswith(": ") and answers:
                os.write(outer, f"{answers.pop(0)}\n".encode())
    finally:
        os.close(outer)
        child.wait(timeout=60)
    return child.returncode, said


def test_passphrases_are_asked_for_without_an_echo(sealed, monkeypatch):
    shutil.copytree(sealed, "copy", ignore=shutil.ignore_patterns(".*"))
    monkeypatch.delenv(PASSPHRASE)
    status, said = at_a_terminal(["rekey", "copy"], [OLD, NEW, NEW])
    assert status == 0, said
    for prompt in ("Passphrase: ", "New passphrase: ", "Repeat for confirmation: "):
        assert prompt in said
    assert "6 files encrypted anew" in said
    assert OLD not in said
    assert NEW not in said
    states(Path("copy"), NEW)
