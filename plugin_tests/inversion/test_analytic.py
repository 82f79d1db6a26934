"""Inputs that are divided out of a gradient, and that a lock behind the layer does not help."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedml_keylock.errors import AttackError, LockError
from fedml_keylock.inversion import AnalyticAttack, Knowledge, LocalTraining, Secrets, linear_input
from fedml_keylock.locks import KeyLockConfig, lock_model

KNOWN = Knowledge("oblivious", input_shape=(1, 28, 28), classes=10)
LABELS = torch.tensor([3, 4, 5])


class ScaleAndShift(nn.Module):
    """What a key-lock's gamma and beta do to a layer's output, both private."""

    def __init__(self, width, generator):
        super().__init__()
        self.gamma = nn.Parameter(0.3 + 1.4 * torch.rand(width, generator=generator))
        self.beta = nn.Parameter(0.3 * torch.randn(width, generator=generator))

    def forward(self, x):
        return x * self.gamma + self.beta


class MLP(nn.Sequential):
    def __init__(self, *, bias=True, lock=False, activation=nn.ReLU):
        torch.manual_seed(0)
        super().__init__()
        self.flat = nn.Flatten()
        self.first = nn.Linear(784, 64, bias=bias)
        if lock:
            self.lock = ScaleAndShift(64, torch.Generator().manual_seed(1))
        self.activation = activation()
        self.head = nn.Linear(64, 10)


def reconstruct(updates, model, knowledge=KNOWN, **arguments):
    return AnalyticAttack().reconstruct(
        updates, model, knowledge=knowledge, generator=torch.Generator(), **arguments
    )


def psnr(images, truth):
    return -10 * (images[:, 0] - truth).square().flatten(1).mean(1).log10()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_the_image_of_an_mlp_is_exact(digits, make_update, activation):
    model = MLP(activation=activation)
    updates = [
        make_update(model, digits[i : i + 1], LABELS[i : i + 1], learning_rate=0.1)
        for i in range(3)
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []
    found = reconstruct(updates, model.eval(), progress=lambda *done: calls.append(done))
    assert found.images.shape == (3, 1, 1, 28, 28)
    assert psnr(found.images, digits).min() > 60
    assert found.labels[:, 0].tolist() == LABELS.tolist()
    assert found.cost.max() < 1e-6
    assert found.history.shape == (1, 3)
    assert found.diverged.tolist() == [0, 0, 0]
    assert (found.attack, found.knowledge) == ("analytic", "oblivious")
    assert calls == [(1, 1)]
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_is_one_linear_layer(digits, make_update):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    known = replace(KNOWN, labels=torch.tensor([[3]]))
    found = reconstruct([make_update(model, digits[:1], LABELS[:1])], model, known)
    assert psnr(found.images, digits[:1]).min() > 60
    assert found.labels.tolist() == [[3]]


def test_scale_and_shift_behind_the_first_layer_do_not_protect_it(digits, make_update):
    """And so a model that starts with a linear layer is not locked at all."""
    model = MLP(lock=True)
    update = make_update(model, digits[:1], LABELS[:1])
    assert "lock.gamma" not in update.before
    found = reconstruct([update], MLP())  # the attacker has no idea of the lock
    assert psnr(found.images, digits[:1]).min() > 60
    aware = replace(KNOWN, secrets=Secrets(("lock.gamma", "lock.beta")))
    assert torch.equal(reconstruct([update], MLP(lock=True), aware).images, found.images)
    with pytest.raises(LockError, match="the model's first layer is linear"):
        lock_model(MLP(), KeyLockConfig(lock="paper"))


def test_the_cost_says_that_an_update_was_not_of_one_image(digits, make_update):
    model = MLP()
    found = reconstruct([make_update(model, digits, LABELS)], model)
    assert found.cost.item() > 1e-2


def test_linear_input_is_exact_for_gradients_of_any_size():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(4, 30, generator=generator)
    bias = torch.randn(4, 8, generator=generator) * torch.tensor([[1.0], [1e-12], [1e-25], [1e9]])
    bias[:, 3] = 0  # a dead unit
    assert torch.allclose(linear_input(bias[..., None] * truth[:, None], bias), truth, atol=1e-6)


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.ones(2, 3, 4), torch.ones(2, 4), r"not \(2, 3, 4\) and \(2, 4\)"),
        (torch.ones(3, 4), torch.ones(3), "are .u, out, in. and"),
        (torch.full((1, 3, 4), float("nan")), torch.ones(1, 3), "weight gradient has NaN"),
        (torch.ones(1, 3, 4), torch.full((1, 3), float("inf")), "bias gradient has NaN"),
        (torch.ones(2, 3, 4), torch.eye(2, 3) * torch.tensor([[1.0], [0]]), "all zero"),
    ],
)
def test_gradients_that_cannot_be_divided_are_refused(weight, bias, message):
    with pytest.raises(AttackError, match=message):
        linear_input(weight, bias)


class Normalising(MLP):
    def forward(self, x):
        return super().forward((x - 0.1) / 0.3)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(784, 784), nn.Linear(784, 10)

    def forward(self, x):
        return self.head(self.first(torch.relu(self.first(x.flatten(1)))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda lenet: lenet(1, 28), r"first layer, conv1 \(Conv2d\), is not linear"),
        (lambda lenet: MLP(bias=False), r"first layer, first \(Linear\), has no bias"),
        (lambda lenet: Normalising(), "does not get an input"),
        (lambda lenet: Twice(), "runs more than once"),
        (lambda lenet: nn.Sequential(nn.Linear(28, 10), nn.Flatten(), nn.Linear(280, 10)),
         "does not get an input"),
    ],
)  # fmt: skip
def test_a_first_layer_of_another_kind_is_refused_by_name(
    lenet, digits, make_update, make, message
):
    model = make(lenet)
    with pytest.raises(AttackError, match=message) as caught:
        reconstruct([make_update(model, digits[:1], LABELS[:1])], model)
    assert "\n" not in str(caught.value)


def test_a_first_layer_that_is_frozen_or_of_another_size_is_refused(digits, make_update):
    model = MLP()
    update = make_update(model, digits[:1], LABELS[:1])
    with pytest.raises(AttackError, match="takes 784 values"):
        reconstruct([update], model, replace(KNOWN, input_shape=(1, 16, 16)))
    model.first.requires_grad_(False)
    with pytest.raises(AttackError, match="is frozen"):
        reconstruct([update], model)


def test_what_the_attack_is_not_made_for_is_refused(digits, make_update):
    model = MLP(lock=True)
    update = make_update(model, digits[:1], LABELS[:1])
    with pytest.raises(AttackError, match=r"a batch of 1, not 3: .* is a mixture"):
        reconstruct([update], model, replace(KNOWN, batch=3))
    names = ("lock.gamma", "lock.beta")
    secrets = Secrets(names, given={name: torch.ones(1, 64) for name in names})
    with pytest.raises(AttackError, match="private state of level 'oracle'; it runs at: obliv"):
        reconstruct([update], model, replace(KNOWN, level="oracle", secrets=secrets))
    with pytest.raises(AttackError, match="does not simulate"):
        reconstruct([update], model, replace(KNOWN, training=LocalTraining(1, epochs=2)))
    with pytest.raises(AttackError, match="no linear layer with 7 outputs"):
        reconstruct([update], MLP(), replace(KNOWN, classes=7))
