"""A locked model as a plain one: the same outputs, and nothing of this package left in it."""

import inspect
import pickle
import subprocess
import sys
import warnings
from copy import deepcopy
from io import BytesIO

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models.convnext import CNBlockConfig, LayerNorm2d

from fedml_keylock import export_model
from fedml_keylock.errors import LockError
from fedml_keylock.locks import (
    KeyLockConfig,
    is_locked,
    lock_model,
    private_state_dict,
    unlock_model,
)
from fedml_keylock.locks.entropy import seeded_uniform


def config(layers="all", **fields):
    return KeyLockConfig(lock="paper", layers=layers, key_length=16, **fields)


def drawn(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Net(nn.Module):
    """Some layers on a map, and a head on its channels."""

    def __init__(self, *body, channels=6):
        super().__init__()
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        return self.head(torch.sigmoid(self.body(x)).flatten(2).mean(2))


class Tokens(Net):
    """The same on (n, l, c)."""

    def forward(self, x):
        return self.head(torch.sigmoid(self.body(x)).mean(1))


class Rows(Net):
    """The same on (n, c)."""

    def forward(self, x):
        return self.head(torch.sigmoid(self.body(x)))


class Patches(nn.Module):
    """A convolution, and a norm over the channels behind its map."""

    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 6, 3), norm, nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x).flatten(2).transpose(1, 2)).mean(1))


