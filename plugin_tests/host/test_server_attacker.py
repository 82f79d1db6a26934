"""What a server that attacks learns of its own test data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedml_keylock.evaluation.section import InversionSettings
from fedml_keylock.host.server_attacker import Attacker, ServerCapture
from fedml_keylock.types import ClientUpdate

IMAGES = torch.linspace(0, 1, 300 * 64).view(300, 1, 8, 8)


def seen(images, **settings):
    section = InversionSettings(attacks=["inverting_gradients"], **settings)
    attacker = Attacker.begin(section, rounds=3, defended=True)
    labels = torch.zeros(len(images), dtype=torch.long)
    attacker.see_data(zip(images.split(50), labels.split(50), strict=True), classes=10)
    return attacker


@pytest.mark.parametrize(
    ("images", "bounds"),
    [
        (IMAGES, (0.0, 1.0)),
        (IMAGES * 0.5, (0.0, 1.0)),  # dark pictures are no narrower range
        ((IMAGES.flip(0) - 0.5) / 0.25, (pytest.approx(-2 + 8 / 3, abs=1e-3), 2.0)),
    ],
)
def test_the_range_of_pixels_is_that_of_the_first_hundred(images, bounds):
    assert seen(images).bounds == bounds


def test_the_settings_bounds_come_first():
    assert seen(IMAGES, bounds=(-1, 1)).bounds == (-1, 1)


def test_only_a_simulating_attacker_keeps_more_of_the_data():
    assert len(seen(IMAGES).public.images) == 100
    section = InversionSettings(attacks=["learned"], knowledge=("simulating",))
    attacker = Attacker.begin(section, rounds=3, defended=True)
    attacker.see_data([(IMAGES, torch.zeros(300, dtype=torch.long))], classes=10)
    assert len(attacker.public.images) == 300


class Failing:
    """An attack of a plugin's."""

    name, needs, uses = "mine", frozenset(), frozenset()

    def reconstruct(self, *_, **__):
        raise KeyError("mine")


class Odd(torch.nn.Linear):
    def forward(self, x):
        raise ZeroDivisionError("odd")


@pytest.mark.parametrize(
    ("attack", "model", "data", "line"),
    [
        (
            Failing(),
            torch.nn.Linear,
            True,
            "inverting_gradients, oblivious: mine failed on Linear: KeyError: 'mi",
        ),
        (None, Odd, True, "the model does not take images of shape (1, 1, 8, 8): odd"),
        (None, torch.nn.Linear, False, "not attacked: the job's test data gives no (c, h, w) imag"),
    ],
)
def test_an_attack_that_fails_inline_does_not_end_the_job(
    tmp_path, capsys, attack, model, data, line
):
    section = InversionSettings(attacks=["inverting_gradients"], when="inline", output=tmp_path)
    attacker = Attacker.begin(section, rounds=2, defended=False)
    attacker.see_data([(IMAGES, torch.zeros(300, dtype=torch.long))] if data else [], classes=3)
    if attack is not None:
        attacker.attacks["inverting_gradients"] = attack
    net = model(64, 3)
    args = SimpleNamespace(comm_round=2, learning_rate=0.1, client_num_per_round=1)
    capture = ServerCapture.begin(attacker, args, net, None, name=None, agreement=None)
    before = {name: value.detach() for name, value in net.state_dict().items()}
    after = {name: value + 0.1 for name, value in before.items()}
    capture.add(ClientUpdate(before, after, 0.1, 1, 0, 0))
    assert line in capsys.readouterr().err
