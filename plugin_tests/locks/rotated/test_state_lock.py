"""A model whose state is rotated: what is shown, what comes back, and what stays in the silo."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from fedml_keylock.locks.rotated.state import lock_state, state_lock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from nets import lenet
from torch import nn
from torch.nn.parameter import is_lazy

from fedml_keylock.errors import LockError, PrivateStateError, VaultError
from fedml_keylock.locks import (
    KeyLockConfig,
    Vault,
    check_model,
    export_model,
    is_locked,
    load_private_state_dict,
    lock_info,
    lock_model,
    make_lock,
    private_state_dict,
    secret_variables,
    unlock_model,
)
from fedml_keylock.locks.entropy import seeded_uniform
from fedml_keylock.locks.job_key import JobKey
from fedml_keylock.locks.paper.module import draw_key
from fedml_keylock.locks.rotated.turns import OPEN, Part, Turns, digest, parts_of
from fedml_keylock.types import JobSecrets

SECRET = JobSecrets(b"secret")
IMAGES = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(5))
WORDS = torch.randint(20, (4, 7), generator=torch.Generator().manual_seed(6))


class Normed(nn.Module):
    """Running statistics, counts of batches and a norm without them."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.layer, self.head = nn.LayerNorm(8), nn.Linear(8, 10)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.layer(x.mean((2, 3))))


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.lstm = nn.Embedding(20, 6), nn.LSTM(6, 9, batch_first=True)
        self.head = nn.Linear(9, 20)

    def forward(self, x):
        return self.head(self.lstm(self.words(x))[0][:, -1])


class Tied(nn.Module):
    """One tensor under two names, as in language models."""

    def __init__(self):
        super().__init__()
        self.words, self.mix = nn.Embedding(20, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.words(x).mean(1))))


class Scaled(nn.Module):
    """A parameter that is a number, and nothing else in the model itself."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(144, 3)

    def forward(self, x):
        return self.scale * self.head(x.flatten(1))


NETS = {
    "lenet": (lenet, IMAGES),
    "normed": (Normed, IMAGES),
    "reader": (Reader, WORDS),
    "tied": (Tied, WORDS),
    "scaled": (Scaled, IMAGES),
    "double": (lambda: lenet().double(), IMAGES.double()),
}


def made(net, seed=0):
    torch.manual_seed(seed)
    return NETS[net][0]()


def trained(model, inputs, steps=2):
    """The same steps of the same optimizer, whatever is locked."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), torch.arange(len(inputs)) % 3).backward()
        optimizer.step()
    return model


def locked(net="lenet", seed=0):
    """Trained, so that running statistics are not what they were, and locked."""
    model = trained(made(net, seed), NETS[net][1])
    lock_model(model)
    return model


def contents(model):
    """The model's own tensors, by name, as it computes with them: no hook has a part in it."""
    found = dict(model.named_parameters(remove_duplicate=False))
    return {n: t.detach().clone() for n, t in [*found.items(), *model.named_buffers()]}


