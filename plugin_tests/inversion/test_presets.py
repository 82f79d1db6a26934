from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from fedml_keylock import plugins
from fedml_keylock.demo.jobs import FULL, QUICK
from fedml_keylock.errors import ConfigError
from fedml_keylock.evaluation.metrics import psnr
from fedml_keylock.inversion import (
    Knowledge,
    Pixels,
    dlg,
    gradinversion,
    grnn,
    idlg,
    inverting_gradients,
    tableak,
)
from fedml_keylock.inversion.engine.norm_statistics import batch_statistics

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Knowledge("oblivious", input_shape=(3, 32, 32), classes=10)


@pytest.mark.parametrize("preset", [dlg, idlg, inverting_gradients, gradinversion, grnn])
def test_each_is_registered_under_its_name_and_takes_fields(preset):
    assert plugins.one_of("attacks", preset.__name__) is preset
    assert preset().name == preset.__name__
    assert preset(steps=7, restarts=2).steps == 7
    with pytest.raises(ConfigError, match="step: no such field, perhaps steps; allowed: name, "):
        preset(step=7)


def test_idlg_is_dlg_with_the_label_read_off():
    assert idlg() == replace(dlg(), name="idlg", labels="recover")


def test_idlg_reads_photos_and_every_label(photos, lenet, make_update):
    model = lenet()
    updates = [make_update(model, photos[i : i + 1], torch.tensor([i])) for i in range(3)]
    attack = idlg(steps=25, restarts=2, parametrisation=Pixels("uniform"), enough=1e-6)
    found = attack.reconstruct(
        updates, model, knowledge=KNOWN, generator=torch.Generator().manual_seed(0)
    )
    # the labels are exact whatever becomes of the picture
    assert found.labels.flatten().tolist() == [0, 1, 2]
    scores = psnr(found.images[:, 0], photos[:3])
    assert (scores > 20).sum() >= 2, scores


def normed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.GELU(),
        nn.Conv2d(12, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.GELU(),
        nn.Flatten(), nn.Linear(12 * 16, 10),
    )  # fmt: skip


def statistics_of(model, batches):
    model = model.train()
    made = []
    for batch in batches:
        with torch.no_grad(), batch_statistics(model, ["1", "4"]) as found:
            model(batch)
        made.append(found)
    return {n: tuple(torch.stack([one[n][k] for one in made]) for k in (0, 1)) for n in made[0]}


def test_gradinversion_sees_more_with_the_batch_s_own_statistics(photos, make_update):
    batches = interpolate(photos, size=(16, 16), mode="area").split(1)
    model, labels = normed(), torch.arange(6)[:, None]
    updates = [make_update(model, x, y) for x, y in zip(batches, labels, strict=True)]
    known = replace(KNOWN, input_shape=(3, 16, 16))
    told = replace(known, level="statistics", statistics=statistics_of(model, batches))
    attack = gradinversion(steps=200, restarts=2)
    none = replace(
        attack, total_variation=0.0, squared_norm=0.0, group_consistency=0.0, batch_norm=0.0
    )
    bare, without, seen = (
        psnr(
            a.reconstruct(
                updates, model, knowledge=k, generator=torch.Generator().manual_seed(0)
            ).images[:, 0],
            torch.cat(batches),
        ).mean()
        for a, k in [(none, known), (attack, known), (attack, told)]
    )
    assert without > bare - 0.1, (bare, without, seen)
    assert seen > bare + 0.6, (bare, without, seen)


def test_a_start_is_given_by_a_word_as_yaml_has_it():
    assert dlg(start="uniform") == dlg(parametrisation=Pixels("uniform"))
    with pytest.raises(ConfigError, match=r"start: 'unifrom' is .*'normal', 'standard' or 'unif"):
        dlg(start="unifrom")


@pytest.mark.parametrize("preset", [grnn, tableak])
def test_a_start_does_not_make_another_attack_of_one_that_searches_no_pixels(preset):
    with pytest.raises(ConfigError, match=rf"start: is of .* pixels, and {preset.__name__} search"):
        preset(start="uniform")
    with pytest.raises(ConfigError, match="start: is of"):
        dlg(start="uniform", parametrisation=Pixels("normal"))


@pytest.mark.parametrize("scale", [FULL, QUICK])
def test_the_demonstrations_attacks_can_be_made(scale):
    """The full one runs for minutes, and is a long test."""
    for name, fields in scale.attacks.items():
        assert plugins.one_of("attacks", name)(**{**fields, **scale.adaptive[name]}).name == name
