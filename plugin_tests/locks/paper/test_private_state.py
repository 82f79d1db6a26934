"""What stays in the silo: where it comes from, and that its bytes are in nothing that leaves it."""

import copyreg
import io
import itertools
import logging
import os
import pickle
import random
import re
import subprocess
import sys
import traceback
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import KeyLockError, PrivateStateError
from fedml_keylock.host.observer import Observer
from fedml_keylock.host.public_state import check_state, public_copy
from fedml_keylock.host.silo_session import SiloSession
from fedml_keylock.locks import (
    KeyLockConfig,
    Vault,
    load_private_state_dict,
    lock_model,
    private_state_dict,
    secret_variables,
)
from fedml_keylock.locks.paper.module import KeyLock, draw_key

CONFIG = KeyLockConfig(lock="paper", layers="all", key_length=64)
WINDOW = 8


def made():
    """One layer with a norm behind it, and one that gets its norm from the lock."""
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3),
        nn.Flatten(),
        nn.Linear(96, 3),
    )


def train(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(torch.rand(6, 1, 8, 8)), torch.arange(6) % 3).backward()
        optimizer.step()


@pytest.fixture
def silo():
    """A locked model that has been trained, so that nothing private is a constant."""
    model = made()
    lock_model(model, CONFIG)
    train(model)
    return model


def secrets_of(model):
    """Everything private in a locked model, and what an attacker would want of it."""
    return private_state_dict(model) | secret_variables(model)


def runs(tensor):
    """The tensor's numbers, cut where it holds a constant that anything may hold."""
    values = tensor.detach().flatten().tolist() if tensor.is_floating_point() else []
    for constant, run in itertools.groupby(values, key=lambda v: v in (0.0, 1.0)):
        if not constant:
            yield torch.tensor(list(run), dtype=tensor.dtype)


def windows(content):
    return {content[i : i + WINDOW] for i in range(len(content) - WINDOW + 1)}


def leaked(model, content):
    """Names of private tensors of which any eight bytes are in the content."""
    seen = windows(content)
    return [
        name
        for name, tensor in secrets_of(model).items()
        if any(seen & windows(run.numpy().tobytes()) for run in runs(tensor))
    ]


NUMBER = re.compile(r"(\d+)\.(\d{3,})(e[+-]\d+)?")


def told(model, text):
    """Names of private tensors of which any number is in the text, to the digits printed."""
    printed = [
        (float(found[0]), 10.0 ** (int((found[3] or "e0")[1:]) - len(found[2])))
        for found in NUMBER.finditer(text)
    ]
    if not printed:
        return []
    numbers, units = torch.tensor(printed, dtype=torch.float64).T
    return [
        name
        for name, tensor in secrets_of(model).items()
        for run in runs(tensor)
        if ((run.double().abs()[:, None] - numbers).abs() <= 0.51 * units + 1e-7 * numbers).any()
    ]


def saved(thing):
    stream = io.BytesIO()
    torch.save(thing, stream)
    return stream.getvalue()


# --- controls: the scanners find what is there


def test_the_scanner_finds_every_private_tensor_in_a_raw_dump(silo):
    secrets = secrets_of(silo)
    floating = {n for n, t in secrets.items() if t.is_floating_point()}
    # per lock: key and its direction, two weights, two biases, gamma, beta; two pairs of statistics
    assert len(floating) == 2 * 8 + 2 * 2
    dump = b"head" + b"".join(t.numpy().tobytes() for t in secrets.values())
    assert floating <= set(leaked(silo, dump))
    for dumped in (pickle.dumps(secrets), saved(secrets)):
        assert floating <= set(leaked(silo, dumped))


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4])
def test_the_scanner_finds_any_eight_bytes(silo, at):
    raw = silo[1].keylock.key.numpy().tobytes()
    assert "1.keylock.key" in leaked(silo, b"\0" * at + raw[4 + at : 12 + at] + b"\0")
    assert leaked(silo, b"\0" * 64) == []