def serialized(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def raw(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert one[name].dtype == tensor.dtype
        assert torch.equal(one[name], tensor), name


def assert_near(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert (one[name].double() - tensor.double()).abs().max() <= tolerance, name


class TestALockedModel:
    """What `lock_model` does, on models of every kind."""

    @pytest.mark.parametrize("net", NETS)
    def test_the_state_is_turned_and_the_model_is_what_it_was(self, net):
        model, inputs = trained(made(net), NETS[net][1]).eval(), NETS[net][1]
        before, state, outputs = contents(model), model.state_dict(), model(inputs)
        state = {name: tensor.clone() for name, tensor in state.items()}
        parts = list(model.children())
        info = lock_model(model)
        assert is_locked(model)
        assert_equal(contents(model), before)
        assert torch.equal(model(inputs), outputs)
        assert list(model.children()) == parts
        shown = model.state_dict()
        assert list(shown) == list(state)
        for name, tensor in state.items():
            assert shown[name].shape == tensor.shape
            assert shown[name].dtype == tensor.dtype
            assert shown[name].is_contiguous()
            assert not shown[name].requires_grad
            if tensor.is_floating_point() and tensor.numel() > 1:
                assert not torch.allclose(shown[name], tensor, atol=1e-3), name
            elif not tensor.is_floating_point():
                assert torch.equal(shown[name], tensor)
            # it does not bring the memory of the others with it
            assert shown[name].untyped_storage().nbytes() == tensor.nbytes
        assert info == lock_info(model)
        assert str(info).startswith("locked the whole state: all of ")
        assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in str(info)

    @pytest.mark.parametrize("net", NETS)
    def test_loading_what_it_shows_restores_it(self, net):
        model = locked(net)
        before = contents(model)
        shown = model.state_dict()
        assert model.load_state_dict(shown) == model.load_state_dict(model.state_dict())
        assert_near(contents(model), before, 1e-14 if net == "double" else 1e-6)
        if net == "tied":
            assert model.head.weight is model.words.weight
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.123)
        model.load_state_dict(shown)
        assert_near(contents(model), before, 1e-14 if net == "double" else 1e-6)

    def test_in_bfloat16_to_its_own_rounding(self):
        model = lenet().bfloat16()
        lock_model(model)
        before = contents(model)
        shown = model.state_dict()
        assert {tensor.dtype for tensor in shown.values()} == {torch.bfloat16}
        model.load_state_dict(shown)
        assert_near(contents(model), before, 5e-3)
        flat = torch.cat([t.double().flatten() for t in before.values()])
        after = torch.cat([t.double().flatten() for t in contents(model).values()])
        assert (after - flat).norm() < 5e-3 * flat.norm()

    @pytest.mark.parametrize("net", NETS)
    def test_it_trains_as_it_does_without_a_lock(self, net):
        model, plain = locked(net), trained(made(net), NETS[net][1])
        for one in (model, plain):
            trained(one, NETS[net][1], steps=3)
        assert_equal(contents(model), contents(plain))

    def test_a_sequence_has_no_more_members_and_computes_the_same(self):
        model = lenet().eval()
        outputs, modules = model(IMAGES), [type(m) for m in model.modules()]
        lock_model(model)
        assert len(model) == 8
        assert [type(m) for m in model.modules()] == modules
        assert torch.equal(model(IMAGES), outputs)
        assert torch.equal(model[:3](IMAGES), nn.Sequential(*[*model][:3])(IMAGES))

    def test_within_another_model_it_is_locked_too(self):
        """As in a DistributedDataParallel: the hooks get a prefix."""
        model = locked()
        before, shown = contents(model), model.state_dict()
        around = nn.ModuleDict({"module": model})
        assert is_locked(around)
        state = around.state_dict()
        assert_equal({n.removeprefix("module."): t for n, t in state.items()}, shown)
        around.load_state_dict(state)
        assert_near(contents(model), before, 1e-6)
        assert state_lock(model).made(shown)

    @pytest.mark.parametrize("strict", [True, False])
    @pytest.mark.parametrize("missing", ["0.weight", "7.bias"])
    def test_a_state_with_a_missing_entry_is_refused(self, missing, strict):
        model = locked()
        before, state = contents(model), model.state_dict()
        del state[missing]
        with pytest.raises(LockError, match=rf"{missing} is missing: .* one vector"):
            model.load_state_dict(state, strict=strict)
        assert_equal(contents(model), before)

    def test_a_running_variance_never_comes_back_negative(self):
        model = Normed()
        with torch.no_grad():  # rounding to float32 is a share of the largest
            model.norm.running_var.copy_(torch.tensor([1e6, 0, 0, 0, 0, 0, 0, 0]))
        lock_model(model)
        shown, lock = model.state_dict(), state_lock(model)
        bare = (Part("norm.running_var", ("norm.running_var",)),)
        turns = Turns(bare, lock.key, 0)
        # the control: without a limit it does
        assert float(turns.opened(shown)["norm.running_var"].min()) < 0
        model.load_state_dict(shown)
        assert float(model.norm.running_var.min()) == 0
        assert float(model.norm.running_var.max()) == pytest.approx(1e6)

    def test_integers_are_shared_as_they_are_and_said_to_be(self):
        model = trained(Normed(), IMAGES)
        checked = check_model(model, KeyLockConfig())
        assert checked.issues == ()
        assert checked.shared == ("seen", "norm.num_batches_tracked")
        assert [layer.layer for layer in checked.layers] == ["conv", "norm", "layer", "head"]
        assert all(layer.locked for layer in checked.layers)
        lock_model(model)
        assert int(model.state_dict()["norm.num_batches_tracked"]) == 2

    def test_a_number_of_the_models_own_is_locked(self):
        model = Scaled()
        assert check_model(model, KeyLockConfig()).layers[0].layer == "Scaled"
        lock_model(model)
        shown = model.state_dict()
        assert shown["scale"].shape == ()
        assert abs(float(shown["scale"]) - 0.7) > 1e-6
        model.load_state_dict(shown)
        assert float(model.scale.detach()) == pytest.approx(0.7, abs=1e-6)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.keylock = nn.Linear(2, 2), "mine"


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))


