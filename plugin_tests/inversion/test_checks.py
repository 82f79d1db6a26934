from dataclasses import replace

import pytest
import torch
from torch import nn

from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.inversion import Knowledge, Secrets, dlg, inverting_gradients
from fedml_keylock.types import ClientUpdate

KNOWN = Knowledge("oblivious", input_shape=(1, 16, 16), classes=10)
ATTACK = inverting_gradients(steps=1)
SEEN = {"norm": (torch.zeros(1, 4), torch.ones(1, 4))}


def draw(count, generator):
    return {"lock1.gamma": torch.rand(count, 12, generator=generator)}


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"level": "psychic"},
            ConfigError,
            "levels of knowledge are oblivious, adaptive, .*, not 'psychic'",
        ),
        ({"input_shape": (16, 16)}, ConfigError, "input_shape"),
        ({"classes": 1}, ConfigError, "classes"),
        ({"batch": 0}, ConfigError, "batch"),
        ({"bounds": (1.0, 0.0)}, ConfigError, "bounds"),
        ({"labels": torch.tensor([[10]])}, AttackError, "0 to 9"),
        ({"labels": torch.tensor([[-1]])}, AttackError, "0 to 9"),
        ({"labels": torch.tensor([[1, 2]])}, AttackError, "labels must be"),
        ({"labels": torch.tensor([[0.5]])}, AttackError, "integers"),
        ({"level": "adaptive", "secrets": Secrets(("a",))}, AttackError, "needs draw"),
        ({"level": "oracle", "secrets": Secrets(("a",))}, AttackError, "needs given"),
        ({"secrets": Secrets(("a",), draw=draw)}, AttackError, "oblivious"),
        ({"level": "statistics"}, AttackError, "needs statistics"),
        ({"level": "statistics", "statistics": {}}, AttackError, "needs statistics"),
        ({"statistics": SEEN}, AttackError, "oblivious attacker sees no statistics"),
        ({"level": "adaptive", "statistics": SEEN}, AttackError, "adaptive attacker sees no"),
        (
            {"level": "statistics", "statistics": SEEN, "secrets": Secrets(("a",))},
            AttackError,
            "'statistics' optimises the secrets: Secrets needs draw",
        ),
    ],
)
def test_knowledge_that_makes_no_sense_is_refused(fields, error, message):
    known = {"level": "oblivious", "input_shape": (1, 16, 16), "classes": 10}
    with pytest.raises(error, match=message):
        Knowledge(**{**known, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"names": ()},
        {"names": ("a", "a")},
        {"names": ("a",), "draw": draw, "given": {"a": torch.ones(1)}},
        {"names": ("a",), "given": {"b": torch.ones(1)}},
    ],
)
def test_secrets_that_make_no_sense_are_refused(fields):
    with pytest.raises(ConfigError):
        Secrets(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "sgd"},
        {"cost": "l3"},
        {"steps": 0},
        {"restarts": 0},
        {"learning_rate": 0},
        {"total_variation": -1},
        {"total_variation": float("nan")},
        {"squared_norm": -1},
        {"group_consistency": float("inf")},
        {"batch_norm": float("nan")},
        {"chunk": 0},
        {"inner": 5},
        {"layer_weights": {"a": -1.0}},
        {"step": 3},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields):
    with pytest.raises(ConfigError):
        inverting_gradients(**fields)


@pytest.fixture
def update(lenet, make_update):
    return make_update(lenet(1, 16), torch.rand(1, 1, 16, 16), torch.tensor([3]))


def attack(update, model, knowledge=KNOWN, attack=ATTACK):
    calls = []
    try:
        attack.reconstruct(
            update if isinstance(update, list) else [update],
            model,
            knowledge=knowledge,
            generator=torch.Generator(),
            progress=lambda done, total: calls.append(done),
        )
    finally:
        refused = not calls
    return refused


def changed(update, **entries):
    return replace(update, after={**update.after, **entries})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda u: [], "no update"),
        (lambda u: replace(u, learning_rate=0.0), "learning rate"),
        (lambda u: replace(u, after=u.before), "changed nothing"),
        (lambda u: changed(u, **{"head.bias": torch.zeros(3)}), "head.bias as"),
        (
            lambda u: replace(
                u,
                before={**u.before, "head.bias": torch.zeros(3)},
                after={**u.after, "head.bias": torch.ones(3)},
            ),
            r"in the model \(10,\)",
        ),
        (
            lambda u: changed(u, **{"conv1.weight": torch.full((12, 1, 5, 5), float("nan"))}),
            "NaN or infinite values in conv1.weight",
        ),
        (lambda u: changed(u, other=torch.ones(1)), "differ in the entries: other"),
        (
            lambda u: replace(
                u,
                before={**u.before, "other": torch.zeros(1)},
                after={**u.after, "other": torch.ones(1)},
            ),
            "trained other",
        ),
        (
            lambda u: replace(
                u,
                before={n: v for n, v in u.before.items() if n != "conv2.bias"},
                after={n: v for n, v in u.after.items() if n != "conv2.bias"},
            ),
            "lacks conv2.bias",
        ),
    ],
)
def test_an_update_that_does_not_fit_is_refused_by_name(update, lenet, change, message):
    with pytest.raises(AttackError, match=message) as caught:
        attack(change(update), lenet(1, 16))
    assert "\n" not in str(caught.value)


