"""A silo's private state on disk: whole or not at all, for its owner and its silo only."""

import errno
import fcntl
import json
import os
import pickle
import shutil
import stat
import struct
import tempfile
from copy import deepcopy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from vaults import CONFIG, load, made, refused, same, save

from fedml_keylock.builtin import keylock
from fedml_keylock.disk import append_private
from fedml_keylock.errors import LockError, VaultError
from fedml_keylock.locks import Vault, load_private_state_dict, private_state_dict
from fedml_keylock.locks.vault.file import write_state
from fedml_keylock.locks.vault.silo import claim_silo, silos_in


def train(model):
    """One step: other private state than before."""
    before = private_state_dict(model)
    model.zero_grad()
    model(torch.rand(4, 1, 8, 8)).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not same(private_state_dict(model), before)


def names(folder):
    """What is in a folder, without the lock file that stays there."""
    return sorted(name for name in os.listdir(folder) if name != ".silo-2.lock")


@pytest.fixture
def model():
    return made()


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / "vault", silo=2, layout="a1b2c3d4")


@pytest.fixture
def written(vault, model):
    """The vault with a file in it."""
    save(vault, model, round_index=7)
    return vault


def test_what_is_saved_is_loaded(written, model):
    other = made()
    assert not same(private_state_dict(other), private_state_dict(model))
    assert load(written, other) == 7
    assert same(private_state_dict(other), private_state_dict(model))
    x = torch.rand(3, 1, 8, 8)
    for mode in (True, False):
        assert torch.equal(model.train(mode)(x), other.train(mode)(x))


def test_saving_again_replaces(written, model):
    train(model)
    save(written, model, round_index=8)
    other = made()
    assert load(written, other) == 8
    assert same(private_state_dict(other), private_state_dict(model))
    assert names(written.folder) == ["silo-2.safetensors"]


def test_existence(vault, model):
    assert not vault.exists()
    save(vault, model, round_index=0)
    assert vault.exists()
    assert not Vault(vault.folder, silo=1, layout=vault.layout).exists()


def test_history_is_kept_beside_the_current_state(written, model):
    train(model)
    written.keep(private_state_dict(model), round_index=8)
    kept, current = made(), made()
    assert load(written, kept, written.history_path(8)) == 8
    assert same(private_state_dict(kept), private_state_dict(model))
    assert load(written, current) == 7
    assert not same(private_state_dict(current), private_state_dict(kept))


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_umask")
def test_files_and_folders_are_their_owners_only(vault, model):
    save(vault, model, round_index=0)
    vault.keep(private_state_dict(model), round_index=1)
    assert mode(vault.path) == mode(vault.history_path(1)) == 0o600
    assert mode(vault.folder) == mode(vault.history_path(1).parent) == 0o700


@pytest.mark.usefixtures("open_umask")
def test_the_folder_is_its_owners_only_whatever_is_written_first(vault, model):
    vault.keep(private_state_dict(model), round_index=1)
    assert mode(vault.folder) == 0o700


@pytest.mark.usefixtures("open_umask")
def test_nobody_else_can_read_the_file_while_it_is_written(vault, model, monkeypatch):
    seen = []
    original = os.fsync

    def look(descriptor):
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            seen.append(stat.S_IMODE(found.st_mode))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    save(vault, model, round_index=0)
    assert seen == [0o600]


def test_the_file_is_on_disk_before_it_takes_the_old_ones_place(written, model, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda d: (order.append(f"sync {stat.S_ISDIR(os.fstat(d).st_mode)}"), fsync(d))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    save(written, model, round_index=8)
    assert order == ["sync False", "replace", "sync True"]


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o620, 0o610, 0o601, 0o666, 0o644])
def test_a_file_that_others_may_read_is_refused(written, loose):
    written.path.chmod(loose)
    message = refused(written, "others may read it")
    assert f"{loose:04o}" in message
    assert f"chmod 600 {written.path}" in message


@pytest.mark.parametrize("loose", [0o750, 0o705, 0o720, 0o710, 0o701, 0o777, 0o1777])
def test_a_folder_that_others_may_use_is_refused(written, loose):
    written.folder.chmod(loose)
    for use in (
        lambda: written.save({}, round_index=0),
        lambda: claim_silo(written.folder, 5),
        lambda: silos_in(written.folder),
        lambda: append_private(written.folder / "silo-5.log", "round 0"),
    ):
        with pytest.raises(VaultError, match="so that others may use it") as error:
            use()
        assert f"{loose:04o}" in str(error.value)
        assert f"chmod 700 {written.folder}" in str(error.value)


