"""Whatever is written into a vault's folder is its owner's only, whatever the umask."""

import os
import stat

import pytest
import torch

from fedml_keylock.disk import append_private
from fedml_keylock.errors import VaultError
from fedml_keylock.locks.vault import Vault


@pytest.fixture
def vault(tmp_path):
    before = os.umask(0)
    made = Vault(tmp_path / "vault", 2, "a1", None)
    yield made
    made.release()
    os.umask(before)


def test_all_that_is_written_is_its_owner_s_only(vault):
    vault.claim()
    state = {"key": torch.ones(3)}
    vault.save(state, round_index=1)
    vault.keep(state, round_index=0)
    append_private(vault.folder / "silo-2.log", "round 0")
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in vault.folder.rglob("*")}
    assert len([path for path in found if path.is_file()]) == 4  # lock, state, history, log
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in found.items())


@pytest.mark.parametrize("name", [".silo-2.lock", "silo-2.log"])
def test_nothing_is_written_through_a_link(vault, tmp_path, name):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    vault.folder.mkdir(mode=0o700)
    (vault.folder / name).symlink_to(elsewhere)
    with pytest.raises(VaultError, match=r"[Ss]ymbolic link"):
        vault.claim() if name.endswith("lock") else append_private(vault.folder / name, "x")
    assert elsewhere.read_text() == "kept"
