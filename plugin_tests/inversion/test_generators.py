import copy
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from fedml_keylock import plugins
from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.metrics import psnr
from fedml_keylock.inversion import GeneratorWeights, Knowledge, Latent, Pixels, dlg, ggl, grnn
from fedml_keylock.inversion.cost import l2_twice, l2_wasserstein, squared_l2, wasserstein

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Knowledge("oblivious", input_shape=(1, 28, 28), classes=10)
SMALL = GeneratorWeights(width=4, inputs=8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Decoder(nn.Module):
    """Smooth random pictures in (-1, 1), never trained; another batch would normalise otherwise."""

    def __init__(self, size=8, shape=(1, 28, 28), seed=0):
        super().__init__()
        self.shape = shape
        self.first = nn.Linear(size, 32)
        self.norm = nn.BatchNorm1d(32)
        self.second = nn.Linear(32, shape[0] * 49)
        generator = seeded(seed)
        with torch.no_grad():
            for layer in (self.first, self.second):
                width = 2 * layer.in_features**-0.5
                layer.weight.copy_(width * torch.randn(layer.weight.shape, generator=generator))
                layer.bias.zero_()

    def forward(self, latent):
        coarse = self.second(torch.tanh(self.norm(self.first(latent))))
        coarse = coarse.unflatten(1, (self.shape[0], 7, 7))
        return torch.tanh(interpolate(coarse, size=self.shape[1:], mode="bilinear"))


# ---- the weights of a generator -------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "batch"), [((1, 28, 28), 2), ((3, 32, 32), 1), ((2, 5, 11), 1), ((1, 64, 40), 3)]
)
def test_candidates_side_by_side_are_what_each_is_alone(shape, batch):
    known = replace(KNOWN, input_shape=shape, batch=batch, bounds=(-2.0, 3.0))
    unknowns = SMALL.draw(3, known, seeded())
    unknowns = {name: part.double().requires_grad_() for name, part in unknowns.items()}
    images, logits = SMALL.decode(unknowns, known)
    assert images.shape == (3, batch, *shape)
    assert logits.shape == (3, batch, 10)
    pull = torch.randn(images.shape, generator=seeded(1), dtype=torch.float64)
    ((images * pull).sum() + logits.square().sum()).backward()

    plain = SMALL._network(known)
    side = 4 * 2 ** sum(isinstance(layer, nn.Upsample) for layer in plain)
    assert side >= max(shape[1:]) > (side // 2 if side > 8 else 0)
    top, left = (side - shape[1]) // 2, (side - shape[2]) // 2
    for row in range(3):
        # modules of torch's own, with these weights as theirs, one candidate at a time
        network = copy.deepcopy(plain).to_empty(device="cpu").double()
        labels = nn.Linear(8, 10).double()
        parts = {
            **{f"generator.images.{n}": p for n, p in network.named_parameters()},
            **{f"generator.labels.{n}": p for n, p in labels.named_parameters()},
        }
        assert set(parts) == set(unknowns) - {"generator.noise"}
        with torch.no_grad():
            for name, parameter in parts.items():
                parameter.copy_(unknowns[name][row])
        noise = unknowns["generator.noise"][row].detach()
        made = network(noise[..., None, None])[..., top : top + shape[1], left : left + shape[2]]
        made, told = 5 * made - 2, labels(noise)
        ((made * pull[row]).sum() + told.square().sum()).backward()
        torch.testing.assert_close(images[row], made)
        torch.testing.assert_close(logits[row], told)
        for name, parameter in parts.items():
            torch.testing.assert_close(unknowns[name].grad[row], parameter.grad)
    assert unknowns["generator.noise"].grad is None


def test_the_published_generator_for_images_of_32():
    shapes = GeneratorWeights().shapes(replace(KNOWN, input_shape=(3, 32, 32)))
    assert [shape for name, shape in shapes.items() if len(shape) == 4] == [
        (128, 256, 4, 4), (128, 128, 3, 3), (64, 64, 3, 3), (6, 32, 3, 3)
    ]  # fmt: skip
    assert shapes["generator.noise"] == (1, 128)


def test_where_a_generator_starts():
    start = GeneratorWeights().draw(2, KNOWN, seeded())
    assert start["generator.noise"].std() == pytest.approx(1, abs=0.1)
    assert start["generator.labels.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert start["generator.images.0.weight"].std() == pytest.approx(0.02, rel=0.01)
    assert not start["generator.images.0.bias"].any()
    assert bool((start["generator.images.4.weight"] == 1).all())
    assert not start["generator.images.4.bias"].any()
    assert not torch.equal(*start["generator.images.0.weight"])
    assert set(start) == set(GeneratorWeights().shapes(KNOWN)) == set(SMALL.rates(KNOWN))
    assert [name for name, rate in SMALL.rates(KNOWN).items() if not rate] == ["generator.noise"]


@pytest.mark.parametrize("field", [{"width": 0}, {"inputs": 0}, {"deviation": 0.0}])
def test_a_generator_that_cannot_be(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        GeneratorWeights(**field)


def test_a_row_of_a_table_is_no_image():
    with pytest.raises(AttackError, match=r"not \(9,\)"):
        SMALL.shapes(replace(KNOWN, input_shape=(9,)))


@pytest.mark.parametrize("preset", [grnn, dlg])  # RMSprop knows rates, L-BFGS none
def test_noise_stays_and_the_labels_are_the_generator_s(digits, lenet, make_update, preset):
    model = lenet(channels=1, size=28)
    update = make_update(model, digits[:2], torch.tensor([3, 4]))
    known = replace(KNOWN, batch=2)
    noises = []

    class Watched(GeneratorWeights):
        def decode(self, unknowns, knowledge):
            noises.append(unknowns["generator.noise"].detach().clone())
            return super().decode(unknowns, knowledge)

    more = {"inner": 5} if preset is dlg else {}
    attack = preset(steps=5, restarts=2, parametrisation=Watched(4, 8), **more)
    found = attack.reconstruct([update], model, knowledge=known, generator=seeded())
    assert found.images.shape == (1, 2, 1, 28, 28)
    assert found.labels.shape == (1, 2)
    assert found.history[-1] < found.history[0]
    assert all(torch.equal(noise, noises[0]) for noise in noises if noise.shape == noises[0].shape)
    told = replace(known, labels=torch.tensor([[3, 4]]))
    found = attack.reconstruct([update], model, knowledge=told, generator=seeded())
    assert found.labels.tolist() == [[3, 4]]


def test_grnn_s_costs_are_sums():
    gradients, targets = torch.randn(2, 3, 4, generator=seeded()).split(1)
    parts = [gradients], [targets], torch.ones(1, 1)
    assert l2_wasserstein(*parts) == squared_l2(*parts) + wasserstein(*parts)
    assert l2_twice(*parts) == squared_l2(*parts) + squared_l2(*parts).sqrt()
    found = targets.clone().requires_grad_()
    cost = l2_twice([found], [targets], torch.ones(1, 1))
    (gradient,) = torch.autograd.grad(cost.sum(), found)
    assert cost.item() < 1e-9
    assert not gradient.any()


# ---- the latent of a generator --------------------------------------------------------------


def test_a_latent_s_pictures_are_the_generator_s_own_spread_over_the_bounds():
    decoder = Decoder()
    known = replace(KNOWN, batch=3, bounds=(0.0, 10.0))
    latent = Latent(decoder, (8,))
    z = latent.draw(2, known, seeded())["latent"]
    images, labels = latent.decode({"latent": z}, known)
    assert labels is None
    assert images.shape == (2, 3, 1, 28, 28)
    decoder.eval()
    torch.testing.assert_close(images[1, 2], 5 + 5 * decoder(z[1, 2][None])[0])
    # double latents of a float model, and the other way round
    assert latent.decode({"latent": z.double()}, known)[0].dtype == torch.float64


def test_the_generator_given_is_left_alone():
    decoder = Decoder()
    before = copy.deepcopy(decoder.state_dict())
    latent = Latent(decoder, (8,))
    z = torch.randn(2, 1, 8, generator=seeded(), requires_grad=True)
    latent.decode({"latent": z}, KNOWN)[0].sum().backward()
    assert z.grad.any()
    assert decoder.training
    assert all(p.requires_grad and p.grad is None for p in decoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert not latent.generator.training


def test_a_generator_of_other_pictures_is_refused_with_both_shapes(lenet, make_update, digits):
    model = lenet(channels=1, size=28)
    update = make_update(model, digits[:1], torch.tensor([3]))
    other = Latent(Decoder(shape=(3, 32, 32)), (8,))
    with pytest.raises(AttackError, match=r"\(3, 32, 32\), the silos' are \(1, 28, 28\)"):
        ggl(Decoder(shape=(3, 32, 32)), (8,)).reconstruct(
            [update], model, knowledge=KNOWN, generator=seeded()
        )
    with pytest.raises(AttackError, match=r"\(3, 32, 32\), the silos' are \(9,\)"):
        other.shapes(replace(KNOWN, input_shape=(9,)))
    with pytest.raises(AttackError, match=r"takes no latents of shape \(7,\): "):
        Latent(Decoder(), (7,)).shapes(KNOWN)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"generator": torch.tanh}, "Input should be an instance of Module"),
        ({"shape": ()}, "shape"),
        ({"shape": (0,)}, "shape"),
        ({"output_range": (1.0, 1.0)}, "output_range"),
        ({"divergence": -1.0}, "divergence"),
    ],
)
def test_a_latent_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        Latent(**{"generator": nn.Identity(), "shape": (8,), **fields})


