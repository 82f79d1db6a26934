"""Who shares a mask with whom: a graph that holds against so many colluding silos, and cancels."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sealed_silos import secret, silos_of

from fedml_keylock.locks.sealed.encoding import Encoding
from fedml_keylock.locks.sealed.keystream import Keystream
from fedml_keylock.locks.sealed.neighbours import MOST_COMPLETE, SPARSE, neighbours, reach
from fedml_keylock.locks.sealed.sealing import TRAILER, RoundKeys, add_up, seal
from fedml_keylock.locks.sealed.shares import Shares
from fedml_keylock.locks.sealed.tag import join_tags

GRAPHS = [(silos, steps) for silos in range(1, 13) for steps in range(silos // 2 + 1)]


def is_connected(silos, graph):
    """Whether from any of these all others are reached by way of these alone."""
    left, reached = set(silos), []
    todo = [min(left)]
    while todo:
        here = todo.pop()
        if here in left:
            left.remove(here)
            reached.append(here)
            todo += graph[here]
    return not left


@pytest.mark.parametrize(("silos", "steps"), GRAPHS)
def test_neighbours_are_mutual_and_as_many_as_asked_for(silos, steps):
    """Guards `neighbours`: of a mask that one silo alone adds, the sum would not be rid."""
    graph = {place: neighbours(place, silos, steps) for place in range(silos)}
    for place, near in graph.items():
        assert place not in near
        assert list(near) == sorted(set(near))
        assert len(near) == min(2 * steps, silos - 1)
        assert all(place in graph[other] for other in near)


@pytest.mark.parametrize(
    ("silos", "steps"), [(silos, steps) for silos, steps in GRAPHS if steps and silos <= 11]
)
def test_it_stays_connected_whichever_2t_less_1_silos_collude(silos, steps):
    """Guards ``2 * t`` neighbours, at distances 1 to t: every choice of colluding silos is tried.

    What is left connected is hidden but for its sum. With 2t colluding silos some choices part it,
    where there are more than two others: the bound is not lower than it must be.
    """
    graph = {place: neighbours(place, silos, steps) for place in range(silos)}
    for count in range(min(2 * steps, silos)):
        for colluding in combinations(range(silos), count):
            assert is_connected({*range(silos)} - {*colluding}, graph)
    if 2 * steps + 2 <= silos:
        assert not is_connected({*range(silos)} - {*graph[0]}, graph)


def test_what_is_declared_to_collude_is_held_against():
    """Guards `reach`: 2t above the colluders, or complete."""
    for silos in range(1, 131):
        for colluders in range(silos + 3):
            steps = reach(silos, colluders)
            complete = len(neighbours(0, silos, steps)) == silos - 1
            assert 2 * steps > colluders or complete
            # and no more keystreams than that takes
            assert complete or 2 * (steps - 1) <= colluders


def test_undeclared_up_to_64_all_but_two_may_collude_and_beyond_31():
    """Guards MOST_COMPLETE and SPARSE."""
    assert (MOST_COMPLETE, 2 * SPARSE - 1) == (64, 31)
    for silos in range(1, 65):
        assert len(neighbours(0, silos, reach(silos, None))) == silos - 1
    for silos in (65, 66, 100, 1000):
        assert len(neighbours(silos - 1, silos, reach(silos, None))) == 32
    assert [reach(silos, 0) for silos in (1, 2, 3, 100)] == [0, 1, 1, 1]


def keys_of(silos, steps):
    """The keys of all silos of a round, with the neighbours of such a graph."""
    return [
        RoundKeys(
            secret("group"),
            {other: secret(*sorted((own, other))) for other in neighbours(own, silos, steps)},
            own,
            silos,
            b"context",
        )
        for own in range(silos)
    ]


@pytest.mark.parametrize(("silos", "steps"), GRAPHS)
def test_all_masks_and_all_pads_but_one_cancel(silos, steps):
    """Guards the signs and the last pad in `RoundKeys.covers`, and ``sign > 0`` in `seal`.

    The sum of messages of silos that have not moved is S_0, and tags of zeros.
    """
    first = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    encoding = Encoding.of(first, Shares((1,) * silos))
    keys = keys_of(silos, steps)
    total = add_up([seal(encoding, first, each)[0] for each in keys])
    pad = Keystream(keys[0].pad_key(0)).words(12 + 10)
    line = np.concatenate([total[name].numpy().reshape(-1) for name in ("b", "w", TRAILER)])
    assert not (line - pad)[:14].any()
    assert join_tags((line - pad)[14:], silos) == (0, 0)
    for count in {1, silos - 1} - {0, silos}:
        some = add_up([seal(encoding, first, each)[0] for each in keys[:count]])
        assert (some["w"].numpy().reshape(-1) - pad[6:12]).any()


def test_silos_have_masks_with_their_neighbours_on_the_ring_of_participants():
    """Guards `Rounds._keys`: places among those who take part, whatever their indices are."""
    first = {"w": torch.ones(2, 2)}
    for place, silo in enumerate(silos_of(first, (1,) * 9, colluders=2, keep_own=True)):
        silo.seal(first)
        signs = [sign for _, sign in silo.record.covers]
        near = neighbours(place, 9, 2)
        wanted = [1 if place < other else -1 for other in near]
        assert signs == [*wanted, 1, *([-1] if place < 8 else [])]
