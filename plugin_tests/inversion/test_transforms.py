"""Gradients that were clipped, noised, pruned or quantised, and attackers who know it."""

from dataclasses import replace

import pytest
import torch

from fedml_keylock.errors import ConfigError
from fedml_keylock.inversion import Clip, Knowledge, Noise, Pixels, Prune, Quantise, dlg

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Knowledge("oblivious", input_shape=(3, 32, 32), classes=10, labels=torch.tensor([[3]]))


def gradient(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(40, 5, generator=g), "b": torch.randn(40, generator=g)}


def sent(update, transform, seed=0):
    """The update of a silo that does this to its gradient."""
    raw = {name: update.pseudo_gradient(name) for name in update.before}
    made = transform.apply(raw, torch.Generator().manual_seed(seed))
    rate = update.learning_rate
    return replace(update, after={n: update.before[n] - rate * made[n] for n in made})


def test_clip_scales_what_is_too_long_and_nothing_else():
    raw = gradient()
    norm = torch.cat([value.flatten() for value in raw.values()]).norm()
    made = Clip(float(norm) / 4).apply(raw, torch.Generator())
    assert all(torch.allclose(made[name], raw[name] / 4) for name in raw)
    made = Clip(2 * float(norm)).apply(raw, torch.Generator())
    assert all(torch.equal(made[name], raw[name]) for name in raw)


def test_noise_has_its_deviation_and_follows_the_generator():
    raw = {"w": torch.zeros(20_000)}
    once, again = (Noise(0.5).apply(raw, torch.Generator().manual_seed(1))["w"] for _ in range(2))
    assert torch.equal(once, again)
    assert 0.48 < float(once.std()) < 0.52
    assert abs(float(once.mean())) < 0.02


def test_prune_keeps_the_largest_of_each_layer():
    raw = gradient()
    made = Prune(0.1).apply(raw, torch.Generator())
    for name, value in raw.items():
        kept = made[name] != 0
        assert int(kept.sum()) == round(0.1 * value.numel())
        assert torch.equal(made[name][kept], value[kept])
        assert float(value[kept].abs().min()) >= float(value[~kept].abs().max())


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_quantise_rounds_to_so_many_levels(bits):
    for name, value in Quantise(bits).apply(gradient(), torch.Generator()).items():
        raw = gradient()[name]
        assert len(value.unique()) <= 2**bits
        half = float(raw.max() - raw.min()) / (2**bits - 1) / 2
        assert float((value - raw).abs().max()) <= half * (1 + 1e-5)


@pytest.mark.parametrize("transform", [Clip(1.0), Prune(0.2), Quantise(6)], ids=repr)
def test_the_attacker_s_side_is_the_silo_s_and_has_a_derivative(transform):
    raw = [value[None].repeat(2, *[1] * value.dim()) for value in gradient().values()]
    made = list(transform.apply(gradient(), torch.Generator()).values())
    leaves = [value.clone().requires_grad_() for value in raw]
    replayed = transform.replay(leaves, [value.expand(2, *value.shape) for value in made])
    for one, other in zip(replayed, made, strict=True):
        assert torch.allclose(one[0], other, atol=1e-6)
        assert torch.equal(one[0], one[1])
    slopes = torch.autograd.grad(sum(value.square().sum() for value in replayed), leaves)
    assert all(bool(slope.isfinite().all()) and bool(slope.any()) for slope in slopes)


@pytest.mark.parametrize("transform", [Clip(0.1), Prune(0.3), Quantise(8)], ids=repr)
def test_who_knows_explains_the_update_and_who_does_not_cannot(
    transform, photos, lenet, make_update
):
    """At the true image: what is left of the cost is what the attacker does not know."""
    model = lenet()
    update = sent(make_update(model, photos[:1], torch.tensor([3])), transform)

    class Truth(Pixels):
        def draw(self, count, knowledge, generator):
            return {"images": photos[None, :1].clone()}

    def cost(*transforms):
        known = replace(KNOWN, transforms=transforms)
        attack = dlg(steps=1, inner=1, parametrisation=Truth())
        return float(
            attack.reconstruct([update], model, knowledge=known, generator=torch.Generator()).cost
        )

    assert cost(transform) < 1e-6
    assert cost() > 1e-5


@pytest.mark.parametrize(
    "make",
    [
        lambda: Clip(0.0),
        lambda: Noise(-1.0),
        lambda: Prune(0.0),
        lambda: Prune(1.5),
        lambda: Quantise(0),
        lambda: Quantise(17),
    ],
)
def test_transforms_that_make_no_sense_are_refused(make):
    with pytest.raises(ConfigError):
        make()