def locked(make, how, shape, *, steps=3, dtype=torch.float64):
    """A locked model that was trained, so that neither lock nor statistics are as at the start."""
    torch.manual_seed(0)
    model = make().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # as after many steps
    lock_model(model, how, uniform=seeded_uniform(torch.Generator().manual_seed(0)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(steps):
        optimizer.zero_grad()
        x = 2 * drawn(6, *shape, seed=step).to(dtype) + 1
        cross_entropy(model(x), torch.arange(6) % 3).backward()
        optimizer.step()
    return model.eval()


def error(model, exported, x):
    """The largest difference of two models' outputs, as a share of the largest output."""
    with torch.no_grad():
        wanted, got = model(x), exported(x)
    assert wanted.dtype == got.dtype
    assert wanted.shape == got.shape
    assert wanted.std(0).max() > 1e-3 * wanted.abs().max()  # they do tell inputs apart
    return float((wanted - got).abs().max() / wanted.abs().max().clamp(min=1))


def check(make, how, shape, *, added=()):
    """Export in both precisions; the state's names, apart from those added; nothing of ours."""
    model = locked(make, how, shape)
    names = list(make().state_dict())
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = model.to(dtype)
        x = drawn(6, *shape).to(dtype)
        exported = export_model(model)
        assert error(model, exported, x) < bound
        assert not any("keylock" in type(m).__module__ for m in exported.modules())
        assert not any("keylock" in name for m in exported.modules() for name in vars(m))
        assert not any(m._forward_hooks or m._state_dict_hooks for m in exported.modules())
        assert not any(m._load_state_dict_pre_hooks for m in exported.modules())
        assert {p.dtype for p in exported.parameters()} == {dtype}
        # not the model itself: some of its classes here are local
        assert b"keylock" not in pickle.dumps(list(exported.children()))
        plain = deepcopy(model)
        unlock_model(plain)
        with torch.no_grad():  # the control: the lock does something
            assert (plain(x) - model(x)).abs().max() > 1e-3
    found = list(exported.state_dict())
    if added is not None:
        assert [n for n in found if n not in names] == list(added)
    if added == ():
        assert found == names
        fresh = make()
        fresh.load_state_dict(exported.state_dict())
        assert error(model, fresh.eval(), x) < 1e-5
    return exported


class TestLockedConvolutions:
    """A lock on a convolution itself, which brings its batch norm."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.Conv1d(2, 6, 3),
            lambda: nn.Conv2d(2, 6, 3, stride=2, padding=2, padding_mode="reflect"),
            lambda: nn.Conv3d(2, 6, 2, dilation=2),
            lambda: nn.ConvTranspose1d(2, 6, 3, output_padding=1, stride=2),
            lambda: nn.ConvTranspose2d(2, 6, (2, 3)),
            lambda: nn.ConvTranspose3d(2, 6, 2),
        ],
        ids=["1d", "2d", "3d", "transposed 1d", "transposed 2d", "transposed 3d"],
    )
    def test_it_takes_all_of_it_in(self, make):
        dimensions = len(make().kernel_size)
        check(lambda: Net(make()), config(), (2, *[6] * dimensions))

    def test_one_without_a_bias_gets_one(self):
        def make():
            return Net(nn.Conv2d(2, 6, 3, bias=False))

        check(make, config(), (2, 6, 6), added=["body.0.bias"])

    @pytest.mark.parametrize(
        "make",
        [
            lambda: nn.Conv2d(2, 6, 3, groups=2),
            lambda: nn.Conv1d(2, 6, 3, groups=2),
            lambda: nn.Conv3d(2, 6, 2, groups=2),
            lambda: nn.ConvTranspose2d(2, 6, 3, groups=2),
            lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
        ],
        ids=["2d", "1d", "3d", "transposed 2d", "transposed 1d"],
    )
    def test_a_grouped_one_takes_it_in_too(self, make):
        layer = make()
        shape = (layer.in_channels, *[6] * len(layer.kernel_size))
        check(lambda: Net(make()), config(), shape)

    def test_two_layers_that_share_a_weight_go_on_sharing(self):
        def make():
            model = Net(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3), channels=2)
            model.body[2].weight = model.body[0].weight
            return model

        exported = check(make, config(), (2, 6, 6), added=None)
        assert exported.body[0][0].weight is exported.body[2][0].weight

    def test_a_layer_that_runs_twice(self):
        conv = [nn.Conv2d(2, 2, 3, padding=1), nn.Tanh()]
        check(lambda: Net(*conv, *conv, channels=2), config(), (2, 6, 6))

    def test_a_weight_that_is_made_of_others_stays_so(self):
        made_of = nn.utils.parametrizations.weight_norm

        def make():
            return Net(made_of(nn.Conv2d(2, 6, 3)), nn.Tanh(), nn.Conv2d(6, 6, 1))

        model = locked(make, config(), (2, 6, 6))
        exported = export_model(model)
        assert error(model, exported, drawn(6, 2, 6, 6)) < 1e-10
        assert nn.utils.parametrize.is_parametrized(exported.body[0][0])
        assert type(exported.body[0][1]) is nn.BatchNorm2d
        assert type(exported.body[2]) is nn.Conv2d

    def test_a_weight_that_the_model_reads(self):
        class Reads(Net):
            def forward(self, x):
                return super().forward(x) + self.body[0].weight.sum()

        model = locked(lambda: Reads(nn.Conv2d(2, 6, 3)), config(), (2, 6, 6))
        with pytest.raises(LockError, match=r"^body\.0: the model reads this layer's weight"):
            export_model(model)

    def test_a_weight_whose_type_the_model_reads(self):
        class Casts(Net):
            def forward(self, x):
                return super().forward(x.to(self.body[0].weight.dtype))

        check(lambda: Casts(nn.Conv2d(2, 6, 3)), config(), (2, 6, 6))

    def test_a_convolution_of_the_users_stays_as_it_is(self):
        class Standardised(nn.Conv2d):
            def _conv_forward(self, x, weight, bias):
                weight = weight / weight.std((1, 2, 3), keepdim=True)
                return super()._conv_forward(x, weight, bias)

        model = locked(lambda: Net(Standardised(2, 6, 3)), config(), (2, 6, 6))
        exported = export_model(model)
        assert error(model, exported, drawn(6, 2, 6, 6)) < 1e-10
        assert type(exported.body[0][0]) is Standardised


CONV = [nn.Conv1d, nn.Conv2d, nn.Conv3d]


class TestLockedNorms:
    @pytest.mark.parametrize(
        "norm", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d], ids=["1d", "2d", "3d"]
    )
    @pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
    def test_a_batch_norm_behind_one_convolution(self, norm, bias):
        dimensions = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d].index(norm) + 1
        conv = CONV[dimensions - 1]
        shape = (2, *[5] * dimensions)
        check(lambda: Net(conv(2, 6, 3, bias=bias), norm(6, eps=1e-2)), config(), shape)

    def test_a_batch_norm_behind_a_transposed_convolution(self):
        def make():
            return Net(nn.ConvTranspose2d(2, 6, 3), nn.BatchNorm2d(6))

        check(make, config(), (2, 4, 4))

    @pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
    def test_a_batch_norm_without_a_weight_gets_one(self, bias):
        def make():
            return Net(nn.Conv2d(2, 6, 3, bias=bias), nn.BatchNorm2d(6, affine=False))

        check(make, config(), (2, 6, 6), added=["body.1.weight", "body.1.bias"])

    @pytest.mark.skipif(
        "bias" not in inspect.signature(nn.BatchNorm2d).parameters, reason="a newer torch has it"
    )
    @pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d])
    def test_a_norm_with_a_weight_and_no_bias(self, kind):
        def make():
            norm = (
                nn.GroupNorm(2, 6, bias=False)
                if kind is nn.GroupNorm
                else kind(6, affine=True, bias=False)
            )
            return Net(nn.Conv2d(2, 6, 3, bias=False), norm)

        check(make, config(), (2, 6, 6), added=["body.1.bias"])

    def test_a_batch_norm_without_a_weight_behind_two(self):
        class Two(Net):
            def forward(self, x):
                conv, norm = self.body
                x = norm(conv(x)) + norm(conv(x**2))
                return self.head(torch.sigmoid(x).mean((2, 3)))

        def make():
            return Two(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, affine=False))

        model = locked(make, config(), (2, 6, 6))
        exported = export_model(model)
        assert error(model, exported, drawn(6, 2, 6, 6)) < 1e-10
        old = make().state_dict()
        added = [name for name in exported.state_dict() if name not in old]
        assert added == ["body.1.weight", "body.1.bias"]

    def test_a_batch_norm_behind_a_depthwise_convolution(self):
        def make():
            return Net(nn.Conv2d(2, 6, 3, groups=2), nn.BatchNorm2d(6))

        check(make, config(), (2, 6, 6))

    @pytest.mark.parametrize(
        "norm",
        [
            lambda: nn.BatchNorm2d(6, track_running_stats=False),
            lambda: nn.InstanceNorm2d(6, affine=True),
            lambda: nn.InstanceNorm2d(6, track_running_stats=True, affine=True),
            lambda: nn.GroupNorm(2, 6),
            lambda: LayerNorm2d(6),
        ],
        ids=["batch", "instance", "instance with statistics", "group", "layer"],
    )
    def test_a_norm_of_another_kind(self, norm):
        check(lambda: Net(nn.Conv2d(2, 6, 3), norm()), config(), (2, 6, 6))

    @pytest.mark.parametrize(
        "norm",
        [
            lambda: nn.InstanceNorm2d(6),
            lambda: nn.GroupNorm(3, 6, affine=False),
        ],
        ids=["instance", "group"],
    )
    def test_a_norm_without_a_weight_gets_one(self, norm):
        added = ["body.1.weight", "body.1.bias"]
        exported = check(lambda: Net(nn.Conv2d(2, 6, 3), norm()), config(), (2, 6, 6), added=added)
        assert exported.body[1].affine

    @pytest.mark.parametrize(
        ("norm", "plain"),
        [
            (lambda: nn.LayerNorm(6), True),
            (lambda: nn.LayerNorm(6, bias=False), False),
            (lambda: nn.LayerNorm(6, elementwise_affine=False), False),
            (lambda: nn.RMSNorm(6), False),
            (lambda: nn.RMSNorm(6, elementwise_affine=False), False),
        ],
        ids=["layer", "no bias", "no weight", "rms", "rms without a weight"],
    )
    def test_norms_over_the_last_dimension(self, norm, plain):
        check(lambda: Patches(norm()), config(), (1, 5, 5), added=() if plain else None)

    def test_a_batch_norm_that_also_gets_something_else(self):
        """The lock is in the norm, and not in a convolution that feeds it half the time."""

        class Shared(Net):
            def forward(self, x):
                conv, norm = self.body
                return self.head((norm(conv(x)) + norm(conv(x).tanh())).mean((2, 3)))

        def make():
            return Shared(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6))

        check(make, config(["body.0"]), (2, 6, 6))

    @pytest.mark.parametrize(
        "other",
        [
            lambda conv, norm, x, z: norm(z) + z,
            lambda conv, norm, x, z: norm(z) + conv(-x).abs(),
            lambda conv, norm, x, z: norm(norm(z)),
        ],
        ids=["its output is used", "it runs again", "the norm runs again"],
    )
    def test_a_convolution_that_does_something_else_in_evaluation(self, other):
        class Else(Net):
            def forward(self, x):
                conv, norm = self.body
                z = conv(x)
                z = norm(z) if self.training else other(conv, norm, x, z)
                return self.head(z.tanh().mean((2, 3)))

        def make():
            return Else(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6))

        check(make, config(), (2, 6, 6))

    def test_a_hook_in_front_of_the_norm(self):
        model = locked(lambda: Net(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)), config(), (2, 6, 6))
        model.body[1].register_forward_pre_hook(lambda _module, inputs: (inputs[0].tanh(),))
        assert error(model, export_model(model), drawn(6, 2, 6, 6)) < 1e-10

    def test_a_norm_of_the_users_that_has_a_weight_and_a_bias(self):
        class Batch(nn.BatchNorm2d):
            def forward(self, x):
                return super().forward(x).tanh()

        model = locked(lambda: Net(nn.Conv2d(2, 6, 3), Batch(6)), config(), (2, 6, 6))
        assert error(model, export_model(model), drawn(6, 2, 6, 6)) < 1e-10

    def test_a_forward_that_may_run_otherwise(self):
        class Optional(Net):
            def forward(self, x, raw=False):
                return self.body[0](x) if raw else super().forward(x)

        def make():
            return Optional(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6))

        model = locked(make, config(), (2, 6, 6))
        exported = export_model(model)
        x = drawn(6, 2, 6, 6)
        assert error(model, exported, x) < 1e-10
        assert torch.equal(model(x, raw=True), exported(x, raw=True))

    def test_a_forward_that_depends_on_its_data(self):
        class Depends(Net):
            def forward(self, x):
                return super().forward(x if x.mean() > 100 else -x)

        def make():
            return Depends(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6))

        check(make, config(), (2, 6, 6))

    def test_a_norm_that_scales_positions_is_not_folded(self):
        """Behind a transposition the norm's channels are not the convolution's."""

        class Turned(Net):
            def forward(self, x):
                conv, norm = self.body
                return self.head(norm(conv(x).transpose(1, 2)).mean(1))

        def make():
            return Turned(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6))

        check(make, config(), (2, 8))


class TestLinearLayers:
    LAYERS = ("body.0", "body.2")

    def test_a_layer_norm_behind_it(self):
        class Mean(Net):
            def forward(self, x):
                return self.head(torch.sigmoid(self.body(x)).mean(1))

        def make():
            return Mean(nn.Conv1d(2, 8, 3), nn.Tanh(), nn.Linear(4, 6))

        added = [f"body.2.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")]
        check(make, config(self.LAYERS), (2, 6), added=added)

    @pytest.mark.parametrize("affine", [True, False])
    def test_a_batch_norm_behind_it(self, affine):
        def make():
            conv = nn.Conv1d(2, 4, 3)
            linear, norm = nn.Linear(16, 6), nn.BatchNorm1d(6, affine=affine)
            return Rows(conv, nn.Flatten(), linear, norm)

        added = () if affine else ["body.3.weight", "body.3.bias"]
        check(make, config(self.LAYERS), (2, 6), added=added)

    def test_a_batch_norm_behind_something_that_is_not_known(self):
        """Whether it gets (n, c) or (n, c, l) is not known, and does not matter."""

        class Means(Net):
            def forward(self, x):
                conv, linear, norm = self.body
                return self.head(norm(linear(torch.amax(conv(x), 2))))

        def make():
            return Means(nn.Conv1d(2, 4, 3), nn.Linear(4, 6), nn.BatchNorm1d(6))

        check(make, config(("body.0", "body.1")), (2, 6))

    def test_a_batch_norm_over_positions(self):
        """There are as many as channels, and the norm scales those."""

        class Positions(Net):
            def forward(self, x):
                return self.head(torch.sigmoid(self.body(x)).mean(1))

        def make():
            return Positions(nn.Conv1d(2, 6, 3), nn.Linear(6, 6), nn.BatchNorm1d(6))

        check(make, config(("body.0", "body.1")), (2, 8))

    def test_torchs_transformer_does_not_go_around_it(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv1d(1, 4, 1)
                layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
                self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
                self.head = nn.Linear(4, 3)

            def forward(self, x):
                x = self.conv(x)
                x = x if x.mean() > 100 else x.transpose(1, 2)  # it cannot be traced
                return self.head(self.encoder(x).mean(1))

        how = config(("conv", "*.linear1"))
        model = locked(Odd, how, (1, 5))
        assert error(model, export_model(model), drawn(6, 1, 5)) < 1e-10


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("chained", [False, True])
def test_every_kind_of_lock(activation, chained):
    def make():
        return Net(
            *(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Tanh()),
            *(nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6)),
        )

    check(make, config(activation=activation, chained=chained), (2, 8, 8))


def test_a_channel_that_is_dead():
    model = locked(lambda: Net(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)), config(), (2, 6, 6))
    with torch.no_grad():
        model.body[1].keylock.bias_gamma[2] = -10
    exported = export_model(model)
    assert error(model, exported, drawn(6, 2, 6, 6)) < 1e-10


def test_what_was_trained_is_trained_and_what_was_frozen_is_frozen():
    model = Net(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    for parameter in (*model.body[0].parameters(), *model.body[1].parameters()):
        parameter.requires_grad_(False)
    trained = {n: p.requires_grad for n, p in model.named_parameters()}
    lock_model(model, config())
    exported = export_model(model)
    assert {n: p.requires_grad for n, p in exported.named_parameters()} == trained


def test_a_model_in_a_wrapping():
    inner = locked(lambda: Net(nn.Conv2d(2, 6, 3)), config(chained=True), (2, 6, 6))
    model = nn.Sequential(nn.AvgPool2d(1), inner)
    exported = export_model(model)
    assert error(model, exported, drawn(6, 2, 6, 6)) < 1e-10
    assert b"keylock" not in pickle.dumps(exported)


def test_a_layer_under_two_names():
    class Again(Net):
        def forward(self, x):
            x = self.others[0](self.body[0](x).movedim(1, -1))
            return self.head(x.tanh().mean((1, 2)))

    def made():
        linear = nn.Linear(6, 6)
        model = Again(nn.Conv2d(2, 6, 3), linear)
        model.again, model.others = linear, [linear]
        return model

    model = locked(made, config(("body.*",)), (2, 6, 6))
    exported = export_model(model)
    assert error(model, exported, drawn(6, 2, 6, 6)) < 1e-10
    assert exported.again is exported.body[1] is exported.others[0]
    assert type(exported.again) is nn.Sequential


def test_hooks_of_others_see_what_they_saw():
    model = locked(
        lambda: Net(
            *(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.Tanh()),
            *(nn.Conv2d(6, 6, 1), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()),
        ),
        config(("body.*",)),
        (2, 6, 6),
    )
    for layer in (model.body[1], model.body[3], model.body[5]):
        layer.register_forward_hook(lambda _module, _inputs, output: output * 2 + 1)
    assert error(model, export_model(model), drawn(6, 2, 6, 6)) < 1e-10


def test_a_hook_between_a_convolution_and_its_norm():
    model = locked(lambda: Net(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)), config(), (2, 6, 6))
    model.body[0].register_forward_hook(lambda _module, _inputs, output: output.tanh())
    assert error(model, export_model(model), drawn(6, 2, 6, 6)) < 1e-10


class TestRefusals:
    def test_a_model_that_is_not_locked(self):
        with pytest.raises(LockError, match="the model is not locked"):
            export_model(Net(nn.Conv2d(2, 6, 3)))

    @pytest.mark.parametrize("kind", ["own", "own layer", "shared"])
    def test_a_norm_into_which_nothing_can_be_folded(self, kind):
        """It need not do with a weight and a bias what torch's does, or does it for others too."""

        class Group(nn.GroupNorm):
            def forward(self, x):
                return nn.functional.group_norm(x, self.num_groups)

        class Layer(nn.LayerNorm):
            def forward(self, x):
                return nn.functional.layer_norm(x, self.normalized_shape) * self.weight.sin()

        def make():
            if kind == "own":
                return Net(nn.Conv2d(2, 6, 3), Group(2, 6, affine=False))
            if kind == "own layer":
                return Patches(Layer(6, bias=False))
            model = Net(
                *(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Tanh()),
                *(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)),
            )
            model.body[4].weight = model.body[1].weight
            return model

        model = locked(make, config(), (1, 5, 5) if kind == "own layer" else (2, 6, 6))
        before = private_state_dict(model)
        said = r"^(norm|body\.1): its weight is also another layer's, or its class is the job's own"
        with pytest.raises(LockError, match=said):
            export_model(model)
        assert all(torch.equal(t, before[n]) for n, t in private_state_dict(model).items())

    @pytest.mark.parametrize("how", ["data", "mT"])
    def test_a_model_that_reads_a_folded_weight_by_a_view_of_it(self, how):
        class Reading(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

            def forward(self, x):
                size = getattr(self.conv.weight, how).abs().sum()
                return self.head(torch.relu(self.conv(x)).mean((2, 3))) + size

        model = Reading()
        lock_model(model, config("first"))
        model(torch.rand(5, 1, 8, 8))
        with pytest.raises(LockError, match="conv"):
            export_model(model.eval())

    def test_a_model_on_meta(self):
        model = Net(nn.Conv2d(2, 6, 3)).to("meta")
        lock_model(model, config())
        with pytest.raises(LockError, match="on meta"):
            export_model(model)

    @pytest.mark.parametrize("chained", [False, True])
    def test_a_part_of_a_locked_model(self, chained):
        model = Net(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 1))
        lock_model(model, config(chained=chained))
        with pytest.raises(LockError, match="part of a model"):
            export_model(model.body)
        assert is_locked(model)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_itself_is_not_touched(training):
    def make():
        return Net(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))

    model = locked(make, config(), (2, 6, 6)).train(training)

    def looks():
        state = {**model.state_dict(), **private_state_dict(model), **dict(model.named_buffers())}
        return {
            "values": {n: t.clone() for n, t in state.items()},
            "objects": [id(t) for t in (*model.parameters(), *model.buffers())],
            "modules": [(n, id(m), type(m), m.training) for n, m in model.named_modules()],
            "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
            "hooks": [
                (n, table, list(hooks.items()))
                for n, m in model.named_modules()
                for table, hooks in vars(m).items()
                if table.endswith("hooks")
            ],
            "trained": [p.requires_grad for p in model.parameters()],
        }

    before, random = looks(), torch.get_rng_state()
    exported = export_model(model)
    after = looks()
    assert torch.equal(torch.get_rng_state(), random)
    values, again = before.pop("values"), after.pop("values")
    assert before == after
    assert list(values) == list(again)
    assert all(torch.equal(values[n], again[n]) for n in values)
    with torch.no_grad():
        for tensor in (*exported.parameters(), *exported.buffers()):
            tensor.zero_()
    assert all(torch.equal(values[n], t) for n, t in private_state_dict(model).items())
    assert not any(m.training for m in exported.modules())


