"""Gradients of single examples: what one example adds, secret batches, and what is refused."""

import copy
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fedml_keylock.errors import ConfigError, LockError
from fedml_keylock.locks.sealed import examples
from fedml_keylock.locks.sealed.example_layers import check_layers
from fedml_keylock.locks.sealed.examples import ExampleGradients, clipped_sums
from fedml_keylock.locks.sealed.poisson import Examples, drawn

CLIP, EXPONENT = 0.5, -20
LIMIT = CLIP * 2.0**20


class Tied(nn.Module):
    """One matrix at two layers, and words in place of pictures."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(self.norm(self.words(x.abs().long() % 9)).mean(1))


class Own(nn.Module):
    """A layer that opacus knows nothing of."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.full((1, 12), 0.3))

    def forward(self, x):
        return torch.where(x > 0, x, self.slope * x)


class Renamed(nn.LSTM):
    """Is none to who asks for the very class."""


def convolutions():
    return nn.Sequential(
        nn.Unflatten(1, (1, 12)),
        nn.Conv1d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(40, 9),
    )


NETS = {
    "linear": lambda: nn.Linear(12, 9),
    "dropout": lambda: nn.Sequential(nn.Linear(12, 30), nn.Dropout(0.3), nn.Linear(30, 9)),
    "convolutions": convolutions,
    "tied": Tied,
    "own": lambda: nn.Sequential(nn.Linear(12, 12), Own(), nn.Linear(12, 9)),
    "double": lambda: nn.Sequential(nn.Linear(12, 9).double()),
}


def net_of(kind):
    torch.manual_seed(1)
    return NETS[kind]()


def data_of(count, model):
    torch.manual_seed(2)
    dtype = next(model.parameters()).dtype
    return 3 * torch.randn(count, 12, dtype=dtype), torch.randint(0, 9, (count,))


def loss_of(model, images, labels, weights=None):
    """A mean, of which an example of weight 0 has no part."""
    each = nn.functional.cross_entropy(model(images), labels, reduction="none")
    return (each if weights is None else each * weights).mean()


def trained(model, batches, *, change=None, make=None, loss=loss_of, after=None, **more):
    """What was watched while a trainer trained."""
    counts = more.pop("counts", [len(batch[0]) for batch in batches])
    settings = {"clip": CLIP, "exponent": EXPONENT, "expected": 10.0, "counts": counts, **more}
    gradients = ExampleGradients(model, **settings)
    optimizer = (make or (lambda p: torch.optim.SGD(p, lr=0.1)))(model.parameters())
    gradients.attach()
    try:
        model.train()
        torch.manual_seed(3)  # of dropout
        for batch in batches:
            optimizer.zero_grad()
            loss(model, *batch).backward()
            if change is not None:
                change(model)
            optimizer.step()
        if after is not None:
            after(model)
    finally:
        gradients.detach()
    gradients.check()
    return gradients


def norm_of(sums):
    return sum(int((total**2).sum()) for total in sums.values()) ** 0.5


# --- what one example adds


@pytest.mark.parametrize("count", [1, 7, 64])
@pytest.mark.parametrize("kind", NETS)
def test_one_example_moves_integer_sums_by_no_more_than_the_clip(kind, count):
    model = net_of(kind)
    images, labels = data_of(count, model)
    start, place = copy.deepcopy(model.state_dict()), count // 2
    found = []
    for weight in (1.0, 0.0):
        model.load_state_dict(start)
        weights = torch.ones(count, dtype=images.dtype)
        weights[place] = weight
        found.append(trained(model, [(images, labels, weights)]).sums)
    moved = {name: found[0][name] - found[1][name] for name in found[0]}
    assert all(total.dtype == torch.int64 for total in moved.values())
    assert 0.9 * LIMIT < norm_of(moved) <= LIMIT
    # of other examples nothing has changed by a bit: alone, or in a smaller batch, to rounding
    model.load_state_dict(start)
    if kind != "dropout":
        alone = trained(model, [(images[place, None], labels[place, None])]).sums
        near = {name: alone[name] - moved[name] for name in moved}
        assert norm_of(near) < 1e-4 * LIMIT