def test_the_text_scanner_finds_a_printed_number(silo):
    secrets = secrets_of(silo)
    for name in ("1.keylock.gamma", "3.keylock.beta", "3.keylock.running_var", "1.keylock.key"):
        for text in (str(secrets[name]), repr(secrets[name].tolist())):
            assert name in told(silo, text)


# --- where the secrets come from


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)  # what FedML does
    torch.manual_seed(seed)


def test_secrets_do_not_follow_any_seed():
    found = []
    for _ in range(2):
        seed_everything(0)
        model = made()
        seed_everything(0)
        lock_model(model, CONFIG)
        found.append(secrets_of(model))
    drawn = ("key", "weight_gamma", "weight_beta", "bias_gamma", "bias_beta", "gamma")
    for name, tensor in found[0].items():
        if name.rsplit(".", 1)[1] in drawn and "keylock" in name:
            # numbers of 24 bits: hardly any two are the same
            assert (tensor == found[1][name]).float().mean() < 0.2, name


def test_the_locks_of_one_model_have_keys_of_their_own():
    model = made()
    lock_model(model, CONFIG)
    assert not torch.equal(model[1].keylock.key, model[3].keylock.key)


def test_locking_leaves_the_seeded_generators_where_they_were():
    seed_everything(3)
    expected = (torch.rand(4), np.random.rand(4), random.random())
    seed_everything(3)
    model = made()
    seed_everything(3)
    lock_model(model, CONFIG)
    assert torch.equal(torch.rand(4), expected[0])
    assert np.array_equal(np.random.rand(4), expected[1])
    assert random.random() == expected[2]


def test_two_processes_with_the_same_seed_have_different_secrets():
    """Children of one process even, which have all that it has."""
    script = (
        "import os, random, numpy, torch\n"
        "from fedml_keylock.locks import KeyLockConfig\n"
        "from fedml_keylock.locks.paper.module import KeyLock\n"
        "child = os.fork()\n"
        "random.seed(0); numpy.random.seed(0); torch.manual_seed(0)\n"
        "lock = KeyLock(4, KeyLockConfig(lock='paper', key_length=8))\n"
        "lines = [torch.rand(1).item()]\n"
        "lines += [t.flatten().tolist() for t in (*lock.parameters(), *lock.buffers())]\n"
        "if child: os.waitpid(child, 0)\n"
        "print(*lines, sep='\\n', flush=True)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    said = run.stdout.splitlines()
    assert len(said) == 2 * 7, run.stderr
    first, second = said[:7], said[7:]
    assert first[0] == second[0]  # they were seeded alike
    assert not set(first[1:]) & set(second[1:])


def test_every_secret_number_comes_from_the_operating_system(monkeypatch):
    asked = []

    def counted(count):
        asked.append(count)
        return bytes(itertools.islice(itertools.cycle(range(1, 252)), count))

    monkeypatch.setattr(os, "urandom", counted)
    channels, length = 5, 16
    config = KeyLockConfig(lock="paper", key_length=length)
    first = KeyLock(channels, config)
    assert sum(asked) == 4 * (length + 2 * 2 * channels)
    second = KeyLock(channels, config)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)  # and from nowhere else
    assert torch.equal(first.key, second.key)


def test_a_key_is_of_unit_length_even_from_zeros():
    assert float(draw_key(1024).norm()) == pytest.approx(1, abs=1e-5)
    assert float(draw_key(7, torch.zeros).norm()) == pytest.approx(1, abs=1e-5)


# --- what leaves the process


def test_no_private_byte_is_in_the_state_dict(silo):
    holder = silo[1]
    states = {
        "model": silo.state_dict(),
        "kept": silo.state_dict(keep_vars=True),
        "prefixed": silo.state_dict(prefix="silo."),
        "holder": holder.state_dict(),
        "lock": holder.keylock.state_dict(),
        "destination": nn.ModuleDict({"a": silo}).state_dict(),
        "sent": public_copy(silo.state_dict()),
    }
    for name, state in states.items():
        assert not any("keylock" in entry for entry in state), name
        assert leaked(silo, pickle.dumps(state)) == [], name
        assert leaked(silo, saved(state)) == [], name
        raw = b"".join(
            bytes(t.detach().untyped_storage().tolist()) for t in state.values()
        )  # the whole memory behind each
        assert leaked(silo, raw) == [], name
    # the control of this very way: a norm's statistics, as an unlocked model would show them
    assert leaked(silo, pickle.dumps(dict(holder._buffers)))