def test_knowledge_that_does_not_fit_the_model_is_refused(update, lenet):
    model = lenet(1, 16)
    for knowledge, message in [
        (replace(KNOWN, input_shape=(3, 16, 16)), "does not take images of shape"),
        (replace(KNOWN, input_shape=(1, 32, 32)), "does not take images of shape"),
        (replace(KNOWN, classes=7), "no linear layer with 7"),
        (replace(KNOWN, classes=7, labels=torch.tensor([[1]])), r"the model gives \(1, 10\)"),
        (replace(KNOWN, labels=torch.tensor([[1], [2]])), "1 updates but labels for 2"),
        (replace(KNOWN, secrets=Secrets(("lock1.gamma",))), "has no parameter lock1.gamma"),
        (replace(KNOWN, secrets=Secrets(("head.bias",))), "it is not secret"),
    ]:
        with pytest.raises(AttackError, match=message):
            attack(update, model, knowledge)
    with pytest.raises(AttackError, match="layer_weights names no target: nothing"):
        attack(update, model, attack=replace(ATTACK, layer_weights={"nothing": 1.0}))


def test_secrets_must_be_complete_and_of_the_model_s_shape(lenet, make_update):
    model = lenet(1, 16, locks=(1,))
    update = make_update(model, torch.rand(1, 1, 16, 16), torch.tensor([3]))
    names = ("lock1.gamma", "lock1.beta")
    with pytest.raises(AttackError, match=r"lacks lock1.gamma, lock1.beta.*name it in Secrets"):
        attack(update, model)
    short = replace(KNOWN, level="adaptive", secrets=Secrets(names, draw=draw))
    with pytest.raises(AttackError, match=r"differ in: lock1\.beta"):
        attack(update, model, short)
    for value, message in [
        (torch.ones(2, 12), r"lock1.gamma is \(2, 12\)"),
        (torch.full((1, 12), float("inf")), "lock1.gamma has NaN"),
    ]:
        given = {"lock1.gamma": value, "lock1.beta": torch.zeros(1, 12)}
        wrong = replace(KNOWN, level="oracle", secrets=Secrets(names, given=given))
        with pytest.raises(AttackError, match=message):
            attack(update, model, wrong)


def test_what_is_not_trained_may_be_missing_on_either_side(update, lenet):
    model = lenet(1, 16)
    model.register_buffer("unshared", torch.ones(2))
    extra = {"counter": torch.tensor(3), "frozen": torch.ones(2)}
    more = {"counter": torch.tensor(4), "frozen": torch.ones(2)}
    odd = replace(update, before={**update.before, **extra}, after={**update.after, **more})
    assert not attack(odd, model)


def test_a_layer_that_did_not_move_is_left_out_of_the_cost(update, lenet, make_update):
    images, labels = torch.rand(1, 1, 16, 16), torch.tensor([3])
    known = replace(KNOWN, labels=labels[None])
    model = lenet(1, 16)
    full = make_update(model, images, labels)
    frozen = changed(full, **{"conv1.weight": full.before["conv1.weight"]})
    weighted = dlg(steps=1, inner=3, layer_weights={"conv1.weight": 0.0})
    costs = [
        a.reconstruct([u], model, knowledge=known, generator=torch.Generator()).cost
        for a, u in [(dlg(steps=1, inner=3), frozen), (weighted, full)]
    ]
    assert torch.allclose(costs[0], costs[1])


def test_batch_norm_by_batch_and_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(4 * 36, 10),
    ).eval()  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = {n: v + 0.1 * torch.ones_like(v) if v.is_floating_point() else v + 1
             for n, v in before.items()}  # fmt: skip
    update = ClientUpdate(before, after, 0.1)
    known = replace(KNOWN, input_shape=(1, 8, 8))
    found = [
        ATTACK.reconstruct([update], model, knowledge=known, generator=torch.Generator()).cost
        for _ in range(2)
    ]
    assert torch.equal(*found)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
