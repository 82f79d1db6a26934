"""Every kind of classifier is attacked: with finite scores, or one line says why it cannot be."""

from math import prod

import pytest
import torch
from objectives import objective_of, off
from torch import nn
from torchvision import models
from zoo import (
    FAMILIES,
    cheap_start,
    fedml_hub,
    fedml_refused,
    narrow_head,
    small_model,
    torchvision_model,
    torchvision_names,
)

from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation.audit import audit, probe
from fedml_keylock.evaluation.wording import mean_of
from fedml_keylock.inversion import inverting_gradients
from fedml_keylock.inversion.engine import probe as probing

LARGE = ("regnet_y_128gf", "FedML vgg16")
"""With 637 and 134 million weights, however shallow: an attack holds ten times as many numbers."""
TIMM = (
    "coatnet_nano_rw_224",
    "convnextv2_atto",
    "deit_tiny_patch16_224",
    "efficientformerv2_s0",
    "ghostnet_050",
    "levit_128s",
    "lambda_resnet26t",
    "mixer_s32_224",
    "mobilenetv4_conv_small",
    "poolformerv2_s12",
    "repvit_m0_9",
    "xcit_nano_12_p16_224",
)


def shallow(model):
    """The same without a third block in a row, and any more, whose weights have the same shapes."""
    for module in [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]:
        shapes = [[p.shape for p in block.parameters()] for block in module]
        names = [name for name, _ in module.named_children()]
        for place in range(2, len(names)):
            if shapes[place] and shapes[place] == shapes[place - 1] == shapes[place - 2]:
                delattr(module, names[place])
    return model


def of_torchvision(name):
    if name.startswith("vgg"):  # their three last layers have 120 million weights
        return narrow_head(getattr(models, name), 512 * 49), (3, 64, 64)
    model = torchvision_model(name)
    return shallow(model.make()), model.shape


def of_timm(name):
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=10)
    size = net.default_cfg["input_size"][-1] if net.default_cfg.get("fixed_input_size") else 64
    return shallow(net), (3, size, size)


TRIED = [
    *((name, lambda name=name: of_torchvision(name)) for name in torchvision_names()),
    *((name, lambda name=name: of_timm(name)) for name in TIMM),
    *(
        (f"FedML {m.name}", lambda m=m: (m.make(), m.shape))
        for m in (*fedml_hub(), *fedml_refused())
    ),
]
ONE_BY_ONE = {"FedML efficientnet": "_swish (MemoryEfficientSwish) does not run under vmap"}
"""Name to how the line begins that says so."""
REFUSED = {
    **dict.fromkeys(
        ("FedML cnn", "FedML cnn (FedAvg paper)", "FedML lr"), "the truth is .* not .*n, c, h, w"
    ),
    **dict.fromkeys(
        (f"FedML rnn ({data})" for data in ("shakespeare", "fed_shakespeare", "stackoverflow")),
        "cannot be trained on images .*: Expected .* Long",
    ),
}
"""Name to the line: of what has no pictures."""
UNTOLD = {
    **dict.fromkeys(
        ("FedML mobilenet_v3", "squeezenet1_0", "squeezenet1_1"),
        ("no linear layer with .* outputs; .* labels: optimise$", {"labels": "optimise"}),
    ),
    "maxvit_t": ("this head has none; set recovery: magnitude$", {"recovery": "magnitude"}),
}
"""Name to the line about a head that does not tell labels, and to what the line says to set."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "make"), [pytest.param(*one, id=one[0]) for one in TRIED if one[0] not in LARGE]
)
def test_every_model_is_attacked_or_refused_in_a_line(name, make, tmp_path, monkeypatch):
    """Three steps, without further blocks of one kind; with what a line on labels says to set."""
    said = []
    monkeypatch.setattr(probing, "_say", said.append)
    with cheap_start():
        net, shape = make()
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))

    def attacked(**settings):
        attacks = {"ig": inverting_gradients(steps=3, restarts=1, **settings)}
        return audit(probe(net, images, torch.arange(2), batch=2), attacks, output=tmp_path)

    line, settings = UNTOLD.get(name, (REFUSED.get(name), {}))
    if line:
        with pytest.raises(AttackError, match=line) as caught:
            attacked()
        assert "\n" not in str(caught.value)
    if name in REFUSED:
        return
    report = attacked(**settings)
    (row,) = [row for row in report.leakage if row.attack == "ig"]
    assert row.metrics
    assert all(mean_of(value) is not None for value in row.metrics.values())
    slow = [line for line in said if "one candidate at a time" in line]
    assert len(slow) == (name in ONE_BY_ONE)
    if slow:
        assert slow[0].startswith(ONE_BY_ONE[name])


def test_every_model_that_is_expected_to_be_odd_is_there():
    assert {*LARGE, *ONE_BY_ONE, *REFUSED, *UNTOLD} <= {name for name, _ in TRIED}


QUICK = ("VGG", "ViT", "Swin", "SqueezeNet", "ConvNeXt")


@pytest.mark.parametrize(
    "family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.long) for f in FAMILIES]
)
def test_the_gradient_of_an_attack_on_a_family_is_its_own(family):
    torch.manual_seed(0)
    model = small_model(family)
    objective = objective_of(model.make(), 2, model.shape, classes=10)
    rows = torch.rand(3, 2 * prod(model.shape), dtype=torch.float64)
    assert objective.vmapped
    # a longer step may go over a kink of a ReLU or a maximum; a shorter one leaves but rounding
    assert min(off(objective, rows, step=step) for step in (1e-6, 1e-7, 1e-8, 1e-9)) < 1e-5
