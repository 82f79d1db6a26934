"""A capture is what was written, or one clear error; reading it executes nothing."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.types import ClientUpdate

STATE = {"conv.weight": torch.ones(2, 1, 3, 3), "steps": torch.tensor(3)}


def update(silo=0, round_index=0, state=STATE):
    after = {name: value + silo + 1 for name, value in state.items()}
    return ClientUpdate(state, after, 0.1, samples=7, silo=silo, round=round_index)


@pytest.fixture
def folder(tmp_path):
    capture = Capture.create(tmp_path / "capture", {"learning_rate": 0.1, "defense": None})
    for round_index in (0, 5):
        for silo in (0, 1):
            capture.add(update(silo, round_index))
    capture.finish(STATE)
    return capture.folder


def read_all(folder):
    capture = Capture.open(folder)
    capture.final()
    return list(capture.each())


def test_what_comes_back_is_what_was_added(folder):
    capture = Capture.open(folder)
    assert capture.entries() == [(0, 0), (0, 1), (5, 0), (5, 1)]
    assert capture.rounds() == [0, 5]
    assert [u.silo for u in capture.updates(5)] == [0, 1]
    found = capture.load(5, 1)
    assert (found.samples, found.learning_rate, found.round) == (7, 0.1, 5)
    assert all(torch.equal(found.after[name], value + 2) for name, value in STATE.items())
    assert all(torch.equal(value, STATE[name]) for name, value in capture.final().items())


def test_a_round_is_sent_once_and_shared(folder):
    first, second, third, _ = read_all(folder)
    assert first.before is second.before
    assert first.before is not third.before
    assert len(list(folder.glob("round-*/sent.safetensors"))) == 2


def test_nothing_of_the_updates_stays_in_memory(folder):
    capture = Capture.open(folder)
    capture.add(update(2, 5))
    assert capture._sent == (-1, {})
    assert not any(isinstance(value, torch.Tensor) for value in capture._files.values())


def test_tied_and_strided_tensors_are_kept(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    state = {"a": whole.t(), "b": whole.t(), "c": whole[1]}
    Capture.create(tmp_path / "c", {"learning_rate": 1.0}).add(ClientUpdate(state, state, 1.0))
    back = Capture.open(tmp_path / "c").load(0, 0).after
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_a_trainer_may_send_fewer_names(tmp_path):
    capture = Capture.create(tmp_path / "c", {"learning_rate": 1.0})
    capture.add(ClientUpdate(STATE, {"conv.weight": torch.zeros(2, 1, 3, 3)}, 1.0))
    assert list(Capture.open(tmp_path / "c").load(0, 0).after) == ["conv.weight"]


SILO, SENT = "round-00005/silo-1.safetensors", "round-00000/sent.safetensors"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def indexed(folder, name, content):
    """Put a file and its line in the index there: by somebody who knows the format."""
    (folder / name).write_bytes(content)
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    for line in lines:
        if line["file"] == name:
            line |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def as_index(folder, change):
    index = folder / "index.jsonl"
    index.write_text(change(index.read_text()))


DAMAGE = {
    "a bit of an update": (lambda f: flip(f / SILO), f"{SILO}: it is not what was written"),
    "a bit of what was sent": (lambda f: flip(f / SENT), f"{SENT}: it is not what was written"),
    "the end of an update": (lambda f: cut(f / SILO), f"{SILO}: it has .* bytes, and"),
    "the end of the last state": (lambda f: cut(f / "final.safetensors"), "final.safetensors: it"),
    "a silo": (lambda f: (f / SILO).unlink(), f"{SILO}: it is missing"),
    "a silo more": (
        lambda f: save_file(STATE, f / "round-00005/silo-7.safetensors"),
        "silo-7.safetensors: the index does not list it",
    ),
    "a pickle": (
        lambda f: indexed(f, SILO, pickle.dumps(Bomb())),
        f"{SILO}: this is no safetensors file",
    ),
    "another model's": (
        lambda f: indexed(f, SILO, save({"conv.weight": torch.ones(4, 1, 3, 3)})),
        "conv.weight is .*4, 1, 3, 3.*, and .*2, 1, 3, 3",
    ),
    "a name more": (lambda f: indexed(f, SILO, save({"x": torch.ones(1)})), "x is .* not there"),
    "the index": (lambda f: (f / "index.jsonl").unlink(), "not a capture of this version"),
    "the end of the index": (lambda f: as_index(f, lambda t: t[:-9]), "line 8: it was truncated"),
    "a path out of it": (
        lambda f: as_index(f, lambda t: t.replace(SILO, "../../etc/passwd")),
        "'../../etc/passwd' is no file of a capture",
    ),
    "no numbers in the index": (
        lambda f: as_index(f, lambda t: t.replace('"samples": 7', '"samples": [7]')),
        "is no file of a capture",
    ),
    "the learning rate": (
        lambda f: indexed(f, "capture.json", b'{"schema": "fedml-keylock/capture/2"}'),
        "learning_rate None is not above 0",
    ),
    "the schema": (
        lambda f: indexed(f, "capture.json", b'{"schema": "fedml-keylock/capture/9"}'),
        "not a capture of this version",
    ),
    "its meta": (lambda f: (f / "capture.json").write_text("{}"), "capture.json: it has 2 bytes"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_not_as_it_was_is_one_clear_error(folder, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, said = DAMAGE[what]
    read_all(folder)
    damage(folder)
    with pytest.raises(AttackError, match=said) as error:
        read_all(folder)
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_a_job_that_was_killed_leaves_a_capture_without_an_end(tmp_path):
    capture = Capture.create(tmp_path / "c", {"learning_rate": 1.0})
    capture.add(update())
    opened = Capture.open(tmp_path / "c")
    assert len(opened.updates()) == 1
    with pytest.raises(AttackError, match="the job did not end"):
        opened.final()


def test_a_capture_is_not_written_over(folder):
    with pytest.raises(AttackError, match="holds a capture already"):
        Capture.create(folder, {"learning_rate": 0.1})
    with pytest.raises(AttackError, match="no update of silo 9"):
        Capture.open(folder).load(0, 9)