def test_examples_within_the_clip_add_up_to_their_gradient_and_numbers_that_are_none_to_none():
    torch.manual_seed(0)
    samples = {"a": torch.randn(9, 3, 2), "b": torch.randn(9, 4)}
    samples["b"][4, 1], samples["a"][7, 0, 0] = float("nan"), float("inf")
    counted = [row for row in range(9) if row not in (4, 7)]
    sums = clipped_sums(samples, 100.0, -24)
    for name, total in sums.items():
        # toward zero, by less than a step each
        off = total * 2.0**-24 - samples[name][counted].double().sum(0)
        assert off.abs().max() < 7 * 2.0**-24
    rows = torch.tensor([[0.99, -0.99]])
    assert torch.equal(clipped_sums({"w": rows}, 10.0, 0)["w"], torch.zeros(2, dtype=torch.int64))
    assert clipped_sums({"w": rows}, 10.0, -2)["w"].tolist() == [3, -3]


def test_the_integers_of_each_example_are_checked(monkeypatch):
    monkeypatch.setattr(examples, "MARGIN", 1.01)
    with pytest.raises(LockError, match="an example's clipped gradient is longer than its clip"):
        clipped_sums({"w": torch.ones(3, 50)}, 1.0, -20)


def test_a_batch_of_none_adds_nothing_and_steps_follow_the_decoded_mean():
    model = net_of("convolutions")
    images, labels = data_of(5, model)
    start = copy.deepcopy(model.state_dict())
    none = trained(model, [(images[:1], labels[:1])], counts=[0])
    assert norm_of(none.sums) == 0
    assert all(torch.equal(t, start[n]) for n, t in model.state_dict().items())
    gradients = trained(model, [(images, labels)])
    state = model.state_dict()
    for name, total in gradients.sums.items():
        expected = start[name] - 0.1 * (total * 2.0**EXPONENT / 10.0).float()
        assert torch.equal(state[name], expected)
    gradients.check_step(start, state)
    gradients.check_sent(state)


def test_noise_is_added_at_each_of_several_steps_of_any_optimizer():
    model = net_of("linear")
    asked = []

    def draw(count):
        asked.append(count)
        return np.arange(count, dtype=np.int32) << 16

    more = {"make": lambda p: torch.optim.Adam(p, lr=0.01), "draw": draw}
    gradients = trained(model, [data_of(8, model)] * 3, **more)
    assert asked == [108, 9] * 3
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        noised = gradients.sums[name].reshape(-1) + (torch.arange(count) << 16)
        expected = (noised * 2.0**EXPONENT / 10).float().reshape(parameter.shape)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=0.0)


# --- the model is as before


def shape_of(model):
    modules = [(name, repr(vars(module))) for name, module in model.named_modules()]
    return modules, [vars(p) for p in model.parameters()]


@pytest.mark.parametrize("kind", NETS)
def test_the_model_is_as_before_a_round(kind):
    model = net_of(kind)
    model.train()
    images, labels = data_of(4, model)
    start = copy.deepcopy(model.state_dict())
    # also of a loss that is only looked at nothing stays, such as what the layers were given
    more = {"make": lambda p: torch.optim.SGD(p, lr=0.0), "after": lambda m: m(images)}
    trained(model, [(images, labels)], **more)
    model.zero_grad()
    fresh = net_of(kind)
    assert shape_of(model) == shape_of(fresh.train())
    assert all(torch.equal(t, start[n]) for n, t in model.state_dict().items())
    # it is differentiated twice, as attacks do, and its optimizers' steps are their own again
    loss = nn.functional.cross_entropy(model.eval()(images), labels)
    first = torch.autograd.grad(loss, [*model.parameters()], create_graph=True)
    sum(g.square().sum() for g in first).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    kept = next(model.parameters()).grad.clone()
    torch.optim.SGD(model.parameters(), lr=0.0).step()
    assert torch.equal(next(model.parameters()).grad, kept)


def test_steps_of_another_model_are_left_alone():
    model, other = net_of("linear"), net_of("linear")
    images, labels = data_of(4, model)
    theirs = torch.optim.SGD(other.parameters(), lr=1.0)

    def change(_):
        loss_of(other, images, labels).backward()
        theirs.step()

    assert trained(model, [(images, labels)], change=change).steps == 1
    plain = net_of("linear")
    loss_of(plain, images, labels).backward()
    assert torch.equal(other.weight, plain.weight - plain.weight.grad)


# --- what is refused


def scaled(model):
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


def moved(model):
    with torch.no_grad():
        model.bias.data += 1


def hidden(model):
    other = nn.Linear(1, 1)
    other(torch.ones(1, 1)).mean().backward()
    moved(model)
    torch.optim.SGD(other.parameters(), lr=0.1).step()


def penalty(model, images, labels):
    return loss_of(model, images, labels) + 0.01 * model.weight.square().sum()


