"""Models that do something unusual: sharing, freezing, control flow, half precision, compiling."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import weight_norm
from trial import exports, locks, trains

from fedml_keylock import KeyLockConfig, check_model, lock_model, unlock_model
from fedml_keylock.locks.paper.flow import flow_of
from fedml_keylock.locks.paper.module import locks as locks_of
from fedml_keylock.locks.paper.placement import sites_of

FIRST = KeyLockConfig(lock="paper")
ALL = KeyLockConfig(lock="paper", layers="all")
CHAINED = KeyLockConfig(lock="paper", layers="all", chained=True)
SIGMOID = KeyLockConfig(lock="paper", layers="all", activation="sigmoid")


def images(count=4):
    return torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(1))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(self.norm(self.stem(x))).mean((2, 3)))

    def body(self, x):
        return torch.relu(x)


class Twice(Base):
    """A layer that runs twice, with the same norm behind it each time."""

    def __init__(self):
        super().__init__()
        self.again, self.again_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def body(self, x):
        for _ in range(2):
            x = torch.relu(self.again_norm(self.again(x)))
        return x


class TwoNorms(Twice):
    """A layer that runs twice, with another norm behind it each time."""

    def __init__(self):
        super().__init__()
        self.other = nn.BatchNorm2d(4)

    def body(self, x):
        x = torch.relu(self.again_norm(self.again(x)))
        return torch.relu(self.other(self.again(x)))


class Shared(Base):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.two = self.one

    def body(self, x):
        return torch.relu(self.two(torch.relu(self.one(x))))


class SharedWeight(Base):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.two.weight = self.one.weight

    def body(self, x):
        return torch.relu(self.two(torch.relu(self.one(x))))


class Inplace(Base):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(4, 4, 1)

    def body(self, x):
        return self.act(self.last(self.act(x)))


class PreActivation(Base):
    """The norm stands before its convolution, behind a residual sum."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Identity()
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(4)

    def body(self, x):
        x = x + self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return torch.relu(self.norm3(x))


class Registered(Base):
    """Its layers are registered in another order than they run in."""

    def __init__(self):
        nn.Module.__init__(self)
        self.head = nn.Linear(4, 3)
        self.norm_b, self.norm = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.late, self.stem = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)

    def body(self, x):
        return torch.relu(self.norm_b(self.late(torch.relu(x))))


class ControlFlow(Twice):
    """What it runs depends on the data, so that it cannot be traced."""

    def body(self, x):
        x = torch.relu(self.again_norm(self.again(x)))
        return x if float(x.detach().sum()) < -1 else torch.tanh(x)


class Keeps(Twice):
    """It keeps what it computed, as models that show their attention do."""

    def body(self, x):
        self.seen = x
        self.calls = getattr(self, "calls", 0) + 1
        return super().body(x)


class Frozen(Twice):
    def __init__(self):
        super().__init__()
        for parameter in (*self.stem.parameters(), *self.norm.parameters()):
            parameter.requires_grad_(False)


