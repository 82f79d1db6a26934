"""Several local steps, matched by one gradient at a state between before and after."""

from dataclasses import replace

import pytest
import torch
from test_local_training import score, train
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from fedml_keylock import plugins
from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.inversion import Knowledge, LocalTraining, inverting_gradients, surrogate
from fedml_keylock.inversion.engine.assemble import assemble, draw_starts
from fedml_keylock.inversion.engine.observe import observe

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINING = LocalTraining(batch_size=1, epochs=20)
KNOWN = Knowledge(
    "oblivious",
    input_shape=(3, 16, 16),
    classes=10,
    batch=2,
    labels=torch.tensor([[1, 2]]),
    training=TRAINING,
)


def smooth(lenet):
    return lenet(3, 16, activation=nn.GELU)


@pytest.fixture
def crops(photos):
    return interpolate(photos[:2], size=(16, 16), mode="area")


def attacked(attack, updates, model, knowledge=KNOWN):
    return attack.reconstruct(
        updates, model, knowledge=knowledge, generator=torch.Generator().manual_seed(0)
    )


def test_many_steps_are_read_at_the_cost_of_one(crops, lenet):
    """Forty steps; the control takes them for one gradient at the state before them."""
    update = train(smooth(lenet), crops, KNOWN.labels[0], TRAINING, learning_rate=0.02)
    settings = {"steps": 100, "total_variation": 1e-3}
    found = attacked(surrogate(**settings), [update], smooth(lenet))
    still = inverting_gradients(**settings)
    still = attacked(still, [update], smooth(lenet), replace(KNOWN, training=None))
    assert float(found.cost) < float(still.cost) / 5
    assert score(found, crops) > score(still, crops) + 4
    assert (found.attack, found.images.shape) == ("surrogate", (1, 2, 3, 16, 16))
    assert plugins.one_of("attacks", "surrogate") is surrogate


def test_the_gradient_is_the_one_at_that_place(crops, lenet):
    model = lenet(3, 16)
    updates = [
        train(lenet(3, 16), crops, KNOWN.labels[0], TRAINING, learning_rate=rate)
        for rate in (0.1, 0.3)
    ]
    known = replace(KNOWN, labels=KNOWN.labels.repeat(2, 1))
    observation = observe(updates, model, known)
    attack, generator = surrogate(), torch.Generator().manual_seed(0)
    objective = assemble(attack, updates, observation, known, known.labels, generator)
    assert objective.layout.split(draw_starts(attack, objective, known, generator))[
        "surrogate"
    ].tolist() == [[0.5], [0.5]]
    places = torch.tensor([[0.25], [1.0]])
    made, _ = objective.gradients(crops.expand(2, *crops.shape), known.labels, {}, places)
    for row, (update, place) in enumerate(zip(updates, places, strict=True)):
        state = {n: torch.lerp(v, update.after[n], place[0]) for n, v in update.before.items()}
        model.load_state_dict(state)
        loss = cross_entropy(model(crops), known.labels[row])
        true = torch.autograd.grad(loss, list(model.parameters()))
        for name, one, other in zip(objective.targets, made, true, strict=True):
            assert torch.allclose(one[row], other, atol=1e-5), name


def test_the_place_is_searched_within_its_box(crops, lenet):
    training = LocalTraining(batch_size=2, epochs=20)
    update = train(smooth(lenet), crops, KNOWN.labels[0], training, learning_rate=0.05)
    still, searched, leaping = (
        float(
            attacked(
                surrogate(steps=60, total_variation=1e-3, surrogate_learning_rate=rate),
                [update],
                smooth(lenet),
                replace(KNOWN, training=training),
            ).cost
        )
        for rate in (1e-12, 0.01, 1e3)
    )
    assert searched < still / 1.5, (still, searched)
    assert leaping < 0.3  # from one end to the other, and not out into other states


def test_what_it_is_not_for_is_refused(crops, lenet):
    update = train(lenet(3, 16), crops, KNOWN.labels[0], TRAINING, learning_rate=0.3)
    with pytest.raises(AttackError, match="surrogate is for several local steps"):
        attacked(surrogate(), [update], lenet(3, 16), replace(KNOWN, training=None))
    with pytest.raises(ConfigError, match="surrogate is for adam"):
        surrogate(optimizer="rmsprop")
