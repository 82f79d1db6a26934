"""What a server and a colluding silo cannot do together, though every silo has the tag's key."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.locks.sealed.rounds import Rounds
from fedml_keylock.locks.sealed.sealing import TRAILER, add_up
from fedml_keylock.locks.sealed.tag import Tag, join_tags, split_tags
from fedml_keylock.types import JobSecrets

SILOS = 3


@pytest.fixture
def silos():
    """Three silos that have received the same first model."""
    pairs = {frozenset((i, j)): bytes([8 * i + j] * 32) for j in range(SILOS) for i in range(j)}
    samples = dict.fromkeys(range(SILOS), 1.0)
    found = []
    for own in range(SILOS):
        mine = {i: pairs[frozenset((i, own))] for i in range(SILOS) if i != own}
        found.append(Rounds(JobSecrets(bytes(32), own, mine, samples)))
        found[own].begin({"w": torch.linspace(-1, 1, 12).view(3, 4)})
    return found


def total_of(silos):
    return add_up([silo.seal({"w": silo.base["w"] + 0.1})[0] for silo in silos])


def changed(total, name="w"):
    words = total[name].clone()
    words.view(-1)[2] += 1 << 20
    return {**total, name: words}


def test_silos_that_were_given_other_sums_have_other_keys(silos, monkeypatch):
    # whoever has the key of a tag finds other words with the same one, by reducing a lattice
    monkeypatch.setattr(Tag, "value", property(lambda self: (0, 0)))
    total = total_of(silos)
    for silo, came in zip(silos, [total, changed(total), total], strict=True):
        silo.open(came)
    assert not silos[0].base["w"].equal(silos[1].base["w"])
    monkeypatch.undo()
    total = total_of(silos)  # what each adds is a step from another model
    for silo in silos:
        with pytest.raises(UpdateRefused, match="round 1: the average is not the sum"):
            silo.open(total)


def test_silos_that_were_given_the_same_sum_go_on(silos):
    for index in range(3):
        total = total_of(silos)
        for silo in silos:
            assert silo.open(total).state["w"][0, 0] == pytest.approx(-1 + 0.1 * (index + 1))


@pytest.mark.parametrize("name", ["w", TRAILER])
def test_a_changed_sum_is_refused(silos, name):
    total = total_of(silos)
    with pytest.raises(UpdateRefused, match="not the sum of what the silos sent"):
        silos[0].open(changed(total, name))


def test_words_that_are_no_sums_of_limbs_are_no_tags():
    words = sum(split_tags((2**64 - 1, k)) for k in (5, 7))
    assert join_tags(words, 2) == (2**64 - 2, 12)
    for place, by in ((0, 1), (3, 1), (4, -13), (0, 2**30)):
        shifted = words.copy()
        shifted[place] += np.int32(by)
        assert join_tags(shifted, 2) is None