def test_a_model_that_keeps_something_of_its_last_pass():
    class Keeps(Net):
        def forward(self, x):
            self.last = {"features": [self.body(x)]}
            return self.head(self.last["features"][0].tanh().mean((2, 3)))

    def make():
        return Keeps(nn.utils.spectral_norm(nn.Conv2d(2, 6, 3).double()))

    model = locked(make, config(), (2, 6, 6))
    model(drawn(6, 2, 6, 6))
    exported = export_model(model)
    assert error(model, exported, drawn(6, 2, 6, 6)) < 1e-10


ELSEWHERE = """
import sys
sys.modules["fedml_keylock"] = None
import torch
model = torch.load(sys.argv[1], weights_only=False)
x, wanted = torch.load(sys.argv[2])
print(float((model(x) - wanted).abs().max()))
scripted = torch.jit.load(sys.argv[3])
print(float((scripted(x) - wanted).abs().max()))
try:
    import fedml_keylock
except ImportError:
    print("blocked")
"""


def test_it_loads_where_this_package_is_not(tmp_path):
    """Every kind of fold, and every module that one may add."""

    def make():
        return nn.Sequential(
            *(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
            *(nn.Conv2d(6, 6, 3, groups=2, padding=1), nn.BatchNorm2d(6), nn.Tanh()),
            *(nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 1, groups=3), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(24, 5), nn.RMSNorm(5), nn.Linear(5, 5), nn.Tanh()),
            nn.Linear(5, 3),
        )

    model = locked(make, config(("[0-9]", "12", "14"), chained=True), (2, 6, 6))
    exported = export_model(model)
    behind = {index: type(exported[index][1]) for index in (13, 14)}
    assert behind == {13: nn.Linear, 14: nn.LayerNorm}
    x = drawn(6, 2, 6, 6)
    assert error(model, exported, x) < 1e-10
    paths = [tmp_path / name for name in ("model.pt", "outputs.pt", "scripted.pt")]
    torch.save(exported, paths[0])
    torch.save((x, model(x).detach()), paths[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is old, and still used
        torch.jit.save(torch.jit.script(exported), paths[2])
    for path in paths:
        assert b"keylock" not in path.read_bytes()
    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    *errors, blocked = run.stdout.split()
    assert blocked == "blocked"
    assert max(map(float, errors)) < 1e-10


def convnext():
    return torchvision.models.ConvNeXt(
        [CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=3
    )


def vit():
    return torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3)


ZOO = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), 32),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), 32),
    "convnext": (convnext, 16),
    "vit": (vit, 16),
}