def twice(model, images, labels):
    return loss_of(model, images.repeat(2, 1), labels.repeat(2))


def weighted(model, images, labels):
    return nn.CrossEntropyLoss(torch.ones(9))(model(images), labels)


def ignoring(model, images, labels):
    labels = labels.where(torch.arange(len(labels)) > 0, -100)
    return nn.functional.nll_loss(model(images).log_softmax(1), labels)


def summed(model, images, labels):
    return nn.CrossEntropyLoss(reduction="sum")(model(images), labels)


def summed_terms(model, images, labels):
    return nn.functional.mse_loss(model(images)[:, 0], labels.float(), reduction="none").sum()


def summed_squares(model, images, labels):
    return nn.MSELoss(reduction="sum")(model(images)[:, 0], labels.float())


def normed(model, images, labels):
    return loss_of(
        lambda x: nn.functional.batch_norm(model(x), None, None, training=True), images, labels
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": weighted}, "mean of cross_entropy with weights of classes .* take the mean of"),
        ({"loss": ignoring}, "mean of nll_loss is over the targets .* not -100; take the mean of"),
        ({"loss": summed}, "the loss of a batch is a sum, .*; take the mean"),
        ({"loss": summed_terms}, "the loss of a batch is a sum, .*; take the mean"),
        ({"loss": summed_squares}, "the loss of a batch is a sum, .*; take the mean"),
        ({"loss": normed}, "batch_norm depends on all of a batch; use GroupNorm"),
        ({"counts": [6]}, "a step beyond the 1 of a round .* set epochs: 1"),
        ({"counts": [6] * 3}, "of 3 batches the trainer took a step by 2"),
        ({"change": scaled}, "weight is not the mean of the examples': the loss has other terms"),
        ({"loss": penalty}, "weight is not the mean of the examples': the loss has other terms"),
        ({"loss": twice}, "weight is not that of the examples that"),
        ({"change": moved}, "bias has changed other than by an optimizer's step"),
        ({"change": hidden}, "bias has changed other than by an optimizer's step"),
        ({"make": lambda p: torch.optim.SGD([next(p)])}, "bias has a gradient and is not in the o"),
    ],
)
def test_a_trainer_that_would_tell_more_is_refused_in_one_line(settings, words):
    model = net_of("linear")
    with pytest.raises(LockError, match=rf"^keylock\.noise: unit: example: .*{words}") as caught:
        trained(model, [data_of(6, model)] * 2, **settings)
    assert "\n" not in str(caught.value)
    assert shape_of(model)[1] == [{}, {}]


