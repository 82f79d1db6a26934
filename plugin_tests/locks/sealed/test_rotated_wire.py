"""`lock: rotated` at the wire: the model stays as it is, and what leaves the silo is rotated."""

from itertools import combinations

import pytest
import torch
from sealed_silos import bits_of, secret
from torch import nn

from fedml_keylock.errors import ConfigError, HostError, UpdateRefused, VaultError
from fedml_keylock.locks import KeyLockConfig, make_lock
from fedml_keylock.locks.rotated.lock import RotatedLock
from fedml_keylock.types import JobSecrets


class Net(nn.Module):
    """Parameters of several shapes, running statistics, and integers of two kinds.

    Large enough for a rotation in passes, and for noise to be told from a model.
    """

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 400)
        self.register_buffer("index", torch.arange(5))


def state_of(seed):
    """A state of the net, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    state = dict(Net().state_dict())
    made = {}
    for name, tensor in state.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        made[name] = tensor.clone() if name == "index" else drawn.to(tensor.dtype)
    made["norm.running_var"] = made["norm.running_var"].abs()
    made["norm.num_batches_tracked"] = torch.tensor(7 + seed)
    return made


FIRST = state_of(0)
REAL = [name for name, tensor in FIRST.items() if tensor.is_floating_point()]


def silo(folder, *, index=0, group=b"", nonce=b"nonce", **more):
    """A silo's lock in a job that has begun, and its model."""
    model = Net()
    lock = make_lock(KeyLockConfig(lock="rotated", vault=folder, **more))
    lock.protect(model, silo=index, agreement=lock.describe(model))
    lock.share(JobSecrets(group or secret("group"), index))
    lock.begin_job(nonce)
    lock.open(model, FIRST, round_index=-1)
    return lock, model


@pytest.fixture
def silos(tmp_path):
    return [silo(tmp_path / str(index), index=index) for index in range(3)]


def averaged(sent):
    """As FedML's server averages."""
    return {n: sum(one[n] * (1 / len(sent)) for one in sent) for n in sent[0]}


def test_averages_come_back_as_they_would_without_a_lock(silos):
    """Guards `RotatedLock.seal` and `open`, round by round; the models are not touched."""
    before = [bits_of(model.state_dict()) for _, model in silos]
    for round_index in range(3):
        own = [state_of(10 * round_index + k) for k in (1, 2, 3)]
        kept = [bits_of(state) for state in own]
        sent = [lock.seal(m, s, samples=1) for (lock, m), s in zip(silos, own, strict=True)]
        assert [bits_of(state) for state in own] == kept
        plain, total = averaged(own), averaged(sent)
        for lock, model in silos:
            opened = lock.open(model, total, round_index=round_index)
            assert opened.keys() == FIRST.keys()
            assert all(torch.allclose(opened[n], plain[n], atol=1e-5) for n in REAL)
            assert opened["index"].tolist() == [0, 1, 2, 3, 4]
            assert opened["index"].dtype == torch.int64
            assert opened["norm.num_batches_tracked"].dtype == torch.int64
    assert [bits_of(model.state_dict()) for _, model in silos] == before


def flat(state):
    """The parameters of a state as one vector: what is rotated together."""
    names = [name for name, _ in Net().named_parameters()]
    return torch.cat([state[name].double().flatten() for name in names])


def test_lengths_and_distances_stay_and_numbers_do_not(silos):
    """Guards what `robust_aggregation` stands on, and what the weakness line says of it."""
    own = [state_of(k) for k in (1, 2, 3)]
    sent = [lock.seal(model, s, samples=1) for (lock, model), s in zip(silos, own, strict=True)]
    for (a, b), (c, d) in zip(combinations(own, 2), combinations(sent, 2), strict=True):
        assert torch.allclose((flat(a) - flat(b)).norm(), (flat(c) - flat(d)).norm(), rtol=1e-5)
    for a, b in zip(own, sent, strict=True):
        assert torch.allclose(flat(a).norm(), flat(b).norm(), rtol=1e-5)
        assert abs(float(nn.functional.cosine_similarity(flat(a), flat(b), dim=0))) < 0.5
        assert all(not torch.allclose(a[name], b[name], atol=1e-2) for name in REAL)


def test_rounds_jobs_and_groups_are_rotated_otherwise(tmp_path, silos):
    """Guards round, nonce and secret in the key: no two have a rotation in common."""
    state, seen = state_of(1), []
    lock, model = silos[0]
    for round_index in range(2):
        seen.append(lock.seal(model, state, samples=1))
        lock.open(model, seen[-1], round_index=round_index)
    others = [{"nonce": b"of another job"}, {"group": secret("another")}]
    for place, more in enumerate(others):
        other, own = silo(tmp_path / f"other {place}", **more)
        seen.append(other.seal(own, state, samples=1))
    for one, two in combinations(seen, 2):
        assert not torch.allclose(flat(one), flat(two), atol=1e-2)
    again, own = silo(tmp_path / "again")
    assert bits_of(again.seal(own, state, samples=1)) == bits_of(seen[0])


def test_a_second_state_in_a_round_is_refused(silos):
    """Guards ``_sent`` in `RotatedLock.seal`."""
    lock, model = silos[0]
    for round_index in range(2):
        sent = lock.seal(model, state_of(1), samples=1)
        for seed in (1, 2):
            said = rf"^round {round_index}: it would send a second state in one round: send one$"
            with pytest.raises(UpdateRefused, match=said):
                lock.seal(model, state_of(seed), samples=1)
        lock.open(model, sent, round_index=round_index)