def test_no_private_number_is_in_a_repr(silo):
    info = lock_model(made(), CONFIG)
    silo_info = lock_model(other := made(), CONFIG)
    for text in (repr(silo), str(silo), silo[1].keylock.extra_repr(), repr(CONFIG)):
        assert told(silo, text) == []
        assert leaked(silo, text.encode()) == []
    assert "key_length=64" in repr(silo)  # it does say what it is
    assert str(info) == str(silo_info)  # two silos' secrets, one text
    assert told(other, str(silo_info) + repr(silo_info)) == []


def failures(silo, folder):
    """Every error that the code around a lock can raise on its way out."""
    state = silo.state_dict()
    agreement = keylock(CONFIG.model_dump(exclude={"vault"})).describe(made())
    private = private_state_dict(silo)
    vault = Vault(folder, 0, "aa")
    vault.save(private, round_index=1)
    short = {n: t[:1] if t.dim() else t for n, t in private.items()}
    yield lambda: pickle.dumps(silo)
    yield lambda: torch.save(silo, io.BytesIO())
    yield lambda: lock_model(silo, CONFIG)
    yield lambda: silo(torch.rand(2, 3, 8, 8))
    yield lambda: silo[3].keylock(torch.rand(2, 9, 4, 4))
    yield lambda: silo.load_state_dict({**state, "0.weight": torch.rand(2)})
    yield lambda: load_private_state_dict(silo, short)
    yield lambda: load_private_state_dict(silo, {**private, "more": private["1.keylock.key"]})
    yield lambda: check_state({**state, **private}, agreement, who="silo 0")
    yield lambda: check_state({**state, "1.running_var": silo[1].running_var}, agreement, who="a")
    yield lambda: check_state(private["1.keylock.key"], agreement, who="silo 0")
    yield lambda: Vault(folder, 1, "aa").load(vault.path)
    yield lambda: Vault(folder, 0, "bb").load()
    yield lambda: Vault(vault.path, 0, "aa").save(private, round_index=1)


def test_no_private_number_is_in_an_error(silo, tmp_path):
    raised = 0
    for fail in failures(silo, tmp_path / "vault"):
        with pytest.raises((KeyLockError, RuntimeError)) as caught:
            fail()
        raised += 1
        error = caught.value
        text = "\n".join([*traceback.format_exception(error), repr(error), repr(error.args)])
        assert told(silo, text) == [], text
        assert leaked(silo, text.encode()) == []
    assert raised == 14


