"""The vault when its process is killed, its disk is full, or another process is at it."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fedml_keylock.errors import VaultError
from fedml_keylock.locks.vault.silo import claim_silo

LOOP = Path(__file__).with_name("vault_loop.py")
PASSPHRASE = "correct horse"
LIMIT, KILLS = 300, 100
"""Seconds for all of them together, which take 10 on two cores that have nothing else to do."""


def command(*arguments):
    return [sys.executable, str(LOOP), *map(str, arguments)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vaults")


@pytest.fixture(scope="module")
def found(folder):
    done = subprocess.run(
        command("harm", folder, KILLS, PASSPHRASE),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize(("form", "kills"), [("plain", KILLS), ("encrypted", KILLS // 2)])
def test_a_killed_process_leaves_a_whole_vault(found, form, kills):
    """SIGKILL at random instants, real training in between: the last round or the one before."""
    killed = found[f"kill {form}"]
    assert len(killed) == kills
    saved, digests = None, {}
    last = Counter(one["said"][-1][0] for one in killed)
    for one in killed:
        assert "error" not in one, one
        digests |= {words[1]: words[2] for words in one["said"] if words[0] == "saving"}
        complete = [words[1] for words in one["said"] if words[0] == "saved"]
        saved = complete[-1] if complete else saved
        assert one["unfinished"] <= 1  # what the one before left was removed
        if "round" not in one:
            assert saved is None
            continue
        assert saved is None or saved <= one["round"] <= saved + 1
        assert one["digest"] == digests[one["round"]]
        saved = one["round"]
    # the kills were where they hurt, within a save, and elsewhere; on a disk a third to a half of
    # those within have left an unfinished file
    assert last["saving"] >= kills / 20
    assert last["saved"] + last["begun"] >= kills / 20
    assert saved > kills / 20


@pytest.mark.parametrize("form", ["plain", "encrypted"])
def test_a_full_disk_leaves_the_old_state(found, form, folder):
    path = folder / ("full" if form == "plain" else "full-encrypted") / "silo-2.safetensors"
    assert found[f"full {form}"] == {
        "error": f"vault {path}: cannot be written: File too large",
        "untouched": True,
        "round": 7,
        "same": True,
        "files": [".silo-2.lock", "silo-2.safetensors"],
        "then": 9,
    }


def test_only_one_process_writes_a_silos_vault(tmp_path):
    """And what it forked, which may live longer, neither writes in its place nor blocks others."""
    holder = subprocess.Popen(command("hold", tmp_path), stdout=subprocess.PIPE, text=True)
    child = None
    try:
        lines = {holder.stdout.readline().strip() for _ in range(2)}
        child = next(int(line) for line in lines if line.isdigit())
        (said,) = (line for line in lines if not line.isdigit())
        assert f"silo 2 is in use by process {holder.pid} on " in said
        with pytest.raises(VaultError) as caught:
            claim_silo(tmp_path, 2)
        assert str(caught.value) == said
        assert "\n" not in said
        assert "end that one first, or name another folder in keylock.vault" in said
        claim_silo(tmp_path, 20)  # another silo's is free
        holder.kill()
        holder.wait(timeout=10)
        os.kill(child, 0)  # it is still there
        claim_silo(tmp_path, 2)
    finally:
        holder.kill()
        holder.wait(timeout=10)
        if child is not None:
            os.kill(child, signal.SIGKILL)
        holder.stdout.close()