def test_someone_elses_folder_is_refused(written, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: written.folder.stat().st_uid + 1)
    with pytest.raises(VaultError, match="belongs to user"):
        silos_in(written.folder)


def test_another_silos_file_is_refused(written):
    other = Vault(written.folder, silo=3, layout=written.layout)
    assert refused(other, "its silo is '2'.* '3'", written.path)


def test_another_models_file_is_refused(written):
    other = Vault(written.folder, silo=2, layout="00000000")
    assert refused(other, "its layout is 'a1b2c3d4'.* '00000000'.*keylock.vault")


@pytest.mark.parametrize(
    "changed",
    [
        {"key_length": 8},
        {"chained": True},
        {"layers": "first"},
        {"lock": "rotated"},
        {"share_norm_statistics": True},
    ],
)
def test_another_locks_file_is_refused(vault, changed):
    save(vault, made(CONFIG.model_copy(update=changed)), round_index=0)
    assert refused(vault, "that of another lock: .* differs")


def test_a_missing_file_is_refused(vault):
    message = refused(vault, "No such file")
    assert str(vault.path) in message


def test_a_folder_in_the_files_place_is_refused(vault):
    vault.folder.mkdir(mode=0o700)
    vault.path.mkdir()
    assert refused(vault, "not a regular file")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.5, -1])
def test_a_truncated_file_is_refused(written, keep):
    content = written.path.read_bytes()
    written.path.write_bytes(content[: int(len(content) * keep) if keep == 0.5 else keep])
    assert str(written.path) in refused(written, "damaged")


def test_a_file_with_more_behind_it_is_refused(written):
    written.path.write_bytes(written.path.read_bytes() + b"\0")
    assert refused(written, "damaged")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"schema": "somebody/else"},
        {"schema": "fedml-keylock/vault/3", "silo": "2", "layout": "a1b2c3d4"},
        {"silo": "2", "layout": "a1b2c3d4", "round": "0"},
    ],
)
def test_a_foreign_file_is_refused(vault, model, metadata):
    vault.folder.mkdir(mode=0o700)
    save_file(private_state_dict(model), vault.path, metadata)
    vault.path.chmod(0o600)
    assert refused(vault, "its schema is .*, not 'fedml-keylock/vault/2'")


def header_of(content):
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length]


@pytest.mark.parametrize("first_bit", [0, 5])
def test_a_flipped_bit_in_the_header_never_gives_another_state(written, model, first_bit):
    """The header is JSON: a flip is refused, or changes nothing of what is loaded."""
    vault, content = written, written.path.read_bytes()
    size = 8 + len(header_of(content))
    other = made()
    before, saved = private_state_dict(other), private_state_dict(model)
    loaded = 0
    for where in range(size):
        flipped = bytearray(content)
        flipped[where] ^= 1 << (first_bit + where) % 8
        vault.path.write_bytes(flipped)
        try:
            assert load(vault, other) == 7
        except VaultError:
            assert same(private_state_dict(other), before)
        else:
            assert same(private_state_dict(other), saved)
            loaded += 1
            load_private_state_dict(other, before)
    assert loaded < size / 10


@pytest.mark.parametrize(
    "damage",
    [(b'"round":"7"', b'"round":"8"'), (b'"round":"7"', b'"round":"w"'), (b'"round"', b'"rount"')],
)
def test_a_changed_round_is_refused(written, damage):
    content = written.path.read_bytes()
    assert damage[0] in content
    written.path.write_bytes(content.replace(*damage))
    assert refused(written, "damaged")


@pytest.mark.parametrize("round_index", [-1, "", "7.5", "\u0667", "9" * 12])
def test_a_file_that_names_no_round_is_refused(written, model, round_index):
    state = private_state_dict(model)
    write_state(written.path, state, None, silo=2, layout="a1b2c3d4", round_index=round_index)
    assert refused(written, "it names no round")


def test_a_flipped_bit_in_the_numbers_is_refused(written):
    content = bytearray(written.path.read_bytes())
    content[-1] ^= 0x40
    written.path.write_bytes(content)
    assert refused(written, "damaged")