def test_the_divergence_is_that_of_two_normal_distributions():
    z = torch.randn(3, 2, 50, generator=seeded(), dtype=torch.float64) * 2 + 1
    normal = torch.distributions.Normal
    entries = normal(z.mean(2), z.std(2, unbiased=False))
    expected = torch.distributions.kl_divergence(entries, normal(0.0, 1.0)).mean(1)
    found = Latent(nn.Identity(), (5, 10), divergence=0.5).penalty({"latent": z.view(3, 2, 5, 10)})
    torch.testing.assert_close(found, expected / 2)
    flat = torch.zeros(1, 1, 4, requires_grad=True)
    Latent(nn.Identity(), (4,), divergence=0.5).penalty({"latent": flat}).sum().backward()
    assert flat.grad.isfinite().all()


def test_who_has_no_penalty_says_zero():
    for one in (Pixels(), SMALL):
        assert one.penalty(one.draw(3, KNOWN, seeded())).tolist() == [0, 0, 0]


def test_another_generator_s_checkpoint_is_another_attack_s():
    one, other = Latent(Decoder(seed=0), (8,)), Latent(Decoder(seed=1), (8,))
    assert repr(one) == repr(Latent(Decoder(seed=0), (8,)))
    assert repr(one) != repr(other)


def test_ggl_says_what_it_needs():
    assert plugins.one_of("attacks", "ggl") is ggl
    with pytest.raises(ConfigError, match=r"needs a generator: ggl\(generator, latent_shape\)"):
        ggl()
    with pytest.raises(ConfigError, match="'lbfgs' is none of cma, adam"):
        ggl(Decoder(), (8,), optimizer="lbfgs")
    with pytest.raises(ConfigError, match="step: no such field"):
        ggl(Decoder(), (8,), step=7)
    assert ggl(Decoder(), (8,), steps=7).steps == 7


