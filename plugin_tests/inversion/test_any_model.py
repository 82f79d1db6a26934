"""Attacks on odd models: they run, all candidates at once or one by one, or say in a line why."""

import re
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation.audit.training import train_update
from fedml_keylock.evaluation.trials import attack_updates
from fedml_keylock.inversion import Knowledge, inverting_gradients
from fedml_keylock.inversion.engine import probe as probing
from fedml_keylock.inversion.engine.assemble import assemble
from fedml_keylock.inversion.engine.evaluate import one_by_one
from fedml_keylock.inversion.engine.observe import observe
from fedml_keylock.tensors import copy_of

Outputs = namedtuple("Outputs", ["features", "logits"])


class Net(nn.Module):
    """A convolution, something odd, a head."""

    def __init__(self, odd=None, **parts):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, 2), nn.Linear(100, 3)
        self.odd = odd
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        h = self.conv(x)
        return self.head((h if self.odd is None else self.odd(self, h)).flatten(1))


class Noise(nn.Module):
    def __init__(self, always):
        super().__init__()
        self.always = always

    def forward(self, x):
        return x + torch.randn_like(x) if self.training or self.always else x


class DropPath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5)


def functional_dropout(net, h):
    return F.dropout(F.dropout2d(F.gelu(h), 0.5, net.training))  # this one in eval mode too


def looks_at_a_number(net, h):
    return F.gelu(h / 2 if h.abs().max().item() > 1e6 else h)


def in_place(net, h):
    h += 0.1
    h = h.clone()
    h[:, :, 0] = 0
    return F.relu_(net.norm(h))


def rows(net, h):
    return net.rnn(h.transpose(1, 2).flatten(2))[0].repeat(1, 1, 5)


def reentrant(net, h):
    return checkpoint(net.inner, h, use_reentrant=True)


def recomputed(net, h):
    return checkpoint(net.inner, h, use_reentrant=False)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, outer):
        return 2 * ctx.saved_tensors[0] * outer


class Once(nn.Module):
    def forward(self, h):
        return Square.apply(h)


def inner():
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Sigmoid())


def tied():
    net = Net(lambda net, h: net.two(torch.sigmoid(net.one(h))), one=nn.Conv2d(4, 4, 1))
    net.add_module("two", nn.Conv2d(4, 4, 1))
    net.two.weight = net.one.weight
    return net


class Returning(Net):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(super().forward(x))


NETS = {
    "functional dropout": (lambda: Net(functional_dropout), None),
    "drop path": (lambda: Net(lambda net, h: net.drop(h), drop=DropPath()), None),
    "noise in train mode": (lambda: Net(lambda net, h: net.noise(h), noise=Noise(False)), None),
    "in place": (lambda: Net(in_place, norm=nn.BatchNorm2d(4)), None),
    "checkpoint, reentrant": (lambda: Net(reentrant, inner=inner()), None),
    "tied weights": (tied, None),
    "weight norm, old": (
        lambda: Net(lambda net, h: net.one(h), one=nn.utils.weight_norm(nn.Conv2d(4, 4, 1))),
        None,
    ),
    "a dict": (lambda: Returning(lambda y: {"mask": y.detach() > 0, "logits": y}), None),
    "a dict of one": (lambda: Returning(lambda y: {"prediction": y}), None),
    "a named tuple": (lambda: Returning(lambda y: Outputs(y.exp(), y)), "returns a Outputs of 2"),
    "two heads": (lambda: Returning(lambda y: (y, 2 * y)), "returns a tuple of 2: .* scores alone"),
    "noise always": (
        lambda: Net(lambda net, h: net.noise(h), noise=Noise(True)),
        r"^noise \(Noise\) does not run under vmap: attacks on Net take one candidate at a time",
    ),
    "a number looked at": (
        lambda: Net(looks_at_a_number),
        r"^the model \(Net\) does not run under",
    ),
    "LSTM": (
        lambda: Net(rows, rnn=nn.LSTM(20, 4, batch_first=True)),
        r"^rnn \(LSTM\) does not run under vmap",
    ),
    "GRU": (lambda: Net(rows, rnn=nn.GRU(20, 4, batch_first=True)), r"^rnn \(GRU\) does not run"),
    "checkpoint": (lambda: Net(recomputed, inner=inner()), "does not run under vmap"),
}
REFUSED = {
    "a function of its own": (
        lambda: Net(lambda net, h: net.square(h), square=Once()),
        r"^square \(Once\) has no derivative of its gradient, by which .*; put another in its",
    ),
    "a score a pixel": (
        lambda: Returning(lambda y: y[..., None].expand(-1, -1, 4)),
        r"gives \(2, 3, 4\) where logits \(2, 3\) are needed",
    ),
    "two unknown entries": (
        lambda: Returning(lambda y: {"a": y, "b": y}),
        "the model returns a dict of a, b, in which no scores can be told: let it return",
    ),
    "its own error": (
        lambda: Returning(lambda y: {}["missing"]),
        r"does not take images of shape \(2, 1, 12, 12\): 'missing'",
    ),
}
IMAGES, LABELS = torch.rand(2, 1, 12, 12), torch.tensor([0, 2])
KNOWN = Knowledge("oblivious", input_shape=(1, 12, 12), classes=3, batch=2, labels=LABELS[None])


