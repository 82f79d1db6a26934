"""The frontier of privacy: its simulations do in a step what silos do, and it goes on."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch.nn.utils import parameters_to_vector

from fedml_keylock.builtin import keylock
from fedml_keylock.locks.sealed.examples import ExampleGradients
from fedml_keylock.locks.sealed.job_examples import largest
from fedml_keylock.locks.sealed.noise import Noise, RoundNoise

EXAMPLE = Path(__file__).parents[2] / "examples" / "privacy_frontier"
OWN = ("sets", "by_example", "by_silo", "sums", "show", "run")
OTHERS = (
    *("model", "data"),
    *("accuracy", "attackers", "files", "leakage", "points", "splits", "training"),
)


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in (*OWN, *OTHERS):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in OWN})
    for name in (*OWN, *OTHERS):
        sys.modules.pop(name, None)


@pytest.fixture
def pictures(example):
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.rand(60, 1, 28, 28, generator=draw), torch.arange(60) % 10
    return example.sets.Pictures(images, labels, images, labels)


def state_of(net, vector):
    """A vector of all weights as the net's state."""
    names, sizes = zip(*[(n, p.shape) for n, p in net.named_parameters()], strict=True)
    parts = vector.split([size.numel() for size in sizes])
    return {n: part.view(size) for n, part, size in zip(names, parts, sizes, strict=True)}


def test_a_simulated_step_on_all_examples_is_that_of_silos_but_for_the_draw(example, pictures):
    """Three silos' own hooks, grids and noise give the sum of the union's clipped gradients."""
    silos, multiplier, way = 3, 0.8, example.by_example.Way(60, 1, rate=0.5, clip=1.2)
    first = example.sets.first_model(0)
    each = example.by_example.gradients_of(first)
    vector = parameters_to_vector(first.parameters()).detach()
    found = each(vector, pictures.images, pictures.labels)
    assert float(found.norm(dim=1).max()) > way.clip  # or else nothing is clipped
    plain = example.by_example.clipped_sum(found, way.clip)

    honest = silos - example.sets.colluding(silos)
    noise = RoundNoise(multiplier, silos, honest, {"update": way.clip})
    grid = noise.grid("update", largest(1.0, 20))
    step, summed, noised = 2.0**grid.exponent, 0.0, 0.0
    for images, labels in zip(pictures.images.split(20), pictures.labels.split(20), strict=True):
        net = example.sets.first_model(0)
        settings = {"clip": way.clip, "exponent": grid.exponent}
        one = ExampleGradients(net, **settings, expected=20.0, counts=[20])
        one.attach()
        optimizer = torch.optim.SGD(net.parameters(), way.rate)
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        one.detach()
        words = torch.cat([one.sums[name].flatten() for name, _ in net.named_parameters()])
        summed = summed + words * step
        sent = Noise().over(words.to(torch.int32).numpy(), grid)
        noised = noised + torch.from_numpy(sent) * step

    assert float((summed - plain).abs().max()) < 60 * step + 1e-4  # what is truncated, and rounding
    deviation = multiplier * way.clip * example.sets.widened(silos)
    assert float((noised - summed).std()) == pytest.approx(deviation, rel=0.03)


def test_a_simulated_round_of_silos_is_the_sealed_one_but_for_the_draw(example):
    """The same clipped average, under noise as wide."""
    silos, multiplier, clip = 10, 0.5, 0.7
    net = example.sets.first_model(0)
    first = parameters_to_vector(net.parameters()).detach()
    draw = torch.Generator().manual_seed(0)
    updates = 0.01 * torch.randn(silos, len(first), generator=draw)  # about 1.2 long
    deviation = multiplier * clip * example.sets.widened(silos)
    act = example.by_silo.Sealed(clip, deviation)
    plain = act.sent(updates, first)[0] / silos
    simulated = act.opened(plain, first, silos, draw)

    noise = {"clip": clip, "multiplier": multiplier, "delta": 1e-5}
    lock = keylock({"noise": noise, "colluders": example.sets.colluding(silos)})
    sent = [(1.0, state_of(net, first + update)) for update in updates]
    average = lock.rehearse(state_of(net, first), sent)[1]
    opened = torch.cat([average[n].flatten() for n, _ in net.named_parameters()]) - first

    for found in (opened, simulated):
        assert float((found - plain).std()) == pytest.approx(deviation / silos, rel=0.05)
    assert abs(float((opened - plain).mean())) < 5 * deviation / silos / math.sqrt(len(first))


@pytest.mark.parametrize("frame", ["ldp", "cdp"])
def test_fedml_adds_the_noise_that_is_accounted_for(example, frame):
    """ldp on each message over its clip, cdp on the average over a silo's share in it."""
    silos, multiplier, kind = 5, 2.0, example.by_silo.KINDS["full"]
    act = example.by_silo.FromFedML(frame, kind, multiplier, silos)
    torch.manual_seed(0)
    first = torch.zeros(10_000)
    plain, total = act.sent(torch.randn(silos, len(first)), first)
    opened = act.opened(total / silos, first, silos, None)
    added = {"ldp": kind.clip / silos**0.5, "cdp": kind.weights / silos}[frame]
    assert float((opened - plain / silos).std()) == pytest.approx(multiplier * added, rel=0.05)
    longest = {"ldp": kind.clip, "cdp": kind.weights}[frame]
    assert float(plain.norm()) <= silos * longest * 1.001


def test_who_looks_at_others_sum_has_noise_of_the_multiplier_whatever_their_number(example):
    net = example.sets.first_model(0)
    before = {name: value.detach() for name, value in net.named_parameters()}
    for others in (1, 4):
        parts = [
            example.sums.ClientUpdate(before, {n: v + 0.1 for n, v in before.items()}, 1.0, 1)
            for _ in range(others)
        ]
        seen = example.sums.noised_mean(parts, 2.0, 0.5)
        moved = torch.cat([(seen[name] - before[name]).flatten() for name in before])
        assert float(moved.std()) == pytest.approx(2.0 * 0.5 / others, rel=0.05)
        assert float(moved.mean()) == pytest.approx(0.5 / math.sqrt(len(moved)), abs=0.05)


def test_results_are_kept_and_not_made_again(example, pictures, tmp_path, monkeypatch):
    way = example.by_example.Way
    short = {"NOISED": way(60, 2, 1.0, 3.0), "PLAIN": way(20, 2, 0.1)}
    for name, value in {**short, "EXAMPLES": len(pictures.images), "CANARIES": 3}.items():
        for module in (example.by_example, example.run, example.show):
            monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(example.run, "pictures", lambda root, name: pictures)
    arguments = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--only", "example"]
    kept = tmp_path / "out" / "numbers.json"
    found = []
    for most, left in (("1", "11 results left"), ("50", "0 results left")):
        done = CliRunner().invoke(example.run.main, [*arguments, "--seeds", "1", "--most", most])
        assert done.exception is None, done.exception
        assert done.output.splitlines()[-1] == left
        found.append(json.loads(kept.read_text()))
    assert found[0].items() <= found[1].items()
    noised = found[1]["example mnist 3 silos epsilon 2 seed 0"]
    assert 1.99 < noised["epsilon"] <= 2
    assert f"| {noised['multiplier']:.3f} |" in (tmp_path / "out" / "table.md").read_text()
