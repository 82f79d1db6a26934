"""Masks: they cancel in FedAvg's average, and alone they are noise that hides what it is put on."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from fedml_keylock.locks.rotated.mask import (
    LEAST,
    LEAST_BUFFER,
    MOST,
    NARROW,
    WIDTH,
    masked,
    rounding,
    scales_of,
)
from fedml_keylock.locks.rotated.state import state_lock
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, HostError, LockError, UpdateRefused
from fedml_keylock.locks import job_key, lock_model, unlock_model
from fedml_keylock.locks.entropy import Stream
from fedml_keylock.locks.job_key import JobKey
from fedml_keylock.locks.rotated import mask as mask_module
from fedml_keylock.locks.rotated.turns import Part, Turns
from fedml_keylock.types import JobSecrets

PARTS = (Part("parameters", ("w", "b")), Part("norm.running_mean", ("norm.running_mean",)))
ROOT = bytes(range(32))


def state(seed=0, size=6):
    draw = torch.Generator().manual_seed(seed)
    sizes = {"w": (size, 2), "b": (size,), "norm.running_mean": (size,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in sizes.items()}


def pairs_of(number):
    """By silo, and for each by the other one, the secrets of each two of so many."""
    found = {silo: {} for silo in range(number)}
    for index, (one, two) in enumerate(combinations(range(number), 2)):
        found[one][two] = found[two][one] = bytes([index] * 32)
    return found


def silos(*samples):
    """Each silo's key, by how many samples it has."""
    numbers = dict(enumerate(samples))
    return [JobKey(ROOT, silo, pairs, numbers) for silo, pairs in pairs_of(len(samples)).items()]


def mask_of(key, round_index=0, *, size=6):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state(size=size).items()}
    return masked(zeros, PARTS, dict.fromkeys((p.label for p in PARTS), 1.0), key, round_index)