@pytest.fixture
def said(monkeypatch):
    """The lines that a probe says."""
    lines = []
    monkeypatch.setattr(probing, "_say", lines.append)
    return lines


def attacked(net, update, **settings):
    attack = inverting_gradients(**{"steps": 3, "restarts": 2} | settings)
    return attack_updates(attack, [update], net, knowledge=KNOWN, attacker_model=None, seed=0)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's, on its old norms
@pytest.mark.parametrize("name", NETS)
def test_an_odd_model_is_attacked(name, said, monkeypatch):
    make, line = NETS[name]
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # its LSTM runs under vmap
    torch.manual_seed(0)
    net = make()
    net(IMAGES)  # an old weight norm keeps what it computed
    update = train_update(net, IMAGES, LABELS, learning_rate=0.1)
    state = torch.get_rng_state()
    made = attacked(net, update)
    assert made.images.isfinite().all()
    assert made.cost.isfinite().all()
    assert torch.equal(state, torch.get_rng_state())
    assert [bool(re.search(line or "nothing", one)) for one in said] == [True] * (line is not None)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_attacked_is_one_line(name, said):
    make, line = REFUSED[name]
    update = train_update(Net(), IMAGES, LABELS, learning_rate=0.1)
    with pytest.raises(AttackError, match=line) as caught:
        attacked(make(), update)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("vmapped", [True, False])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_evaluation_leaves_no_trace(norm, vmapped):
    """A spectral norm in train mode goes on in its buffers whenever it runs."""
    torch.manual_seed(0)
    net = Net(lambda net, h: net.one(h), one=norm(nn.Conv2d(4, 4, 1)))
    update = train_update(net, IMAGES, LABELS, learning_rate=0.1)
    observation = observe([update], net, KNOWN)
    settings = inverting_gradients(steps=1, restarts=2)
    objective = assemble(settings, [update], observation, KNOWN, LABELS[None], torch.Generator())
    objective = replace(probing.probe(objective)[0], vmapped=vmapped)
    rows = torch.rand(2, IMAGES.numel())
    assert torch.equal(objective(rows)[1], objective(rows)[1])


def test_without_its_draws_a_model_is_the_expected_one(said):
    """Of a silo that trains with dropout; a batch norm beside stays in train mode."""
    net = Net(lambda net, h: net.drop(net.norm(h)), drop=DropPath(), norm=nn.BatchNorm2d(4))
    plain = Net(lambda net, h: net.norm(h), norm=nn.BatchNorm2d(4))
    plain.load_state_dict(net.state_dict())
    update = train_update(net, IMAGES, LABELS, learning_rate=0.1)
    assert torch.equal(attacked(net, update).images, attacked(plain, update).images)
    assert net.drop.training  # it is the attacker's copy that is changed


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_name_s_wrapper_is_no_other_model(wrap):
    net = Net()
    update = train_update(net, IMAGES, LABELS, learning_rate=0.1)
    wrapped = wrap(net)
    theirs = train_update(wrapped, IMAGES, LABELS, learning_rate=0.1)
    assert theirs.before.keys().isdisjoint(update.before)
    expected = attacked(net, update).images
    for model, sent in [(net, theirs), (wrapped, update), (wrapped, theirs)]:
        assert torch.equal(attacked(model, sent).images, expected)


def test_opacus_own_module_is_attacked_as_what_it_holds():
    opacus = pytest.importorskip("opacus")
    net = Net()
    update = train_update(net, IMAGES, LABELS, learning_rate=0.1)
    wrapped = opacus.GradSampleModule(copy_of(net))
    theirs = train_update(wrapped, IMAGES, LABELS, learning_rate=0.1)
    assert torch.allclose(attacked(wrapped, theirs).images, attacked(net, update).images, atol=1e-3)
    assert wrapped._module.conv._forward_hooks  # its own are still there


def test_a_gpus_random_numbers_are_left_alone(monkeypatch):
    """A silo that audits itself trains on: only the CPU's are put back."""
    made = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", made.append)
    train_update(Net(), IMAGES, LABELS, learning_rate=0.1)
    one_by_one(lambda x: x, in_dims=(0,))(torch.ones(2))
    assert made == []


class Failing:
    name, needs, uses = "mine", frozenset(), frozenset()

    def reconstruct(self, *_, **__):
        raise KeyError("label 7")


def test_an_attack_that_fails_in_any_way_is_an_attack_error():
    net = Net()
    update = train_update(net, IMAGES, LABELS, learning_rate=0.1)
    with pytest.raises(AttackError, match=r"^mine failed on Net: KeyError: 'label 7'"):
        attack_updates(Failing(), [update], net, knowledge=KNOWN, attacker_model=None, seed=0)