class Inner(torch.optim.SGD):
    """Its step is that of the optimizer under it."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize("kind", [torch.optim.SGD, Inner])
def test_gradients_that_a_step_asks_for_are_not_followed(kind):
    torch.optim.SGD([torch.zeros(1)])  # now steps of this class are watched, too
    model, images, labels = net_of("linear"), *data_of(6, net_of("linear"))
    gradients = ExampleGradients(
        model, clip=CLIP, exponent=EXPONENT, expected=10.0, counts=[6] * 2, draw=np.zeros
    )
    optimizer = kind(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss_of(model, images, labels).backward()

    gradients.attach()
    try:
        closure()
        optimizer.step()
        assert gradients.steps == 1
        optimizer.zero_grad()
        with pytest.raises(LockError, match="computed gradients within its step, as with"):
            optimizer.step(closure)
    finally:
        gradients.detach()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
    ],
)
def test_with_one_step_what_is_sent_must_be_plain_sgd(make):
    model = net_of("linear")
    start = copy.deepcopy(model.state_dict())
    gradients = trained(model, [data_of(6, model)], make=make)
    with pytest.raises(LockError, match="is not what plain SGD makes of it in a step"):
        gradients.check_step(start, model.state_dict())
    with pytest.raises(LockError, match="has changed other than by an optimizer's step"):
        gradients.check_sent(start)


def test_layers_that_opacus_cannot_do_are_named_with_what_to_use():
    for layer, name, words in (
        (nn.BatchNorm1d(3), "1", "BatchNorm cannot support .*; use GroupNorm instead"),
        (nn.BatchNorm1d(3, affine=False), "1", "BatchNorm cannot support"),
        (Renamed(3, 3), "1", "use DPLSTM instead"),
        (nn.LSTM(3, 3), "1", "use DPLSTM instead"),
        (nn.MultiheadAttention(4, 2), "1", "use DPMultiheadAttention instead"),
    ):
        kind = type(layer).__name__
        said = rf"^keylock\.noise: unit: example: layer {name} \({kind}\): .*{words}"
        with pytest.raises(ConfigError, match=said) as caught:
            check_layers(nn.Sequential(nn.Linear(3, 3), layer))
        assert "\n" not in str(caught.value)
    frozen = nn.BatchNorm1d(3).requires_grad_(False)
    check_layers(nn.Sequential(nn.Linear(3, 3), frozen))  # if it is in eval when it is called
    with pytest.raises(ConfigError, match="weight is complex, which opacus cannot do"):
        check_layers(nn.Linear(1, 1, dtype=torch.complex64))
    with pytest.raises(ConfigError, match="Linear has no parameter that trains"):
        check_layers(nn.Linear(1, 1).requires_grad_(False))


def test_a_silo_without_opacus_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    said = r"^keylock\.noise: unit: example needs opacus: pip install 'fedml-keylock\[noise\]'$"
    with pytest.raises(ConfigError, match=said):
        check_layers(nn.Linear(1, 1))


# --- secret batches


def test_each_example_is_drawn_by_itself_at_the_rate():
    many = [drawn(500, 0.03) for _ in range(4000)]
    sizes = np.array([len(batch) for batch in many])
    often = np.bincount(np.concatenate(many).astype(int), minlength=500)
    assert abs(sizes.mean() - 15) < 5 * np.sqrt(500 * 0.03 * 0.97 / 4000)
    assert abs(sizes.var() / (500 * 0.03 * 0.97) - 1) < 0.12  # binomial, not constant
    assert abs((often - 120) / np.sqrt(4000 * 0.03 * 0.97)).max() < 5
    assert drawn(3, 1.0) == [0, 1, 2]
    assert drawn(3, 1e-18) == drawn(0, 0.5) == []


def test_batches_are_drawn_from_the_systems_entropy():
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        found.append(drawn(400, 0.5))
    assert found[0] != found[1]


def test_batches_are_of_the_silos_own_examples():
    images, labels = torch.arange(24.0).reshape(12, 2), torch.arange(12)
    whole = TensorDataset(images, labels)
    part = SubsetRandomSampler([7, 3, 3])
    for data, count in (
        (DataLoader(whole, 5, shuffle=True, drop_last=True), 12),
        (DataLoader(whole, 5, sampler=part), 2),
        ([(images[:5], labels[:5]), [images[5:], labels[5:]]], 12),
    ):
        own = Examples.of(data)
        assert len(own) == count
        first, none = own.batches([range(count), []])
        wanted = [3, 7] if count == 2 else [*range(12)]
        assert first[1].tolist() == wanted
        assert torch.equal(first[0], images[wanted])
        assert none[1].tolist() == wanted[:1]
    own = DataLoader(whole, 5, collate_fn=lambda rows: len(rows))
    assert Examples.of(own).batches([[1, 2, 3]]) == [3]


def test_batches_that_are_padded_to_their_longest_are_refused():
    texts = [torch.ones(length) for length in (3, 5, 4)]
    for length in (None, 8):

        def collate(rows, length=length):
            longest = length or max(map(len, rows))
            return {"x": torch.stack([nn.functional.pad(r, (0, longest - len(r))) for r in rows])}

        examples = Examples.of(DataLoader(texts, 2, collate_fn=collate))
        if length:
            assert examples.batches([[0, 1]])[0]["x"].shape == (2, 8)
            continue
        with pytest.raises(ConfigError, match="depend on others of its batch: pad all examples to"):
            examples.batches([[2], [0, 1]])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DataLoader(Stream()), "Stream has no indices"),
        (DataLoader(range(9), sampler=WeightedRandomSampler([1.0] * 9, 9)), "WeightedRandomSam"),
        (DataLoader(range(9), sampler=RandomSampler(range(9), replacement=True)), "RandomSampler"),
        (DataLoader(range(9), batch_sampler=[[0], [1]]), "has batches by a list of list"),
        (DataLoader(range(9), batch_size=None), "has batches by a NoneType"),
        ([torch.rand(3)], "data is a list of Tensor"),
        ([(torch.rand(3), torch.rand(2))], "data is a list of tuple"),
        ([], "data is a list"),
        (None, "data is a NoneType"),
    ],
)
def test_data_of_which_no_example_can_be_drawn_is_refused(data, words):
    with pytest.raises(ConfigError, match=rf"draws batches itself, and .*{words}") as caught:
        Examples.of(data)
    assert "give the silo a DataLoader" in str(caught.value)