@given(samples=st.lists(st.integers(1, 10_000), min_size=2, max_size=6), index=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_they_cancel_in_the_average_that_fedavg_makes(samples, index):
    own = [state(silo) for silo in range(len(samples))]
    scales = scales_of(PARTS, state())
    average, wanted = ({n: torch.zeros_like(t).double() for n, t in state().items()} for _ in "ab")
    for mine, number, key in zip(own, samples, silos(*samples), strict=True):
        share = number / sum(samples)
        sent = masked(mine, PARTS, scales, key, index)
        for name, tensor in sent.items():
            assert (tensor - mine[name]).abs().max() > 10
            average[name] += share * tensor.double()
            wanted[name] += share * mine[name].double()
    for name, tensor in wanted.items():
        # float32 of the widest mask, of the silo with the fewest samples
        bound = 1e-6 * WIDTH * len(samples) * max(scales.values())
        assert (average[name] - tensor).abs().max() < bound, name


def test_a_mask_is_normal_and_as_wide_as_is_said():
    one, _ = silos(1, 1)
    found = mask_of(one, size=20_000)
    for names, width in ((("w", "b"), WIDTH), (("norm.running_mean",), NARROW)):
        flat = torch.cat([found[name].flatten() for name in names]).double()
        assert kstest(flat.numpy() / width, "norm").pvalue > 1e-3
    # of as many silos as there are, each adds its own
    four, *_ = silos(1, 1, 1, 1, 1)
    assert mask_of(four, size=20_000)["w"].std() == pytest.approx(2 * WIDTH, rel=0.02)


def test_none_is_like_another():
    """Other rounds, pairs, keys and parts have other masks: no difference of two takes them off."""
    one, two, three = silos(1, 1, 1)
    found = [mask_of(one), mask_of(one, 1), mask_of(two), mask_of(three)]
    found += [mask_of(replace(one, root=bytes([1] * 32))), mask_of(one, 256)]
    flat = [torch.cat([t.flatten() for t in one.values()]) for one in found]
    flat.append(found[0]["norm.running_mean"] * WIDTH / NARROW)
    for first, second in combinations(flat, 2):
        length = min(len(first), len(second))
        for sign in (1, -1):
            assert not torch.isclose(first[:length], sign * second[:length], rtol=1e-3).any()


@pytest.mark.parametrize("byte", [0, 255])
def test_the_rarest_numbers_are_finite_and_not_on_a_grid(monkeypatch, byte):
    """Of 24 bits alone two neighbours five deviations out are 0.04 apart: many weights' size."""
    monkeypatch.setattr(Stream, "draw", lambda _self, count: bytes([byte] * count))
    assert 8 < abs(float(mask_module._noise(1, Stream(b"")))) < 9
    # some way from the end, neighbours are next to one another
    drawn = [bytes([0, at, 0, 64, 0, 0, 0, 0]) for at in (0, 16)]
    found = []
    for one in drawn:
        monkeypatch.setattr(Stream, "draw", lambda _self, _count, one=one: one)
        found.append(float(mask_module._noise(1, Stream(b""))))
    assert found[0] < -5
    assert 0 < found[1] - found[0] < 1e-4


def test_who_takes_them_off_has_what_was_there():
    one, _ = silos(7, 3)
    scales = scales_of(PARTS, state())
    sent = masked(state(), PARTS, scales, one, 3)
    back = masked(sent, PARTS, scales, one, 3, undo=True)
    for name, tensor in state().items():
        torch.testing.assert_close(back[name], tensor, atol=2e-3, rtol=0)
    assert (masked(sent, PARTS, scales, one, 2, undo=True)["w"] - state()["w"]).abs().max() > 10
    assert masked(state(), PARTS, scales, one.unpaired(), 3) == {}


def test_what_is_nothing_is_hidden_too():
    assert scales_of(PARTS, {n: t * 0 for n, t in state().items()}) == {
        "parameters": LEAST,
        "norm.running_mean": LEAST_BUFFER,
    }


@pytest.fixture
def streams(monkeypatch):
    """Of what streams are made: their seeds, and with how many threads."""
    made = []

    def stream(seed):
        made.append((seed, torch.get_num_threads()))
        return Stream(seed)

    monkeypatch.setattr(job_key, "Stream", stream)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield made
    torch.set_num_threads(threads)


def test_no_stream_serves_two_ends_and_all_are_computed_with_in_one_thread(streams):
    pairs = {2: b"b" * 32, 0: b"a" * 32}
    key = JobKey(ROOT, 1, pairs, dict.fromkeys(range(3), 1))
    Turns(PARTS, key, 258).turned(state())
    masked(state(), PARTS, scales_of(PARTS, state()), key, 258)
    made, threads = list(zip(*streams, strict=True))
    assert set(threads) == {1}
    assert torch.get_num_threads() == 2
    streams.clear()
    for part in PARTS:
        key.stream(f"rotation {part.label}", 258)
    for part in PARTS:  # in the same order in each silo
        for peer in (0, 2):
            key.stream(f"mask {part.label}", 258, peer=peer)
    assert list(made) == [seed for seed, _ in streams]
    assert len(set(made)) == len(made) == 6


class Net(nn.Module):
    """Weights, some of them not trained, a batch norm, and a buffer that says which entries count.

    Args:
        seed: of the weights.

    """

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.base, self.layer = nn.Linear(6, 6), nn.Linear(6, 3)
        self.base.requires_grad_(False)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("seen", torch.ones(6, 6).tril())

    def forward(self, x):
        return self.layer(self.norm(self.base(x)))


def job(silos_number=3, *, mask=True, make=Net, samples=(), **settings):
    """Silos that have agreed and have got the first model, as far as their first upload."""
    made, samples = [], dict(enumerate(samples or [5] * silos_number))
    for silo, pairs in pairs_of(silos_number).items():
        defense, model = keylock(settings | {"mask": mask}), make()
        defense.protect(model, silo=silo, agreement=defense.describe(model))
        defense.share(JobSecrets(bytes(32), silo, pairs if mask else {}, samples))
        made.append((defense, model))
    first = {name: tensor.clone() for name, tensor in made[0][1].state_dict().items()}
    for defense, model in made:
        defense.receive(model, first, round_index=-1)
        model.load_state_dict(first)
        defense.begin_round(model, round_index=0)
    return made


def train(model, seed):
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(5, 6, generator=draw)
        nn.functional.cross_entropy(model(x), torch.arange(5) % 3).backward()
        optimizer.step()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """For the silos' vaults."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("mask", [True, False])
def test_what_is_not_trained_comes_back_as_it_was(mask):
    """Bit by bit, round after round: zeros stay zeros, and what was frozen does not wander."""
    made = job(mask=mask)
    for index in range(3):
        for number, (defense, model) in enumerate(made):
            defense.begin_round(model, round_index=index)
            train(model, 10 * index + number)
        sent = [defense.release(model, model.state_dict(), samples=5) for defense, model in made]
        mean = {name: sum(state[name] for state in sent) / 3 for name in sent[0]}
        for defense, model in made:
            defense.receive(model, mean, round_index=index)
            model.load_state_dict(mean)
    for _, model in made:
        assert torch.equal(model.seen, torch.ones(6, 6).tril())
        assert torch.equal(model.base.weight, Net().base.weight)
        # the control: what is trained has moved, for all alike
        assert not torch.allclose(model.layer.weight, Net().layer.weight, atol=1e-2)
        assert torch.allclose(model.layer.weight, made[0][1].layer.weight, atol=1e-3)
        assert torch.allclose(model.norm.running_mean, made[0][1].norm.running_mean, atol=1e-2)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("mask", [True, False])
def test_statistics_that_training_has_changed_are_averaged_however_small(mask):
    made = job(mask=mask)
    for number, (_, model) in enumerate(made):
        model.norm.running_var.fill_(1e-4 * (1 + number))
    sent = [defense.release(model, model.state_dict(), samples=5) for defense, model in made]
    mean = {name: sum(state[name] for state in sent) / 3 for name in sent[0]}
    for defense, model in made:
        defense.receive(model, mean, round_index=0)
        model.load_state_dict(mean)
    for _, model in made:
        assert torch.equal(model.norm.running_var, made[0][1].norm.running_var)
        torch.testing.assert_close(
            model.norm.running_var.mean(), torch.tensor(2e-4), atol=2e-5, rtol=0
        )


@pytest.mark.usefixtures("folder")
def test_what_is_released_is_under_the_masks_of_its_round_and_of_what_was_received():
    (defense, model), *_ = job()
    # larger than the first and than the model is now
    received = {name: 3 * tensor for name, tensor in model.state_dict().items()}
    defense.receive(model, received, round_index=2)
    defense.begin_round(model, round_index=3)
    shown, lock = model.state_dict(), state_lock(model)
    kept = {name: tensor.clone() for name, tensor in shown.items()}
    sent = defense.release(model, shown, samples=5)
    key = JobKey(lock.key.root, 0, pairs_of(3)[0], dict.fromkeys(range(3), 5))
    under = masked(shown, lock.parts, scales_of(lock.parts, received), key, 3)
    assert {"base.weight", "layer.weight", "norm.running_var", "seen"} <= under.keys()
    for name, tensor in kept.items():
        assert torch.equal(shown[name], tensor)  # it is not changed in its place
        assert torch.equal(sent[name], under.get(name, tensor)), name
        assert name not in under or (sent[name] - tensor).abs().max() > 10


def with_statistics_in(dtype):
    model = Net()
    model.norm.to(dtype)
    for parameter in model.norm.parameters():
        parameter.data = parameter.data.float()
    return model


@pytest.mark.usefixtures("folder")
class TestRefused:
    """What masks would not hide, or would not survive."""

    def test_a_second_state_in_one_round(self):
        (defense, model), *_ = job()
        train(model, 0)
        one = model.state_dict()
        sent = [defense.release(model, one, samples=5) for _ in range(2)]  # again the same
        assert all(torch.equal(sent[0][name], sent[1][name]) for name in one)
        train(model, 1)
        with pytest.raises(UpdateRefused, match="a second state in one round"):
            defense.release(model, model.state_dict(), samples=5)
        defense.receive(model, one, round_index=0)
        defense.begin_round(model, round_index=1)
        defense.release(model, model.state_dict(), samples=5)
        defense.begin_round(model, round_index=0)
        with pytest.raises(UpdateRefused, match="a second state in one round"):
            defense.release(model, model.state_dict(), samples=5)

    @pytest.mark.parametrize("weights", [(0.4, 0.3, 0.3), (0.5, 0.5, 0), (1, 0, 0)])
    def test_an_average_in_which_masks_have_not_cancelled(self, weights):
        made = job()
        sent = [defense.release(model, model.state_dict(), samples=5) for defense, model in made]
        for shares, fits in ((weights, False), ((1 / 3, 1 / 3, 1 / 3), True)):
            mean = {
                name: sum(share * state[name] for share, state in zip(shares, sent, strict=True))
                for name in sent[0]
            }
            for defense, model in made:
                if fits:
                    defense.receive(model, mean, round_index=0)
                    continue
                with pytest.raises(UpdateRefused, match=r"its masks have not cancelled.*mask: fal"):
                    defense.receive(model, mean, round_index=0)

    def test_but_no_average_of_a_small_model(self):
        """Its mask is as wide as a larger model's, so that its average is measured as one."""

        def small():
            model = Net()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter *= LEAST / 100
            return model

        made = job(make=small)
        sent = [defense.release(model, model.state_dict(), samples=5) for defense, model in made]
        mean = {name: sum(state[name] for state in sent) / 3 for name in sent[0]}
        for defense, model in made:
            defense.receive(model, mean, round_index=0)
            with pytest.raises(UpdateRefused, match="its masks have not cancelled"):
                defense.receive(model, sent[0], round_index=0)

    def test_one_state_in_one_round_under_masks_of_another_width(self):
        """Two of them would tell the mask, and so the state."""
        (defense, model), *_ = job()
        one = model.state_dict()
        defense.release(model, one, samples=5)
        defense.receive(model, {name: 3 * t for name, t in one.items()}, round_index=0)
        defense.begin_round(model, round_index=0)
        again = model.state_dict()
        assert all(torch.equal(again[name], one[name]) for name in one)
        with pytest.raises(UpdateRefused, match="a second state in one round"):
            defense.release(model, again, samples=5)

    def test_a_part_that_has_outgrown_its_mask(self):
        (defense, model), (other, same), _ = job()
        with torch.no_grad():
            model.norm.running_var.fill_(MOST + 1)
            same.norm.running_var.fill_(MOST - 1)
        with pytest.raises(UpdateRefused, match=r"norm.running_var has become more than 16 times"):
            defense.release(model, model.state_dict(), samples=5)
        other.release(same, same.state_dict(), samples=5)
        (defense, model), *_ = job(mask=False)
        with torch.no_grad():
            model.norm.running_var.fill_(1e6)
        defense.release(model, model.state_dict(), samples=5)

    def test_a_number_of_samples_that_was_not_agreed_on(self):
        for samples in (4, 6):
            (defense, model), *_ = job()
            with pytest.raises(UpdateRefused, match=f"has {samples} samples and said 5 when"):
                defense.release(model, model.state_dict(), samples=samples)
        (defense, model), *_ = job(mask=False)
        defense.release(model, model.state_dict(), samples=6)

    @pytest.mark.parametrize("mask", [True, False])
    def test_what_the_lock_has_not_made_in_this_round(self, mask):
        (defense, model), *_ = job(mask=mask)
        past = model.state_dict()
        own = {name: t.detach().clone() for name, t in model.named_parameters()}
        own |= dict(model.named_buffers())
        defense.begin_round(model, round_index=1)
        shown = model.state_dict()
        step = {**shown, "layer.weight": shown["layer.weight"] - past["layer.weight"]}
        for state in (past, own, step, {**shown, "layer.weight": own["layer.weight"]}):
            with pytest.raises(UpdateRefused, match="was not made by the lock"):
                defense.release(model, state, samples=5)
        defense.release(model, shown, samples=5)

    def test_a_first_model_before_there_is_a_secret(self):
        defense, model = keylock({}), Net()
        defense.protect(model, silo=None, agreement=defense.describe(model))
        with pytest.raises(HostError, match="the silos have no secret to lock with"):
            defense.receive(model, Net().state_dict(), round_index=-1)
        assert state_lock(model).key is None

    @pytest.mark.parametrize("then", ["receive", "begin_round", "end_round", "release"])
    def test_a_model_that_was_locked_anew(self, then):
        """Its lock is under another key and has no masks, in round 0 too."""
        (defense, model), (other, same), _ = job()
        unlock_model(model)
        lock_model(model)
        for one, its in ((defense, model), (other, same)):
            shown = its.state_dict()
            calls = {
                "receive": lambda one=one, its=its, shown=shown: one.receive(
                    its, shown, round_index=0
                ),
                "begin_round": lambda one=one, its=its: one.begin_round(its, round_index=0),
                "end_round": lambda one=one, its=its: one.end_round(its, round_index=0),
                "release": lambda one=one, its=its, shown=shown: one.release(its, shown, samples=5),
            }
            if one is other:
                calls[then]()
                continue
            with pytest.raises(LockError, match="the model was unlocked or locked anew"):
                calls[then]()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_numbers_of_too_few_digits(self, dtype):
        with pytest.raises(ConfigError, match=r"keylock.mask: base.weight is .*mask: false"):
            job(make=lambda: Net().to(dtype))
        job(make=lambda: Net().to(dtype), mask=False)
        job(make=lambda: Net().double())
        with pytest.raises(ConfigError, match=r"keylock.mask: norm.running_mean is "):
            job(make=lambda: with_statistics_in(dtype))


class Counting(Net):
    """With integers wherever a state may have them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("places", torch.arange(6))
        self.register_buffer("labels", torch.zeros(3, dtype=torch.long))
        self.register_buffer("num_batches_tracked", torch.zeros(3, dtype=torch.long))
        self.index = nn.Parameter(torch.arange(199), requires_grad=False)
        self.packed = torch.zeros(8, dtype=torch.uint8)

    def get_extra_state(self):
        return self.packed

    def set_extra_state(self, state):
        self.packed = state


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("mask", [True, False])
def test_integers_that_training_changes_are_not_sent(mask):
    (defense, model), *_ = job(make=Counting, mask=mask)
    train(model, 0)  # batches are counted, and that is no matter
    sent = defense.release(model, model.state_dict(), samples=5)
    assert torch.equal(sent["places"], torch.arange(6))
    assert int(sent["norm.num_batches_tracked"]) == 3
    for name in ("labels", "num_batches_tracked", "index", "packed"):
        (defense, model), *_ = job(make=Counting, mask=mask)
        getattr(model, name)[1] += 1
        entry = "_extra_state" if name == "packed" else name
        with pytest.raises(UpdateRefused, match=f"^{entry} has integers that training has changed"):
            defense.release(model, model.state_dict(), samples=5)


@pytest.mark.usefixtures("folder")
def test_an_average_of_integers_is_rounded():
    """A third of 5, three times, may be less than 5, and FedML's average is no integer."""
    (defense, model), *_ = job(make=Counting)
    own = dict(model.state_dict())
    came = own | {name: own[name] * (1 - 1e-6) for name in ("places", "index")}
    defense.receive(model, came, round_index=0)
    model.load_state_dict(came)
    assert torch.equal(model.places, torch.arange(6))
    assert torch.equal(model.index, torch.arange(199))
    defense.begin_round(model, round_index=1)
    defense.release(model, model.state_dict(), samples=5)


def test_a_mask_leaves_no_digits_that_it_does_not_cover():
    """It is of 52 bits, and far from 0 its grid is coarser than a float64's."""
    one, _ = silos(1, 1)
    doubles = {name: tensor.double() for name, tensor in state().items()}
    sent = masked(doubles, PARTS, scales_of(PARTS, doubles), one, 0)
    assert all(tensor.dtype == torch.float64 for tensor in sent.values())
    assert all(torch.equal(tensor, tensor.float().double()) for tensor in sent.values())


@pytest.mark.usefixtures("folder")
def test_how_far_rounding_may_go_is_the_same_for_all_silos():
    """Or a silo of few samples, whose masks are wider, would keep what others have averaged."""
    allowed = rounding(2, "seen", 0.76)  # the buffer's size
    assert 0 < allowed < 0.01
    for times, kept in ((0.1, True), (3, False)):
        made = job(samples=(5000, 5000, 5))
        for defense, model in made:
            average = Turns(state_lock(model).parts, state_lock(model).key, 0)
            came = dict(model.state_dict())
            own = {name: t.detach().clone() for name, t in model.named_parameters()}
            own |= {name: t.clone() for name, t in model.named_buffers()}
            own["seen"] += times * allowed
            came |= average.turned(own)
            defense.receive(model, came, round_index=0)
            model.load_state_dict(came)
            assert torch.equal(model.seen, torch.ones(6, 6).tril()) is kept


@pytest.mark.usefixtures("folder")
def test_an_audit_in_a_job_takes_the_job_s_own_masks():
    """Outside of one it takes those of three silos."""
    for made, peers in ((job(), 2), (job(2), 1), (job(mask=False), 0)):
        defense, _ = made[0]
        assert defense.surrogate(Net()).update_transform.peers == peers
    unmasked, model = keylock({}), Net()
    assert unmasked.surrogate(Net()).update_transform.peers == 2
    unmasked.protect(model, silo=None, agreement=unmasked.describe(model))
    unmasked.share(JobSecrets(bytes(32)))
    assert unmasked.surrogate(Net()).update_transform.peers == 0


@pytest.mark.usefixtures("folder")
def test_no_two_jobs_have_one_key_even_of_the_same_file_and_model():
    keys = []
    for number in (b"one", b"one", b"another"):
        defense, model = keylock({}), Net()
        defense.protect(model, silo=None, agreement=defense.describe(model))
        defense.share(JobSecrets(bytes(32)))
        defense.begin_job(number)
        defense.enter_silo(model, silo=0)  # the vault has the key of the job before
        defense.receive(model, Net().state_dict(), round_index=-1)
        defense.begin_round(model, round_index=0)
        defense.end_round(model, round_index=0)
        keys.append(state_lock(model).key)
    assert keys[0] == keys[1] != keys[2]