class Executes:
    """What a pickle can do to whoever loads it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


@pytest.mark.parametrize("dump", [pickle.dumps, "torch"])
def test_nothing_in_a_file_is_executed(vault, tmp_path, dump):
    marker = str(tmp_path / "executed")
    vault.folder.mkdir(mode=0o700)
    if dump == "torch":
        torch.save(Executes(marker), vault.path)
    else:
        vault.path.write_bytes(dump(Executes(marker)))
    vault.path.chmod(0o600)
    refused(vault, "damaged")
    assert not os.path.exists(marker)
    pickle.loads(pickle.dumps(Executes(marker)))
    assert os.path.exists(marker)  # the control


def test_no_pickle_is_read_or_written(vault, model, monkeypatch):
    def never(*_args, **_options):
        raise AssertionError("a pickle")

    for owner, name in [
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "dump"),
        (pickle, "dumps"),
        (pickle, "Pickler"),
        (pickle, "Unpickler"),
        (torch, "load"),
        (torch, "save"),
    ]:
        monkeypatch.setattr(owner, name, never)
    save(vault, model, round_index=1)
    assert load(vault, made()) == 1


def test_a_model_without_a_lock_is_not_saved(vault):
    with pytest.raises(LockError, match="not locked"):
        save(vault, nn.Sequential(nn.Conv2d(1, 4, 3)), round_index=0)
    assert not vault.exists()


def no_space(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_for_files(descriptor, original=os.fsync):
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        no_space()
    original(descriptor)


@pytest.mark.parametrize(
    ("owner", "name", "fails"),
    [
        (os, "replace", no_space),
        (os, "fsync", no_space_for_files),
        (os, "fdopen", no_space),
        (tempfile, "mkstemp", no_space),
    ],
    ids=["replace", "fsync", "fdopen", "mkstemp"],
)
def test_a_full_disk_leaves_the_old_file_whole(written, model, monkeypatch, owner, name, fails):
    before, secrets = written.path.read_bytes(), private_state_dict(model)
    changed = deepcopy(model)
    train(changed)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(VaultError, match="cannot be written: No space left") as caught:
            save(written, changed, round_index=8)
    assert str(written.path) in str(caught.value)
    assert written.path.read_bytes() == before
    assert names(written.folder) == [written.path.name]  # and no part of the new one
    other = made()
    assert load(written, other) == 7
    assert same(private_state_dict(other), secrets)


def test_an_interrupt_leaves_the_old_file_whole(written, model, monkeypatch):
    before = written.path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(written, model, round_index=8)
    assert written.path.read_bytes() == before
    assert names(written.folder) == [written.path.name]


def test_a_file_in_the_folders_place_is_an_error_and_stays(tmp_path, model):
    (tmp_path / "vault").write_text("mine")
    vault = Vault(tmp_path / "vault", silo=0, layout="a1")
    with pytest.raises(VaultError, match="cannot be written"):
        save(vault, model, round_index=0)
    assert (tmp_path / "vault").read_text() == "mine"
    assert os.listdir(tmp_path) == ["vault"]


# --- what may stand in a file's place


def test_a_link_in_the_files_place_is_refused(written):
    elsewhere = written.path.rename(written.folder / "elsewhere")
    written.path.symlink_to(elsewhere)
    assert refused(written, "it is a symbolic link")


def test_what_is_no_file_is_not_replaced_by_a_vault(vault, model):
    vault.folder.mkdir(mode=0o700)
    os.mkfifo(vault.path)
    with pytest.raises(VaultError, match="cannot be written: it is a pipe, not a file"):
        save(vault, model, round_index=0)
    assert vault.path.is_fifo()


def test_a_link_that_leads_nowhere_is_not_taken_for_a_new_silo(vault):
    vault.folder.mkdir(mode=0o700)
    vault.path.symlink_to(vault.folder / "nowhere")
    assert vault.exists()
    assert refused(vault, "it is a symbolic link")


def test_the_folder_may_be_a_link(tmp_path, model):
    (tmp_path / "volume").mkdir(mode=0o700)
    (tmp_path / "vault").symlink_to(tmp_path / "volume")
    vault = Vault(tmp_path / "vault", silo=2, layout="a1")
    save(vault, model, round_index=3)
    assert load(vault, made()) == 3
    assert (tmp_path / "volume" / "silo-2.safetensors").is_file()


def test_a_pipe_in_the_files_place_is_refused_at_once(vault):
    vault.folder.mkdir(mode=0o700)
    os.mkfifo(vault.path, 0o600)
    assert refused(vault, "not a regular file")


def test_someone_elses_file_is_refused(written, monkeypatch):
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert refused(written, f"belongs to user {me}, and this process is user {me + 1}'s")


def test_the_header_of_a_huge_foreign_file_is_not_read(vault):
    vault.folder.mkdir(mode=0o700)
    with vault.path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**40)  # a terabyte, of which nothing is on disk
    vault.path.chmod(0o600)
    assert refused(vault, "no header of a sensible length")


def test_the_content_of_a_huge_foreign_file_is_not_read(vault):
    header = json.dumps({"__metadata__": {"schema": "somebody/else"}}).encode()
    vault.folder.mkdir(mode=0o700)
    with vault.path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(2**40)
    vault.path.chmod(0o600)
    assert refused(vault, "its schema is 'somebody/else'")


@pytest.mark.parametrize(
    "header",
    [b"[" * 100_000, b"[]", b'{"__metadata__": [1]}', b'{"__metadata__": {"a": 1}}', b"\xff"],
)
def test_a_header_that_is_none_is_refused(vault, header):
    vault.folder.mkdir(mode=0o700)
    vault.path.write_bytes(struct.pack("<Q", len(header)) + header)
    vault.path.chmod(0o600)
    assert refused(vault, "its header cannot be read")


# --- one writer


def leftovers(vault):
    """What a killed process leaves, beside what only looks like it."""
    (vault.folder / "silo-2").mkdir(mode=0o700)
    mine = [".silo-2.safetensors.abc.tmp", "silo-2/.round-00003.safetensors.abc.tmp"]
    others = [".silo-20.safetensors.abc.tmp", ".silo-1.safetensors.abc.tmp", "silo-2.tmp"]
    for name in [*mine, *others]:
        (vault.folder / name).write_bytes(b"half")
    return [vault.folder / name for name in mine], [vault.folder / name for name in others]


@pytest.mark.parametrize("use", ["claim", "save", "keep"])
def test_what_a_killed_process_left_is_removed_once(vault, model, use):
    vault.folder.mkdir(mode=0o700)
    mine, others = leftovers(vault)
    if use == "claim":
        vault.claim()
    else:
        getattr(vault, use)(private_state_dict(model), round_index=5)
    assert not any(path.exists() for path in mine)
    assert all(path.read_bytes() == b"half" for path in others)
    # from now on what is half written is this process's own
    mine[0].write_bytes(b"being written")
    vault.claim()
    assert mine[0].exists()


def test_loading_alone_removes_and_claims_nothing(written):
    """An audit may read the vault of a job that runs."""
    fresh = Vault(written.folder.parent / "copy", silo=2, layout=written.layout)
    shutil.copytree(written.folder, fresh.folder, ignore=shutil.ignore_patterns(".*"))
    mine, _ = leftovers(fresh)
    before = sorted(os.listdir(fresh.folder))
    assert load(fresh, made()) == 7
    assert sorted(os.listdir(fresh.folder)) == before
    assert mine[0].exists()


def test_a_folder_that_was_removed_is_claimed_anew(written, model):
    shutil.rmtree(written.folder)
    save(written, model, round_index=8)
    assert (written.folder / ".silo-2.lock").exists()
    assert load(written, made()) == 8


@pytest.mark.parametrize("there", [True, False])
def test_a_job_claims_its_vault_before_it_trains(tmp_path, monkeypatch, there):
    """Also where it goes on from what is there, and would write after a whole round only."""

    def busy(descriptor, _operation):
        os.pwrite(descriptor, b"process 4711 on silo2", 0)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    defense = keylock({"lock": "paper", "vault": tmp_path / "vault"})
    agreement = defense.describe(model)
    if there:
        before = keylock({"lock": "paper", "vault": tmp_path / "before"})
        before.protect(deepcopy(model), silo=2, agreement=agreement)
        ignored = shutil.ignore_patterns(".*")  # its lock file: this process has claimed that one
        shutil.copytree(tmp_path / "before", tmp_path / "vault", ignore=ignored)
    monkeypatch.setattr(fcntl, "lockf", busy)
    with pytest.raises(VaultError, match="silo 2 is in use by process 4711 on silo2; only one"):
        defense.protect(model, silo=2, agreement=agreement)


def test_a_link_in_the_lock_files_place_is_refused(vault, model, tmp_path):
    (tmp_path / "precious").write_text("mine")
    vault.folder.mkdir(mode=0o700)
    (vault.folder / ".silo-2.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(VaultError, match=r"silo 2 cannot be claimed: .*symbolic links"):
        save(vault, model, round_index=0)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_file_system_without_locks_is_an_error(vault, model, monkeypatch):
    def none(*_arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    with pytest.raises(VaultError, match=r"cannot be claimed: .*No locks available"):
        save(vault, model, round_index=0)
    assert not vault.exists()