def already_locked():
    model = lenet()
    lock_model(model)
    return model


def locked_on_layers():
    model = lenet()
    lock_model(model, KeyLockConfig(lock="paper"))
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Complex, "phase: lock: rotated cannot lock complex numbers"),
        (nn.Identity, "Identity has no parameters to lock"),
        (lambda: nn.BatchNorm2d(3, affine=False), "BatchNorm2d has no parameters to lock"),
        (Own, "has an attribute named keylock of its own"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "its shape is not known"),
        (already_locked, "locked already; unlock_model"),
        (locked_on_layers, "locked already; unlock_model"),
    ],
)
def test_what_cannot_be_locked_is_said_in_one_line_and_left_alone(make, said):
    model = make()
    before = snapshot(model)
    (issue,) = check_model(model, KeyLockConfig()).issues
    assert said in str(issue)
    with pytest.raises(LockError) as caught:
        lock_model(model)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_same(snapshot(model), before)


def test_a_model_without_values_and_a_key_of_layers_are_refused():
    with torch.device("meta"):
        model = lenet()
    before = snapshot(model)
    with pytest.raises(LockError, match="needs a model with values: take it off meta"):
        lock_model(model)
    assert_same(snapshot(model), before)
    with pytest.raises(LockError, match="a key is of lock: paper, and lock: rotated has none"):
        lock_model(lenet(), key=draw_key(1024))
    with pytest.raises(LockError, match="the model is not locked"):
        unlock_model(lenet())