@pytest.mark.parametrize("name", ZOO)
def test_torchvisions_models(name):
    make, size = ZOO[name]
    model = locked(make, config(), (3, size, size), steps=2)
    x = drawn(6, 3, size, size)
    exact, exported = deepcopy(model), export_model(model)
    assert error(exact, exported, x) < 1e-10
    model = model.float()
    exported = export_model(model)
    # as far from the exact outputs as the locked model's own rounding takes that
    rounding = error(exact, lambda x: model(x.float()).double(), x)
    off = error(exact, lambda x: exported(x.float()).double(), x)
    assert off < max(1e-5, 4 * rounding)
    assert rounding < 1e-4
    x = x.float()
    assert list(exported.state_dict()) == list(make().state_dict())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is old, and still used
        assert error(model, torch.jit.script(exported), x) < 1e-5
        assert error(model, torch.jit.trace(exported, x), x) < 1e-5


@pytest.mark.parametrize("name", ["small", "convnext"])
def test_it_can_be_exported_by_torch(name):
    def small():
        return Net(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6))

    make = small if name == "small" else convnext
    model = locked(make, config(), (3, 16, 16), steps=2)
    x = drawn(6, 3, 16, 16)
    program = torch.export.export(export_model(model), (x,))
    saved = BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    assert error(model, torch.export.load(saved).module(), x) < 1e-10


