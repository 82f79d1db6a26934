"""A search that was stopped goes on where it was, and ends where it would have."""

import os
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import interpolate

from fedml_keylock.errors import AttackError
from fedml_keylock.inversion import Knowledge, dlg, inverting_gradients
from fedml_keylock.inversion.engine import batches as engine
from fedml_keylock.inversion.engine.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Knowledge("oblivious", input_shape=(3, 16, 16), classes=10)


@pytest.fixture
def update(photos, lenet, make_update):
    crops = interpolate(photos[:2], size=(16, 16), mode="area").split(1)
    return [make_update(lenet(3, 16), x, torch.tensor([i])) for i, x in enumerate(crops)]


@pytest.fixture
def always(monkeypatch):
    """Checkpoints are due at every look, and not once a minute."""
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)


def run(attack, updates, model, path=None, stop_at=None, seed=0):
    def progress(done, total):
        if stop_at is not None and done >= stop_at:
            raise KeyboardInterrupt

    return attack.reconstruct(
        updates,
        model,
        knowledge=KNOWN,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
        checkpoint=path,
    )


ATTACKS = [
    inverting_gradients(steps=60, restarts=2),
    inverting_gradients(steps=60, restarts=2, chunk=1),
    dlg(steps=3, restarts=2),
    inverting_gradients(steps=60, optimizer="rmsprop", momentum=0.9, learning_rate=0.01),
    inverting_gradients(steps=20, restarts=2, chunk=1, optimizer="cma", population=4),
]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("attack", ATTACKS, ids=["adam", "chunks", "lbfgs", "rmsprop", "cma"])
def test_it_ends_where_it_would_have(attack, update, lenet, tmp_path):
    path = tmp_path / "search.safetensors"
    whole = run(attack, update, lenet(3, 16))
    for stop_at in (25, 45):  # twice: what was loaded is saved again
        with pytest.raises(KeyboardInterrupt):
            run(attack, update, lenet(3, 16), path, stop_at)
        assert path.exists()
    resumed = run(attack, update, lenet(3, 16), path)
    for name in ("images", "labels", "cost", "history", "diverged"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)), name
    assert not path.exists()


@pytest.mark.usefixtures("always")
def test_what_was_done_is_not_done_again(update, lenet, tmp_path, monkeypatch):
    path, attack = tmp_path / "search.safetensors", inverting_gradients(steps=60, chunk=1)
    with pytest.raises(KeyboardInterrupt):
        run(attack, update, lenet(3, 16), path, stop_at=100)
    searched = []
    search = engine.search
    monkeypatch.setattr(
        engine,
        "search",
        lambda *args, **more: (
            searched.append(int(more["state"]["evaluation"])) or search(*args, **more)
        ),
    )
    run(attack, update, lenet(3, 16), path)
    assert len(searched) == 1  # of two batches of candidates the first was done
    assert searched[0] >= 30


@pytest.mark.usefixtures("always")
def test_it_is_the_owner_s_alone_and_of_one_search(update, lenet, tmp_path):
    path, attack = tmp_path / "of" / "search.safetensors", inverting_gradients(steps=60)
    old = os.umask(0)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(attack, update, lenet(3, 16), path, stop_at=30)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for other, updates, seed in [
        (attack, update, 1),
        (attack, update[:1], 0),
        (replace(attack, steps=61), update, 0),
    ]:
        with pytest.raises(AttackError, match="is of another attack, or of other updates"):
            run(other, updates, lenet(3, 16), path, seed=seed)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(AttackError, match="damaged"):
        run(attack, update, lenet(3, 16), path)


def test_a_checkpoint_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoint = Checkpoint(tmp_path / "file" / "search.safetensors", "00ff")
    with pytest.raises(AttackError, match="cannot be written"):
        checkpoint.save({"rows": torch.ones(1)})


def test_once_a_minute(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fedml_keylock.inversion.engine.checkpoint.time.monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path / "search.safetensors", "00ff")
    assert not checkpoint.due()
    now[0] = 61.0
    assert checkpoint.due()
    checkpoint.save({"rows": torch.ones(1)})
    assert not checkpoint.due()