def snapshot(model):
    """Each module's attributes; hooks and tensors among them, as they are."""
    return [
        (name, {key: copied(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    ]


def copied(value):
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    if not isinstance(value, torch.Tensor) or is_lazy(value):
        return value
    return value.detach().clone()


def assert_same(one, other):
    assert [name for name, _ in one] == [name for name, _ in other]
    for (_, mine), (_, theirs) in zip(one, other, strict=True):
        same(mine, theirs)


def same(one, other):
    if isinstance(other, dict):
        assert [*one] == [*other]
        for key in other:
            same(one[key], other[key])
    elif isinstance(other, torch.Tensor) and not is_lazy(other):
        assert torch.equal(one, other) if not other.is_meta else one.is_meta
    else:
        assert one is other or one == other


class TestUnlocking:
    @pytest.mark.parametrize("net", NETS)
    def test_everything_is_as_it_was(self, net):
        model = trained(made(net), NETS[net][1])
        before, state = snapshot(model), contents(model)
        lock_model(model)
        model.state_dict()
        unlock_model(model)
        assert_same(snapshot(model), before)
        assert_equal(dict(model.state_dict()), {n: state[n] for n in model.state_dict()})
        assert not is_locked(model)
        lock_model(model)  # and once more
        assert is_locked(model)

    def test_the_users_own_hooks_and_attributes_stay(self):
        model, called = lenet(), []
        model.register_state_dict_post_hook(lambda *_: called.append("shown"))
        model.register_load_state_dict_pre_hook(lambda *_: called.append("loaded"))
        model.note = "mine"
        before = snapshot(model)
        lock_model(model)
        unlock_model(model)
        assert_same(snapshot(model), before)
        called.clear()
        state = model.state_dict()
        assert called == ["shown"]
        model.load_state_dict(state)
        assert called == ["shown", "loaded"]

    def test_what_was_trained_stays(self):
        model = locked()
        trained(model, IMAGES)
        before = contents(model)
        unlock_model(model)
        assert_equal(dict(model.state_dict()), before)
        with pytest.raises(LockError, match="the model is not locked"):
            unlock_model(model)


class TestSecrets:
    """What may not get out, and by which ways it does not."""

    def test_a_copy_has_the_lock_and_a_life_of_its_own(self):
        model = locked()
        copy = deepcopy(model)
        assert_equal(dict(copy.state_dict()), dict(model.state_dict()))
        assert state_lock(copy) is not state_lock(model)
        unlock_model(copy)
        assert is_locked(model)
        assert_equal(dict(copy.state_dict()), contents(model))
        model.load_state_dict(model.state_dict())

    @pytest.mark.parametrize("put", [pickle.dumps, serialized])
    def test_it_cannot_be_pickled(self, put):
        model = locked()
        for what in (model, state_lock(model), nn.Sequential(model)):
            with pytest.raises(PrivateStateError, match="a locked model cannot be pickled"):
                put(what)
        put(model.state_dict())

    def test_nothing_that_is_printed_has_the_key(self):
        model = locked()
        key = list(state_lock(model).key.root)
        words = [repr(model), str(model), repr(state_lock(model)), str(lock_info(model))]
        words += [repr(lock_info(model)), str(check_model(model, KeyLockConfig()))]
        for said in words:
            assert "tensor" not in said
            assert bytes(key).hex()[:8] not in said
            assert str(key)[1:20] not in said
        assert repr(model) == repr(lenet())

    def test_neither_the_key_nor_a_weight_is_in_the_state(self):
        model = locked("normed")
        own = {n: t for n, t in contents(model).items() if t.is_floating_point()}
        sent, key = serialized(model.state_dict()), state_lock(model).key.root

        def parts(data):
            return {data[at : at + 8] for at in range(0, len(data) - 7, 4)}

        for tensor in own.values():
            assert not any(part in sent for part in parts(raw(tensor)) if any(part))
        assert not any(key[at : at + 6] in sent for at in range(len(key) - 5))
        # the control: without the lock they are, and what is shown is found
        shown = model.state_dict()
        assert all(raw(shown[name]) in sent for name in own)
        unlock_model(model)
        sent = serialized({**model.state_dict(), "key": torch.tensor(list(key)).byte()})
        assert all(raw(tensor) in sent for tensor in own.values())
        assert key in sent

    def test_every_lock_is_another(self):
        """From the system's entropy; the same for an attacker's generator alone."""
        one, two = (trained(made("lenet"), IMAGES) for _ in range(2))
        lock_model(one)
        lock_model(two)
        assert state_lock(one).key != state_lock(two).key
        keys = []
        for seed in (0, 0, 1):
            model = made("lenet")
            lock_model(model, uniform=seeded_uniform(torch.Generator().manual_seed(seed)))
            keys.append(state_lock(model).key)
        assert keys[0] == keys[1] != keys[2]

    def test_who_has_another_key_opens_noise(self):
        model = locked()
        public = lenet()
        public.load_state_dict(model.state_dict())
        state = contents(public)
        other = make_lock().as_outsider(public, lambda: pytest.fail("a silo's own"), None)
        assert state_lock(other).key != state_lock(model).key
        for name, tensor in contents(model).items():
            assert not torch.allclose(contents(other)[name], tensor, atol=1e-2), name
        assert_equal(contents(public), state)


class TestSilos:
    """Locks of the same secret and the same first model, which the server has."""

    def silo(self, secret=b"secret", first=None, model=None):
        model = model or trained(made("normed"), IMAGES)
        lock = lock_state(model)
        lock.begin(first or made("normed").state_dict(), JobSecrets(secret))
        return model, lock

    def test_they_turn_alike_and_nobody_else_does(self):
        """Another secret, another job's first model and another round give another turn."""
        other = made("normed", seed=3).state_dict()
        ways = {
            "one": ({}, 0),
            "another secret": ({"secret": b"another"}, 0),
            "another first model": ({"first": other}, 0),
            "another round": ({}, 1),
            "a later round": ({}, 300),
        }
        shown = {}
        for name, (given, round_index) in ways.items():
            states = []
            for _ in range(2):
                model, lock = self.silo(**given)
                lock.enter(round_index)
                states.append(model.state_dict())
            assert_equal(*map(dict, states))
            shown[name] = states[0]
        for one, two in combinations(shown.values(), 2):
            for name, tensor in one.items():
                if tensor.is_floating_point():
                    assert not torch.allclose(tensor, two[name], atol=1e-3), name

    def test_the_key_is_a_hash_of_all_that_the_first_model_is_and_of_the_secret(self):
        _, lock = self.silo()
        assert lock.key == JobKey.derive(SECRET, digest(made("normed").state_dict()))
        zeros = torch.zeros(2)
        models = [{"a": zeros}, {"b": zeros}, {"a": zeros.int()}, {"a": zeros[None]}]
        models += [{"a": zeros + 1}, {"a": zeros, "b": zeros}]
        assert len({digest(model) for model in models}) == len(models)

    def test_one_that_has_begun_keeps_its_key(self):
        _, lock = self.silo()
        before = lock.key
        lock.begin(made("normed", seed=3).state_dict(), JobSecrets(b"another"))
        assert lock.key is before

    def test_a_part_is_turned_by_itself(self):
        """Of equal numbers, as a norm's mean and variance may be, the turned ones are not equal."""
        model = Normed()
        with torch.no_grad():
            model.norm.running_mean.fill_(1.0)
        _, lock = self.silo(model=model)
        lock.enter(0)
        shown = model.state_dict()
        assert not torch.allclose(shown["norm.running_mean"], shown["norm.running_var"], atol=1e-3)

    def test_the_average_of_what_they_show_opens_to_the_average(self):
        """FedAvg is linear; silos of other amounts of data have other weights in it."""
        silos = [self.silo(model=trained(made("normed"), IMAGES[n : n + 3])) for n in (0, 3)]
        own = [contents(model) for model, _ in silos]
        states = []
        for model, lock in silos:
            lock.enter(4)
            states.append(model.state_dict())
        for share in (0.5, 0.8):
            mean = {
                n: share * states[0][n] + (1 - share) * states[1][n] if t.is_floating_point() else t
                for n, t in states[0].items()
            }
            wanted = {
                n: share * own[0][n].double() + (1 - share) * own[1][n].double()
                for n, t in own[0].items()
                if t.is_floating_point()
            }
            for model, _ in silos:
                model.load_state_dict(mean)
                found = {n: t for n, t in contents(model).items() if n in wanted}
                assert_near(found, wanted, 1e-6)
        # the control: half of one silo's is something else
        assert not torch.allclose(own[0]["conv.weight"], own[1]["conv.weight"], atol=1e-3)

    def test_a_lock_without_a_first_model_does_not_turn(self):
        model = lenet()
        lock = lock_state(model)
        with pytest.raises(LockError, match="has not seen the job's first model"):
            lock.enter(0)
        assert_equal(dict(model.state_dict()), contents(model))


class Rounds(RuleBasedStateMachine):
    """Whatever a job does in whatever order: what was shown in this round may be sent, no more."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(2, 2))
        self.lock = lock_state(self.model)
        self.first, self.round = self.model.state_dict(), OPEN
        self.shown, self.past = [], []

    @rule()
    def begin(self):
        self.lock.begin(self.first, SECRET)

    @precondition(lambda self: self.lock.key is not None)
    @rule(round_index=st.integers(OPEN, 3))
    def enter(self, round_index):
        self.lock.enter(round_index)
        self.past, self.shown, self.round = [*self.past, *self.shown], [], round_index

    @precondition(lambda self: self.lock.key is None)
    @rule(round_index=st.integers(0, 3))
    def enter_too_early(self, round_index):
        with pytest.raises(LockError):
            self.lock.enter(round_index)

    @rule()
    def train(self):
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.mul_(0.9).add_(0.01)

    @rule()
    def show(self):
        state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if self.round == OPEN:
            assert_equal(state, {n: contents(self.model)[n] for n in state})
            self.past.append(state)
            return
        assert not torch.allclose(state["0.weight"], self.model[0].weight, atol=1e-4)
        self.shown.append(state)

    @precondition(lambda self: self.shown)
    @rule(data=st.data())
    def change(self, data):
        state = dict(data.draw(st.sampled_from(self.shown)))
        turned = [name for part in self.lock.parts for name in part.names]
        name = data.draw(st.sampled_from(turned))
        kind = data.draw(st.sampled_from(["bit", "dtype", "shape", "missing", "no tensor"]))
        if kind == "bit":
            state[name] = torch.nextafter(state[name], torch.tensor(torch.inf))
        elif kind == "missing":
            del state[name]
        else:
            odd = {"dtype": state[name].double(), "shape": state[name][None], "no tensor": 1.0}
            state[name] = odd[kind]
        assert not self.lock.made(state)

    @precondition(lambda self: self.shown)
    @rule(data=st.data())
    def mix_up(self, data):
        """Of two states that were shown, half of each was not."""
        one, two = (data.draw(st.sampled_from(self.shown)) for _ in range(2))
        mixed = {**one, "2.weight": two["2.weight"]}
        assert bool(self.lock.made(mixed)) == torch.equal(one["2.weight"], two["2.weight"])

    @invariant()
    def what_was_shown_in_this_round_may_be_sent(self):
        assert all(self.lock.made(state) for state in self.shown)
        # counts of batches are no affair of the lock
        counted = [{**state, "1.num_batches_tracked": torch.tensor(9)} for state in self.shown]
        assert all(self.lock.made(state) for state in counted)

    @invariant()
    def what_was_shown_before_and_the_weights_themselves_may_not(self):
        assert not self.lock.made(contents(self.model))
        for state in self.past:
            again = any(equal(state, one) for one in self.shown)
            assert bool(self.lock.made(state)) == again


def equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


Rounds.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestRounds = Rounds.TestCase


def test_a_first_model_is_shown_as_it_is_and_no_state_of_it_may_be_sent():
    model = lenet()
    lock = lock_state(model)
    before = contents(model)
    for _ in range(2):
        state = model.state_dict()
        assert_equal(dict(state), before)
        assert not lock.made(state)
        model.load_state_dict(state)
        assert_equal(contents(model), before)
        lock.begin(state, SECRET)
    lock.enter(0)
    shown = model.state_dict()
    assert lock.made(shown)
    assert not lock.made(state)
    lock.enter(1)
    assert not lock.made(shown)


class TestPrivateState:
    """What the vault keeps, and what `export` and an audit make of it."""

    def test_it_opens_what_was_shown_and_nothing_of_the_model_is_in_it(self):
        model = locked()
        private, shown = private_state_dict(model), model.state_dict()
        assert bytes(private["keylock.key"].tolist()) == state_lock(model).key.root
        assert int(private["keylock.round"]) == 0
        assert sum(t.numel() for t in private.values()) < 100
        other = lenet()
        lock_model(other)
        other.state_dict()  # turned by a key that is then another
        load_private_state_dict(other, private)
        other.load_state_dict(shown)
        assert_near(contents(other), contents(model), 1e-6)
        assert_equal(private_state_dict(other), private)
        before = private_state_dict(model)
        for tensor in private.values():  # a copy
            tensor.zero_()
        assert_equal(private_state_dict(model), before)

    def test_what_it_remembers_tells_the_job_from_noise(self):
        """Of the weights before they were trained on, and of what another turn makes of them."""
        model = locked()
        lock = state_lock(model)
        assert lock.is_like(lenet())  # nothing was remembered, and nothing is known
        lock.remember(model)
        assert len(lock.sample) == 1024
        assert lock.is_like(model)
        assert not lock.is_like(nn.Linear(2, 2))  # of another size
        shown, other = model.state_dict(), lenet()
        assert lock.is_like(trained(deepcopy(model), IMAGES))
        other.load_state_dict(shown)
        assert not lock.is_like(other)
        lock_model(other)
        load_private_state_dict(other, private_state_dict(model))
        for round_index, like in ((0, True), (1, False)):
            state_lock(other).enter(round_index)
            other.load_state_dict(shown)
            assert state_lock(other).is_like(other) == like

    def test_that_of_another_lock_is_refused(self):
        model, layers = locked(), locked_on_layers()
        before = private_state_dict(model)
        for state in (private_state_dict(layers), {}, {"keylock.key": before["keylock.key"]}):
            with pytest.raises(VaultError, match="that of another lock"):
                load_private_state_dict(model, state)
        with pytest.raises(VaultError, match="that of another lock"):
            load_private_state_dict(layers, before)
        odd = {"round": torch.zeros(1), "sample": torch.zeros(2, 2), "key": torch.zeros(32)}
        odd |= {"samples": torch.ones(1).double(), "pairs": torch.zeros(32).byte()}
        uneven = [("key", torch.ones(31).byte()), ("samples", torch.ones(3).long())]
        uneven += [("pairs", torch.ones(1, 32).byte())]
        for name, tensor in [*odd.items(), *uneven]:
            with pytest.raises(VaultError, match=rf"that of another lock: (keylock\.)?{name}$"):
                load_private_state_dict(model, before | {f"keylock.{name}": tensor})
        assert_equal(private_state_dict(model), before)

    def test_what_masks_are_made_of_is_restored_and_what_they_came_from_may_change(self):
        model, other = locked(), locked()
        lock, again = state_lock(model), state_lock(other)
        lock.key = JobKey(b"r" * 32, 1, {2: b"b" * 32, 0: b"a" * 32}, {0: 30, 1: 10, 2: 20})
        lock.remember(model)
        before, given = private_state_dict(model), private_state_dict(model)
        load_private_state_dict(other, given)
        assert again.key == lock.key
        assert again.masked
        for tensor in given.values():
            tensor.zero_()
        assert_equal(private_state_dict(other), before)

    def test_it_goes_through_a_vault(self, tmp_path):
        model = locked()
        shown, vault = model.state_dict(), Vault(tmp_path / "vault", 0, "layout")
        vault.save(private_state_dict(model), round_index=1)
        other = lenet()
        lock_model(other)
        state, round_index = vault.load()
        load_private_state_dict(other, state)
        assert round_index == 1
        other.load_state_dict(shown)
        assert_near(contents(other), contents(model), 1e-6)

    @pytest.mark.parametrize("net", NETS)
    def test_an_export_is_the_plain_model(self, net):
        model = locked(net)
        before = contents(model)
        plain = export_model(model)
        assert type(plain) is type(model)
        assert not plain.training
        assert not is_locked(plain)
        assert is_locked(model)
        state = dict(plain.state_dict())
        assert_equal(state, {n: before[n] for n in state})
        again = made(net).eval()
        again.load_state_dict(torch.load(io.BytesIO(serialized(state)), weights_only=True))
        assert torch.equal(again(NETS[net][1]), plain(NETS[net][1]))
        pickle.dumps(plain)

    def test_an_attacker_has_the_public_model_and_no_unknowns_in_it(self):
        known = make_lock(KeyLockConfig()).surrogate(lenet())
        assert known.names == ()
        assert not is_locked(known.model)
        private = secret_variables(locked())
        assert private["key"].shape == (32,)
        assert (int(private["before"]), int(private["after"])) == (0, 1)


def test_a_part_is_all_parameters_or_one_buffer():
    assert [(part.label, part.names, part.least) for part in parts_of(Normed())] == [
        (
            "parameters",
            (
                *("conv.weight", "conv.bias", "norm.weight", "norm.bias"),
                *("layer.weight", "layer.bias", "head.weight", "head.bias"),
            ),
            None,
        ),
        ("norm.running_mean", ("norm.running_mean",), None),
        ("norm.running_var", ("norm.running_var",), 0.0),
    ]
    (part,) = parts_of(Tied())
    assert part.names == ("words.weight", "mix.weight", "mix.bias", "head.weight")