def blocks():
    """Layers of small random nets: (outputs per group, kernel, groups, bias, norm, activation)."""
    return st.lists(
        st.tuples(
            st.sampled_from([1, 2, 3]),
            st.sampled_from([1, 2, 3]),
            st.sampled_from([1, 2]),
            st.booleans(),
            st.booleans(),
            st.sampled_from(["none", "batch", "bare batch", "group", "instance", "layer"]),
            st.sampled_from([nn.Identity, nn.Tanh, nn.ReLU]),
        ),
        min_size=1,
        max_size=4,
    )


def built(layers):
    made, channels = [], 2
    for width, kernel, groups, bias, transposed, norm, activation in layers:
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        padding = kernel // 2
        out = 2 * width
        made.append(kind(channels, out, kernel, padding=padding, groups=groups, bias=bias))
        channels = out
        norms = {
            "batch": lambda c: nn.BatchNorm2d(c),
            "bare batch": lambda c: nn.BatchNorm2d(c, affine=False),
            "group": lambda c: nn.GroupNorm(2, c),
            "instance": lambda c: nn.InstanceNorm2d(c),
            "layer": lambda c: LayerNorm2d(c),
        }
        if norm in norms:
            made.append(norms[norm](channels))
        made.append(activation())
    return Net(*made, channels=channels)


@given(
    layers=blocks(),
    which=st.sampled_from(["first", "all"]),
    chained=st.booleans(),
    activation=st.sampled_from(["relu", "sigmoid"]),
)
@settings(max_examples=60, deadline=None)
def test_any_small_net(layers, which, chained, activation):
    how = config(which, chained=chained, activation=activation)
    model = locked(lambda: built(layers), how, (2, 7, 7), steps=2)
    exported = export_model(model)
    x = drawn(4, 2, 7, 7)
    with torch.no_grad():
        wanted, got = model(x), exported(x)
    # a norm over two numbers magnifies rounding
    assert (wanted - got).abs().max() < 1e-8 * wanted.abs().max().clamp(min=1)
    assert b"keylock" not in pickle.dumps(exported.state_dict())
    if all(layer[5] in ("batch", "group") for layer in layers):
        assert list(exported.state_dict()) == list(built(layers).state_dict())
