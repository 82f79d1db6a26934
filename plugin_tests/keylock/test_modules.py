"""Everything that a module may have beside gamma and beta: what it computes, hides and comes to."""

from __future__ import annotations

import pickle
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from fedml_keylock.keylock.pieces import dense, neutral, turn
from nets import lenet
from torch import nn

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import ConfigError, LockError, PrivateStateError
from fedml_keylock.locks import (
    KeyLockConfig,
    check_model,
    draw_effective,
    effective_state,
    export_model,
    load_private_state_dict,
    lock_info,
    lock_model,
    private_state_dict,
    redraw_lock,
    surrogate,
    unlock_model,
)
from fedml_keylock.locks.entropy import seeded_uniform
from fedml_keylock.locks.paper.chain import lock_values
from fedml_keylock.locks.paper.module import every_lock

MODULES = (
    *("affine", "mixing", "weights", "weights+norm", "weights+inputs", "stem", "head"),
    *("mixing+stem", "weights+stem", "weights+norm+stem", "weights+norm+head", "mixing+head"),
    "weights+norm+inputs+stem+head",
)
FORMS = ("full", "grouped", "householder")
CASES = [
    (module, form)
    for module in MODULES
    for form in FORMS
    if form == "full" or module not in ("affine", "stem")  # these have no matrix
]


