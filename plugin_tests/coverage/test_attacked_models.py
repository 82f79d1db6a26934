"""Every kind of classifier is attacked: with finite scores, or one line says why it cannot be."""


import pytest
import torch
from torch import nn
from torchvision import models
from zoo import (
    narrow_head,
    torchvision_model,
)

from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation.audit import audit, probe
from fedml_keylock.evaluation.wording import mean_of
from fedml_keylock.inversion import inverting_gradients

LARGE = ("regnet_y_128gf",)
"""637 million weights, 400 of them in its last blocks: an attack holds ten times as many numbers."""
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
    """The same without a third and any further block in a row whose weights have the same shapes."""
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


class Recurrent(nn.Module):
    """An LSTM over the rows of a picture."""

    def __init__(self):
        super().__init__()
        self.conv, self.rnn = nn.Conv2d(1, 4, 3, 2, 1), nn.LSTM(56, 16, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        rows = self.conv(x).transpose(1, 2).flatten(2)
        return self.head(self.rnn(rows)[0][:, -1])


def audited(net, shape, folder, count=2):
    """The scores of a search of three steps; or the line that refuses it."""
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 2
    try:
        subject = probe(net, images, labels, batch=count)
        report = audit(
            subject, {"ig": inverting_gradients(steps=3, restarts=1)}, ("oblivious",), output=folder
        )
    except AttackError as error:
        return str(error)
    (row,) = [row for row in report.leakage if row.attack == "ig"]
    return {name: mean_of(value) for name, value in row.metrics.items()}
