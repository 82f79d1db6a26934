"""What a server that attacks learns of its own test data."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedml_keylock.evaluation.section import InversionSettings
from fedml_keylock.host.observer import Observer
from fedml_keylock.host.server_attacker import Attacker, images_of

IMAGES = torch.linspace(0, 1, 300 * 64).view(300, 1, 8, 8)


def seen(images, **settings):
    section = InversionSettings(attacks=["inverting_gradients"], **settings)
    attacker = Attacker.begin(section, rounds=3, defended=True)
    labels = torch.zeros(len(images), dtype=torch.long)
    attacker.see_data(zip(images.split(50), labels.split(50), strict=True))
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
    attacker.see_data([(IMAGES, torch.zeros(300, dtype=torch.long))])
    assert len(attacker.public.images) == 300


LABELS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    "batches",
    [
        [(IMAGES[:2], LABELS), (IMAGES[:2, :, 1:], LABELS)],  # of another size
        [(IMAGES[:2], LABELS), (IMAGES[:2], torch.zeros(2, 3))],
        [(IMAGES[:2], torch.tensor(1))],
        [(IMAGES[:2], LABELS[:1])],
    ],
)
def test_test_data_that_do_not_fit_together_are_no_images_and_end_no_job(batches):
    assert images_of(batches, 100) is None


class Stream:
    """A loader that does not know its length, as of an IterableDataset."""

    def __iter__(self):
        return iter([(IMAGES[:2], torch.tensor([0, 1]))])

    def __len__(self):
        raise TypeError("object of type 'Stream' has no len()")


def test_test_data_of_no_length_and_a_number_of_classes_that_is_none_are_read():
    attacker = seen(IMAGES)
    Observer(SimpleNamespace(), attacker).see_data([*[None] * 3, Stream(), *[None] * 4])
    assert len(attacker.public.images) == 2