def uniform(seed=0):
    return seeded_uniform(torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """Norms, a sum, and a head behind a pool."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.conv, self.behind = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.behind(self.conv(x)))
        return self.head(x.mean((2, 3)))


NETS = {"lenet": lenet, "residual": Residual}
IMAGES = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(5))


def locked(net, module, seed=0, **settings):
    torch.manual_seed(seed)
    model = NETS[net]()
    config = KeyLockConfig(**{"module": module, "targets": "all", "key_length": 8, **settings})
    lock_model(model, config, uniform=uniform(seed))
    return model, config


def step(model, images=IMAGES):
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = F.cross_entropy(model(images), torch.arange(len(images)))
    for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        with torch.no_grad():
            parameter -= 0.05 * gradient


def lock_of(model, name):
    return {holder: lock for holder, _, lock in every_lock(model)}[name]


@pytest.mark.parametrize(("module", "form"), CASES)
@pytest.mark.parametrize("net", NETS)
class TestEveryModule:
    def test_the_public_state_has_the_plain_names_and_nothing_private(self, net, module, form):
        model, config = locked(net, module, form=form)
        plain = NETS[net]()
        constants = check_model(plain, config).constants
        step(model)
        state = model.state_dict()
        assert {n: t.shape for n, t in state.items()} == {
            n: t.shape for n, t in plain.state_dict().items()
        }
        for name, value in constants.items():
            assert (state[name] == value).all(), name
        for name, secret in private_state_dict(model).items():
            assert not any(torch.equal(secret, t) for t in state.values()), name
        with pytest.raises(PrivateStateError):
            pickle.dumps(model)

    def test_a_step_trains_every_piece(self, net, module, form):
        model, _ = locked(net, module, form=form)
        before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        assert any("keylock" in name for name in before)
        step(model)
        for name, parameter in model.named_parameters():
            # a bias in front of a batch norm, or a beta at a dead relu, has no gradient
            if name in before and not name.endswith(("bias", "beta")):
                assert not torch.equal(parameter, before[name]), name

    def test_the_attackers_model_computes_the_same_with_the_silos_state(self, net, module, form):
        model, config = locked(net, module, form=form)
        step(model)
        known, unknowns = surrogate(NETS[net](), config)
        state = effective_state(model)
        assert set(state) == set(unknowns)
        known.load_state_dict(model.state_dict() | state, strict=False)
        torch.testing.assert_close(known.train()(IMAGES), model.train()(IMAGES))

    def test_the_attackers_draws_are_of_the_silos_kind(self, net, module, form):
        model, config = locked(net, module, form=form)
        draws = draw_effective(NETS[net](), config, 2, torch.Generator().manual_seed(1))
        state = effective_state(model)
        assert {n: t.shape[1:] for n, t in draws.items()} == {n: t.shape for n, t in state.items()}
        # in distribution: no piece is ever at its neutral value, and no two draws agree
        for name, (one, two) in draws.items():
            assert not torch.allclose(one, two, atol=1e-3), name

    def test_the_export_computes_the_same(self, net, module, form):
        model, _ = locked(net, module, form=form)
        step(model)
        plain = export_model(model.eval(), example=IMAGES)
        torch.testing.assert_close(plain(IMAGES), model(IMAGES), atol=1e-4, rtol=1e-4)
        assert not any("keylock" in name for name, _ in plain.named_parameters())

    def test_unlocked_it_is_what_it_was(self, net, module, form):
        torch.manual_seed(0)
        plain = NETS[net]().eval()
        model, _ = locked(net, module, form=form)
        assert not torch.allclose(model.eval()(IMAGES), plain(IMAGES))
        unlock_model(model)
        assert torch.equal(model(IMAGES), plain(IMAGES))
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_its_private_state_makes_another_model_of_the_same(self, net, module, form):
        model, _ = locked(net, module, form=form)
        step(model)
        other, _ = locked(net, module, seed=1, form=form)
        other.load_state_dict(model.state_dict())
        assert not torch.allclose(other.eval()(IMAGES), model.eval()(IMAGES))
        load_private_state_dict(other, private_state_dict(model))
        assert torch.equal(other(IMAGES), model(IMAGES))

    def test_another_lock_than_the_owners_is_another_model(self, net, module, form):
        model, config = locked(net, module, form=form)
        step(model)
        before, out = private_state_dict(model), model.eval()(IMAGES)
        redraw_lock(model, config)
        after = private_state_dict(model)
        assert not torch.allclose(model(IMAGES), out, atol=1e-3)
        for name, tensor in after.items():
            statistic = ".keylock." not in name or "running" in name
            assert torch.equal(tensor, before[name]) is statistic, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [5, 12, 16])
def test_a_mixing_of_any_form_is_an_orthogonal_matrix(form, size):
    lock = lock_of(locked_wide(size, form), "0")
    matrix = dense(lock.mixing.detach())
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size))
    x = torch.rand(3, size, 7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(turn(lock.mixing.detach(), x), matrix @ x)
    assert torch.equal(dense(neutral("mixing", lock.mixing)).round(decimals=4), torch.eye(size))


def locked_wide(size, form):
    model = nn.Sequential(nn.Conv2d(1, size, 3), nn.ReLU(), nn.Flatten())
    lock_model(model, KeyLockConfig(module="weights", form=form), uniform=uniform())
    return model


@pytest.mark.parametrize(("form", "most"), [("grouped", 256 * 8), ("householder", 256 * 8)])
def test_narrow_forms_stay_small_on_wide_layers(form, most):
    assert lock_of(locked_wide(256, form), "0").mixing.numel() == most


def test_inputs_and_positions_of_a_head_are_mixed():
    model, _ = locked("lenet", "head")
    head, lock = model[7], lock_of(model, "7")
    x = torch.rand(4, 12, 9, generator=torch.Generator().manual_seed(3))
    public = head._parameters["weight"].view(10, 12, 9)
    weight = torch.einsum("cd,odq,pq->ocp", lock.mixing_inputs, public, lock.mixing_positions)
    expected = torch.einsum("ncp,ocp->no", x, weight) + head.bias
    torch.testing.assert_close(head(x.flatten(1)), expected)


def test_a_stem_is_the_silos_own():
    model, config = locked("lenet", "weights+stem")
    assert not model.state_dict()["0.weight"].any()
    assert not model.state_dict()["0.bias"].any()
    lock = lock_of(model, "0")
    expected = F.conv2d(IMAGES, lock.own_weight, lock.own_bias, 2, 2)
    scale, shift = lock.scale()[:, None, None], lock.shift()[:, None, None]
    torch.testing.assert_close(model[0](IMAGES), scale * expected + shift)
    # what the server sends for it changes nothing, and does not come back
    model.load_state_dict({n: torch.ones_like(t) for n, t in model.state_dict().items()})
    assert not model.state_dict()["0.weight"].any()
    torch.testing.assert_close(model[0](IMAGES), scale * expected + shift)
    assert config.title == "keylock:weights+stem:all"


def test_a_stem_starts_with_other_weights_in_every_silo_whatever_fedml_seeds():
    one, two = (locked("lenet", "stem", seed=seed)[0] for seed in (0, 1))
    torch.manual_seed(0)
    public = lenet()[0].weight
    weights = [lock_of(model, "0").own_weight for model in (one, two)]
    assert not torch.allclose(*weights, atol=1e-2)
    assert not any(torch.allclose(weight, public, atol=1e-2) for weight in weights)
    # the bound that torch draws within, one over the root of 25 inputs
    assert float(weights[0].detach().abs().max()) <= 1 / 5


def test_weights_bring_a_norm_if_asked():
    model, _ = locked("lenet", "weights+norm")
    lock = lock_of(model, "2")
    x = torch.rand(4, 12, 6, 6, generator=torch.Generator().manual_seed(3))
    layer = model[2]
    weight = torch.einsum("oc,cikl->oikl", lock.mixing, layer._parameters["weight"])
    bare = F.batch_norm(F.conv2d(x, weight, None, 2, 2), None, None, training=True)
    expected = lock.scale()[:, None, None] * bare + lock.shift()[:, None, None]
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
    assert lock.running_mean.any()


@pytest.mark.parametrize("module", ["map", "weights+map", "weights+norm+map", "mixing+map"])
def test_a_map_scales_each_place_by_itself(module):
    model, config = locked("lenet", module)
    lock = lock_of(model, "2")
    flat = deepcopy(model)
    with torch.no_grad():
        for _, _, other in every_lock(flat):
            other.map_scale.fill_(1)
            other.map_shift.fill_(0)
    x = torch.rand(4, 12, 6, 6, generator=torch.Generator().manual_seed(3))
    grids = [
        F.interpolate(grid[None], size=(3, 3), mode="bilinear", align_corners=True)[0]
        for grid in (lock.map_scale, lock.map_shift)
    ]
    got, bare = model[2](x), flat[2](x)
    if config.base == "mixing":  # which stands behind the map
        got, bare = (torch.einsum("oc,nchw->nohw", lock.mixing.T, y) for y in (got, bare))
    torch.testing.assert_close(got, bare * grids[0] + grids[1], atol=1e-4, rtol=1e-4)
    known, _ = surrogate(lenet(), config)
    known.load_state_dict(model.state_dict() | effective_state(model), strict=False)
    torch.testing.assert_close(known(IMAGES), model(IMAGES))
    with pytest.raises(LockError, match="cannot be folded"):
        export_model(model)


class TestWhichAreMixed:
    def mixings(self, **settings):
        model, _ = locked("lenet", "weights", **settings)
        return [name for name, _, lock in every_lock(model) if lock.mixing is not None]

    def test_all(self):
        assert self.mixings() == ["0", "2", "4"]

    def test_inner(self):
        assert self.mixings(mixed="inner") == ["2", "4"]

    def test_by_name(self):
        assert self.mixings(mixed=["4"]) == ["4"]

    def test_an_only_layer_is_mixed_whatever_it_is(self):
        assert self.mixings(mixed="inner", targets="first") == ["0"]

    def test_names_that_match_nothing_are_refused(self):
        with pytest.raises(LockError, match=r"mixed: '9' matches none of the locked layers: 0, 2"):
            locked("lenet", "weights", mixed=["9"])

    def test_the_others_have_gamma_and_beta(self):
        model, _ = locked("lenet", "weights", mixed="inner")
        lock = lock_of(model, "0")
        x = IMAGES
        plain = F.conv2d(x, model[0]._parameters["weight"], model[0]._parameters["bias"], 2, 2)
        expected = lock.scale()[:, None, None] * plain + lock.shift()[:, None, None]
        torch.testing.assert_close(model[0](x), expected)


class TestWhatCannotBe:
    @pytest.mark.parametrize(
        ("module", "said"),
        [
            (
                "sten",
                "'sten' is not allowed: use one of affine, mixing, weights, whole, and any of",
            ),
            ("affine+mixing", "use one of"),
            ("weights+weights", "use one of"),
            ("affine+norm", "norm goes with weights: weights+norm"),
            (["inputs"], "inputs goes with weights"),
            ([], "use one of"),
        ],
    )
    def test_a_module_is_refused_in_one_line(self, module, said):
        with pytest.raises(ConfigError, match=r"keylock\.module: ") as caught:
            KeyLockConfig(module=module)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_head_that_is_no_linear_layer(self):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        with pytest.raises(LockError, match="head: the model has no plain linear layer at its end"):
            lock_model(model, KeyLockConfig(module="head"))

    def test_a_stem_whose_weight_is_made_of_others(self):
        conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 4, 3))
        with pytest.raises(LockError, match="stem: no private weights can take the place"):
            lock_model(nn.Sequential(conv, nn.ReLU()), KeyLockConfig(module="stem"))

    def test_a_map_on_what_has_no_map(self):
        model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU())
        lock_model(model, KeyLockConfig(module="map"))
        with pytest.raises(LockError, match=r"output must be \(n, c, h, w\), not 3-d"):
            model(torch.rand(2, 1, 9))


class TestPresets:
    def test_the_papers(self):
        config = KeyLockConfig(preset="paper")
        assert config == KeyLockConfig(
            module="affine", targets="first", activation="relu", key_length=1024, chained=False
        )

    def test_the_strong_one(self):
        model = lenet()
        lock_model(model, KeyLockConfig(preset="strong"))
        mixed = [name for name, _, lock in every_lock(model) if lock.mixing is not None]
        assert mixed == ["2", "4"]
        assert all(lock.normalise == "batch" for _, _, lock in every_lock(model))

    def test_the_default_is_on_the_whole_state(self):
        config = KeyLockConfig()
        assert config == KeyLockConfig(module="whole", targets="all")
        assert config.title == "keylock:whole:all"
        assert KeyLockConfig(**config.model_dump()) == config  # as an audit reads it of a capture

    def test_a_lock_on_layers_has_no_secret_of_a_group(self):
        for settings in ({"preset": "strong"}, {"module": "affine"}, {"module": "weights+head"}):
            with pytest.raises(ConfigError) as caught:
                KeyLockConfig.from_mapping({**settings, "group_key": "group"})
            assert str(caught.value) == (
                "keylock.group_key goes with module: whole, the default; leave out either"
            )
        config = KeyLockConfig(group_key="group")
        assert config.title == "keylock:whole:all:group"

    @pytest.mark.parametrize("lock", [{}, {"module": "whole"}, {"module": ["whole"]}])
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("key_length", 16),
            ("targets", "first"),
            ("targets", ["conv*"]),
            ("mixed", "inner"),
            ("form", "grouped"),
            ("rotate_every", 5),
            ("activation", "identity"),
            ("chained", True),
            ("share_norm_statistics", True),
        ],
    )
    def test_what_is_of_locks_on_layers_is_refused_on_the_whole_state(self, lock, field, value):
        with pytest.raises(ConfigError) as caught:
            KeyLockConfig.from_mapping({**lock, field: value})
        assert str(caught.value) == (
            f"keylock.{field}: {value!r} is of locks on layers, and module: whole has none; leave "
            "it out, or name a module such as affine"
        )
        KeyLockConfig.from_mapping({"module": "weights", field: value})

    def test_a_lock_on_layers_by_name_is_none_on_the_whole_state(self):
        with pytest.raises(ConfigError, match=r"keylock\.preset: 'strong' is of locks on layers"):
            KeyLockConfig(preset="strong", module="whole")
        with pytest.raises(ConfigError, match=r"keylock\.module: .*whole goes alone"):
            KeyLockConfig(module="whole+head")

    def test_fields_beside_it_have_the_last_word(self):
        assert KeyLockConfig(preset="paper", targets="all").title == "keylock:affine:all"

    def test_an_unknown_one_is_refused(self):
        with pytest.raises(ConfigError, match=r"keylock.preset: 'papr' is not allowed"):
            KeyLockConfig(preset="papr")


def test_a_lock_is_drawn_anew_every_so_many_rounds(tmp_path):
    defense = keylock({"module": "weights", "rotate_every": 2, "vault": tmp_path / "vault"})
    model = lenet()
    defense.protect(model, silo=0, agreement=defense.describe(lenet()))
    lock, seen = lock_of(model, "0"), []
    mixing = lock.mixing
    for index in range(5):
        defense.begin_round(model, round_index=index)
        seen.append(mixing.detach().clone())
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        F.cross_entropy(model(IMAGES), torch.arange(6)).backward()
        optimizer.step()
        defense.end_round(model, round_index=index)
    assert lock.mixing is mixing  # an optimizer that holds it goes on with it
    near = [torch.allclose(one, two, atol=0.05) for one, two in pairwise(seen)]
    assert near == [True, False, True, False]
    for drawn in (seen[0], seen[2], seen[4]):  # by its kind, not by what training made of it
        torch.testing.assert_close(drawn @ drawn.T, torch.eye(12))


@pytest.mark.parametrize("chained", [False, True])
def test_a_new_gamma_is_about_1_and_away_from_0_and_a_new_beta_about_0(chained):
    model, _ = locked("lenet", "weights", chained=chained)
    for gamma, beta in lock_values(model).values():
        assert 0.35 < float((gamma.detach() - 1).abs().max()) <= 0.7 + 1e-5
        assert 0 < float(beta.detach().abs().max()) < 1.5


def test_check_says_of_each_layer_what_is_private():
    config = KeyLockConfig(module="weights+norm+inputs+stem+head", targets="all", mixed="inner")
    said = {layer.layer: layer.how for layer in check_model(lenet(), config).layers}
    assert said == {
        "0": "by a lock on it, with a batch norm of its own, its own weights stay in the silo",
        "2": "by a lock on its weights, with a batch norm of its own, its inputs are mixed",
        "4": "by a lock on its weights, with a batch norm of its own, its inputs are mixed",
        "7": "its inputs are mixed, and their positions",
    }
    model = lenet()
    lock_model(model, config)
    assert lock_info(model).layers == ("0", "2", "4", "7")