class Encoder(nn.Module):
    """Patches by a convolution, and a transformer of torch.nn behind."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def weight_normed():
    return nn.Sequential(
        weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)
    )


def sequential():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Flatten(), nn.Linear(400, 3)
    )


ODD = {
    "twice": (Twice, 2),
    "two norms": (TwoNorms, 3),
    "shared": (Shared, 2),
    "shared weight": (SharedWeight, 3),
    "inplace": (Inplace, 2),
    "pre-activation": (PreActivation, 3),
    "registered otherwise": (Registered, 2),
    "control flow": (ControlFlow, 2),
    "keeps": (Keeps, 2),
    "frozen": (Frozen, 2),
    "encoder": (Encoder, 1),
    "weight norm": (weight_normed, 1),
    "sequential": (sequential, 1),
}


@pytest.mark.parametrize("config", [ALL, SIGMOID, CHAINED], ids=["relu", "sigmoid", "chained"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_models_lock_train_unlock_and_export(kind, config):
    torch.manual_seed(0)
    make, count = ODD[kind]
    model = make()
    start = deepcopy(model)
    locks(model, config)
    assert len(list(locks_of(model))) == count
    trains(model, images())
    assert exports(model, images()) <= 1e-5
    unlock_model(model)
    model = deepcopy(start).eval()
    expected = start.eval()(images())
    lock_model(model, config)
    unlock_model(model)
    assert torch.equal(model(images()), expected)


@pytest.mark.parametrize("kind", ODD)
def test_checking_leaves_nothing_behind(kind):
    model = ODD[kind][0]()
    before = [{n: id(v) for n, v in vars(m).items()} for m in model.modules()]
    modes = [m.training for m in model.modules()]
    check_model(model, ALL)
    assert [{n: id(v) for n, v in vars(m).items()} for m in model.modules()] == before
    assert [m.training for m in model.modules()] == modes
    assert not hasattr(model, "seen")


def test_a_layer_that_runs_twice_is_locked_once_and_in_both():
    torch.manual_seed(0)
    model = Twice().eval()
    lock_model(model, KeyLockConfig(lock="paper", layers=["again"]))
    ((holder, _, lock),) = locks_of(model)
    assert holder == "again_norm"
    x = model.norm(model.stem(images()))
    gamma, beta = lock.scale()[:, None, None], lock.shift()[:, None, None]
    expected = x
    for _ in range(2):
        expected = torch.relu(gamma * model.again(expected) / (1 + 1e-5) ** 0.5 + beta)
    assert torch.allclose(model.body(x), expected, atol=1e-5)


def test_the_norm_behind_is_found_by_what_runs_and_not_by_names():
    flow = flow_of(Registered())
    assert {n: norms[0].name for n, norms in flow.behind.items()} == {
        "stem": "norm",
        "late": "norm_b",
    }
    assert flow.order == ("stem", "late", "head")
    assert sites_of(Registered(), FIRST)[0].layers == ("stem",)


class Around(nn.Module):
    """What a convolution gives goes around the norm behind it too, as a view of it."""

    def __init__(self, view):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.view = view

    def forward(self, x):
        made = self.conv(x)
        around = made.mT if self.view == "mT" else made.data
        return self.head((self.norm(made) + around.relu()).mean((2, 3)))


@pytest.mark.parametrize("view", ["mT", "data"])
def test_a_view_of_values_is_not_taken_for_a_question_of_their_shape(view):
    assert "conv" not in flow_of(Around(view)).behind
    site = sites_of(Around(view), FIRST)[0]
    assert site.holder == "conv"


def test_a_pool_may_be_called_by_keyword():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1)
            self.gate, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.gate(self.pool(input=self.conv(x))).flatten(1))

    assert flow_of(Pooled()).pooled == {"gate", "head"}


def test_a_lock_that_a_norm_would_take_out_stands_on_that_norm():
    class Dense(Base):
        def __init__(self):
            super().__init__()
            self.grow = nn.Conv2d(4, 2, 3, padding=1)
            self.behind = nn.BatchNorm2d(6)
            self.head = nn.Linear(6, 3)

        def body(self, x):
            return torch.relu(self.behind(torch.cat([x, self.grow(torch.relu(x))], 1)))

    torch.manual_seed(0)
    model = Dense()
    site = next(s for s in sites_of(model, ALL) if "grow" in s.layers)
    assert (site.holder, site.channels, site.normalise) == ("behind", 6, None)
    # and the reason: in training, a scale and shift in front of a batch norm does nothing
    before = model.train()(images())
    with torch.no_grad():
        model.grow.weight.mul_(3)
        model.grow.bias.mul_(3).add_(1)
    assert torch.allclose(model(images()), before, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("config", [ALL, SIGMOID, CHAINED], ids=["relu", "sigmoid", "chained"])
def test_other_precisions(dtype, config):
    torch.manual_seed(0)
    model = Twice().to(dtype)
    lock_model(model, config)
    assert {p.dtype for p in model.parameters()} == {dtype}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = cross_entropy(model(images().to(dtype)).float(), torch.arange(4) % 3)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(p.grad is not None for _, _, lock in locks_of(model) for p in lock.parameters())


def test_a_lock_made_on_meta_is_drawn_when_it_gets_memory():
    with torch.device("meta"):
        model = Twice()
    assert lock_model(model, ALL).dead_channels == 0
    model.to_empty(device="cpu")
    found = [lock for _, _, lock in locks_of(model)]
    for lock in found:
        assert float(lock.key.norm()) == pytest.approx(1, abs=1e-5)
        scale = lock.scale().detach()
    assert 0.29 < float(scale.min()) <= float(scale.max()) < 1.71
    assert not torch.equal(found[0].key, found[1].key)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("twice", ALL),
        ("twice", CHAINED),
        ("sequential", ALL),
        ("encoder", ALL),
    ],
)
def test_a_compiled_model_computes_and_trains_the_same(kind, config):
    torch.manual_seed(0)
    model = ODD[kind][0]()
    lock_model(model, config)
    twin = deepcopy(model)
    compiled = torch.compile(twin, backend="aot_eager")
    for _ in range(2):
        losses = [cross_entropy(m(images()), torch.arange(4) % 3) for m in (model, compiled)]
        assert torch.allclose(losses[0], losses[1], atol=1e-6)
        for loss, net in zip(losses, (model, twin), strict=True):
            loss.backward()
            torch.optim.SGD(net.parameters(), 0.1).step()
            net.zero_grad()
    assert torch.allclose(model.eval()(images()), compiled.eval()(images()), atol=1e-5)
    other = deepcopy(model)
    unlock_model(other)
    assert not torch.allclose(other(images()), compiled(images()), atol=1e-3)