def test_no_private_number_is_in_a_log(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    defense = keylock({"lock": "paper", "key_length": 64, "vault": str(tmp_path / "v")})
    args = SimpleNamespace(role="client", rank=1, round_idx=0, comm_round=1)
    session = SiloSession(args, "keylock", defense, Observer(args))
    model = made()
    session.adopt(model)
    session.train(SimpleNamespace(model=model), None, lambda _: train(model))
    assert "locked 0" in caplog.text
    captured = capfd.readouterr()
    for text in (caplog.text, captured.out, captured.err):
        assert told(model, text) == []
        assert leaked(model, text.encode()) == []


def whole(model):
    return model


def locked_layer(model):
    return model[1]


def the_lock(model):
    return model[3].keylock


WAYS_OUT = {
    **{f"pickle-{p}": lambda x, p=p: pickle.dumps(x, p) for p in range(6)},
    "python-pickle": lambda x: pickle._dumps(x),
    "torch.save": lambda x: torch.save(x, io.BytesIO()),
    "torch.save-legacy": lambda x: torch.save(
        x, io.BytesIO(), _use_new_zipfile_serialization=False
    ),
    "multiprocessing": ForkingPickler.dumps,
}


@pytest.mark.parametrize("part", [whole, locked_layer, the_lock])
@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_lock_cannot_be_pickled(silo, way, part):
    with pytest.raises(PrivateStateError, match=r"cannot be pickled.*vault"):
        WAYS_OUT[way](part(silo))


@pytest.mark.parametrize("protocol", range(6))
def test_copyregs_table_does_not_open_the_lock(silo, protocol):
    with pytest.raises(PrivateStateError, match="vault"):
        silo[3].keylock.__reduce_ex__(protocol)
    assert KeyLock not in copyreg.dispatch_table


@pytest.mark.parametrize("legacy", [False, True])
def test_a_failed_save_has_written_nothing_private(silo, legacy, tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(PrivateStateError), path.open("wb") as file:
        torch.save(silo, file, _use_new_zipfile_serialization=not legacy)
    assert leaked(silo, path.read_bytes()) == []
    with pytest.raises(PrivateStateError), path.open("wb") as file:
        pickle.dump(silo, file)
    assert leaked(silo, path.read_bytes()) == []


def test_the_public_state_can_be_saved_and_loaded(silo, tmp_path):
    torch.save(silo.state_dict(), tmp_path / "public.pt")
    server = made()
    server.load_state_dict(torch.load(tmp_path / "public.pt", weights_only=True))
    assert torch.equal(server[0].weight, silo[0].weight)


STATISTICS = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


def test_a_locked_norms_statistics_are_neutral_outside_and_kept_inside(silo):
    norm, state = silo[1], silo.state_dict()
    own = {name: getattr(norm, name).clone() for name in STATISTICS}
    for name, neutral in STATISTICS.items():
        assert torch.equal(state[f"1.{name}"], torch.full_like(own[name], neutral))
        assert not torch.equal(own[name], torch.full_like(own[name], neutral))
        # what is shown is no view of what is private
        assert state[f"1.{name}"].untyped_storage().data_ptr() != (
            getattr(norm, name).untyped_storage().data_ptr()
        )
    incoming = {n: t + 5 for n, t in state.items()}
    silo.load_state_dict(incoming)
    for name in STATISTICS:
        assert torch.equal(getattr(norm, name), own[name])
        assert torch.equal(silo.state_dict()[f"1.{name}"], state[f"1.{name}"])
    assert torch.equal(silo[0].weight, incoming["0.weight"])


def test_a_locked_norms_statistics_are_shared_when_asked_for():
    model = made()
    lock_model(model, CONFIG.model_copy(update={"share_norm_statistics": True}))
    train(model)
    norm, state = model[1], {n: t.clone() for n, t in model.state_dict().items()}
    for name in STATISTICS:
        assert torch.equal(state[f"1.{name}"], getattr(norm, name))
        assert not torch.equal(state[f"1.{name}"], made().state_dict()[f"1.{name}"])
        assert f"1.{name}" not in private_state_dict(model)
    model.load_state_dict({n: t + 5 for n, t in state.items()})
    for name in STATISTICS:
        assert torch.equal(getattr(norm, name), state[f"1.{name}"] + 5)


def test_a_locks_own_statistics_are_private_whatever_is_shared():
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.Flatten(), nn.Linear(180, 3))
    lock_model(model, CONFIG.model_copy(update={"share_norm_statistics": True}))
    train(model)
    lock = model[0].keylock
    assert not torch.equal(lock.running_mean, torch.zeros(5))
    assert {"0.keylock.running_mean", "0.keylock.running_var"} <= set(private_state_dict(model))
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert leaked(model, pickle.dumps(model.state_dict())) == []


def test_a_private_copy_is_a_copy(silo):
    before = private_state_dict(silo)
    for tensor in private_state_dict(silo).values():
        tensor.zero_()
    assert all(torch.equal(t, before[n]) for n, t in private_state_dict(silo).items())