@pytest.mark.parametrize(
    "attack",
    [
        ggl(Decoder(), (8,), optimizer="adam", steps=150, restarts=4),
        ggl(Decoder(), (8,), optimizer="cma", steps=100, restarts=4, population=10),
    ],
    ids=lambda attack: attack.optimizer,
)
def test_ggl_finds_the_generator_s_own_pictures(attack, lenet, make_update):
    known = replace(KNOWN, bounds=(-1.0, 1.0))
    with torch.no_grad():
        truth = Decoder().eval()(torch.randn(2, 8, generator=seeded(5)))
    model = lenet(channels=1, size=28)
    updates = [make_update(model, truth[i : i + 1], torch.tensor([i + 3])) for i in range(2)]
    found = attack.reconstruct(updates, model, knowledge=known, generator=seeded())
    assert found.labels.flatten().tolist() == [3, 4]
    errors = (found.images[:, 0] - truth).square().flatten(1).mean(1)
    # the two are alike, and yet further from one another than what is found is from either
    assert (truth[0] - truth[1]).square().mean() > 50 * 1.2e-3
    assert errors.max() < 1.2e-3, errors


# ---- minutes --------------------------------------------------------------------------------


@pytest.mark.long
def test_grnn_reaches_the_published_quality(digits, lenet, make_update):
    digit = interpolate(digits[:1], size=32, mode="bilinear", antialias=True)
    model = lenet(channels=1, size=32)
    update = make_update(model, digit, torch.tensor([3]))
    known = replace(KNOWN, input_shape=(1, 32, 32))
    found = grnn(steps=2000).reconstruct([update], model, knowledge=known, generator=seeded())
    assert found.labels.tolist() == [[3]]
    assert psnr(found.images[:, 0], digit).item() > 40


@pytest.mark.long
def test_ggl_finds_a_face(lenet, make_update):
    models = pytest.importorskip(
        "gan_face_generate.models", reason="pip install --no-deps gan-face-generate==1.1.1"
    )
    generator = models.Generator(0, 3, 100, 64)
    path = str(files("gan_face_generate") / "weights.tar")
    generator.load_state_dict(
        torch.load(path, weights_only=True, map_location="cpu")["netG_state_dict"]
    )
    with torch.no_grad():
        truth = generator.eval()(torch.randn(1, 100, 1, 1, generator=seeded(5)))
    model = lenet(size=64)
    known = replace(KNOWN, input_shape=(3, 64, 64), bounds=(-1.0, 1.0))
    attack = ggl(generator, (100, 1, 1), optimizer="adam", signed=False, steps=6000, restarts=4)
    found = attack.reconstruct(
        [make_update(model, truth, torch.tensor([3]))], model, knowledge=known, generator=seeded()
    )
    # 4.5e-4 was measured; the mean of eight other faces is at .24
    assert (found.images[:, 0] - truth).square().mean() < 1.2e-3