def test_silos_that_a_process_serves_in_turn_send_one_state_each(tmp_path):
    """Guards ``_silo`` in `RotatedLock.seal`: as in FedML's simulation in one process.

    The second silo's state was refused, as if it were the first one's second.
    """
    model = Net()
    lock = make_lock(KeyLockConfig(lock="rotated", vault=tmp_path))
    lock.protect(model, silo=None, agreement=lock.describe(model))
    lock.share(JobSecrets(secret("group")))
    lock.begin_job(b"nonce")
    total = FIRST
    for round_index in range(2):
        sent = []
        for index in range(3):
            lock.enter_silo(model, silo=index)
            lock.open(model, total, round_index=round_index - 1)
            sent.append(lock.seal(model, state_of(index), samples=1))
        lock.enter_silo(model, silo=1)
        with pytest.raises(UpdateRefused, match="a second state"):
            lock.seal(model, state_of(1), samples=1)
        total = averaged(sent)
    opened = lock.open(model, total, round_index=1)
    plain = averaged([state_of(index) for index in range(3)])
    assert all(torch.allclose(opened[name], plain[name], atol=1e-5) for name in REAL)


def test_integers_that_training_has_changed_are_refused_by_name(silos):
    """Guards `_check_integers`: they are sent as they are. Counts of batches may change."""
    lock, model = silos[0]
    changed = {**state_of(1), "index": torch.tensor([0, 1, 2, 3, 5])}
    with pytest.raises(UpdateRefused, match=r"^index has integers that training has changed"):
        lock.seal(model, changed, samples=1)
    sent = lock.seal(model, state_of(1), samples=1)  # nothing was sent before
    assert sent["norm.num_batches_tracked"] == 8
    # of an average, they are what came
    lock.open(model, {**sent, "index": torch.tensor([0, 1, 2, 3, 4.0])}, round_index=0)
    assert lock.seal(model, state_of(2), samples=1)["index"].dtype == torch.int64


@pytest.mark.parametrize("name", ["conv.weight", "norm.running_mean"])
def test_a_part_of_a_state_is_refused(silos, name):
    """Guards `Rotation.rotate`: one vector is rotated, and it is sent as one."""
    lock, model = silos[0]
    part = {n: tensor for n, tensor in state_of(1).items() if n != name}
    with pytest.raises(UpdateRefused, match=rf"^{name} is missing: .* use lock: sealed for parts"):
        lock.seal(model, part, samples=1)
    lock.seal(model, state_of(1), samples=1)


def test_the_order_of_a_job_is_held_to(tmp_path):
    """Guards `_begun` and the secret in `open`."""
    model = Net()
    lock = make_lock(KeyLockConfig(lock="rotated", vault=tmp_path))
    with pytest.raises(HostError, match="before the job's own was locked"):
        lock.open(model, FIRST, round_index=-1)
    lock.protect(model, silo=0, agreement=lock.describe(model))
    with pytest.raises(HostError, match="no secret to lock with"):
        lock.open(model, FIRST, round_index=-1)
    with pytest.raises(HostError, match="has not seen the job's first model"):
        lock.seal(model, FIRST, samples=1)


@pytest.mark.parametrize("history", [False, True])
def test_the_vault_opens_the_last_average_in_another_process(tmp_path, history):
    """Guards `Rotation.tensors` and `load`, and `load_public`: the round's key and no other's."""
    lock, model = silo(tmp_path / "0", keep_history=history)
    sums = []
    for round_index in range(3):
        sums.append(lock.seal(model, state_of(1), samples=1))
        lock.open(model, sums[-1], round_index=round_index)
    vault = lock._own_vault()
    paths = [None, *([vault.history_path(k) for k in range(3)] if history else [])]
    for path in paths:
        kept, next_round = vault.load(path)
        fresh, reader = Net(), make_lock(KeyLockConfig(lock="rotated", vault=tmp_path / "0"))
        reader.lock(fresh)
        RotatedLock.load_private(fresh, kept)
        last = int(kept["rotated.round"])
        assert path is None or path == vault.history_path(last)
        assert next_round == (last + 1 if path is None else last)
        for round_index, total in enumerate(sums):
            reader.load_public(fresh, total, round_index=round_index, source=tmp_path)
            assert torch.allclose(fresh.conv.weight, state_of(1)["conv.weight"], atol=1e-5)
        with pytest.raises(ConfigError, match="not the average of round 1, as rotated back so it"):
            reader.load_public(fresh, sums[0], round_index=1, source=tmp_path)
    with pytest.raises(VaultError, match=r"that of another lock: rotated\.round"):
        RotatedLock.load_private(fresh, {n: t for n, t in kept.items() if n != "rotated.round"})
    assert paths == [None] or len(paths) == 4


def test_another_lock_s_vault_is_not_written_over(tmp_path, silos):
    """Guards `enter_silo`."""
    lock, model = silo(tmp_path / "own")
    lock.seal(model, state_of(1), samples=1)
    vault = lock._own_vault()
    vault.save({"other": torch.zeros(2)}, round_index=1)
    with pytest.raises(VaultError, match="that of another lock"):
        lock.enter_silo(model, silo=0)


def test_a_part_of_an_average_is_not_opened(silos):
    lock, model = silos[0]
    sent = dict(lock.seal(model, state_of(1), samples=1))
    del sent["head.bias"]
    with pytest.raises(
        UpdateRefused, match=r"^head\.bias is missing: a state under lock: rotated is"
    ):
        lock.open(model, sent, round_index=0)
