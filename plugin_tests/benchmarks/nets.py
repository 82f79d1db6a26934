"""The models that are timed, and one SGD step of each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision import models
from torchvision.models.resnet import BasicBlock

from fedml_keylock import KeyLockConfig, lock_model

__all__ = ["LOCKS", "NETS", "make", "resnet20", "sigmoid_lenet", "step_of"]


def lenet(*, norm: tuple[int, ...] = ()) -> nn.Module:
    """LeNet at 32x32 as in the attacks' literature; perhaps with a public batch norm of its own."""
    layers: list[nn.Module] = []
    for index, (inputs, stride) in enumerate([(3, 2), (12, 2), (12, 1)]):
        layers.append(nn.Conv2d(inputs, 12, 5, stride, 2))
        if index in norm:
            layers.append(nn.BatchNorm2d(12))
        layers.append(nn.GELU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 10))


def sigmoid_lenet() -> nn.Module:
    """The LeNet of DLG (Zhu et al. 2019): sigmoids, every weight uniform in [-0.5, 0.5]."""
    torch.manual_seed(0)
    layers = [nn.Sigmoid() if isinstance(layer, nn.GELU) else layer for layer in lenet()]
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def resnet20() -> nn.Module:
    """The ResNet-20 for 32x32 pictures of He et al. 2016, untrained."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    for inputs, width in [(16, 16), (16, 32), (32, 64)]:
        stride = width // inputs
        shortcut = None
        if stride > 1:
            narrow = nn.Conv2d(inputs, width, 1, stride, bias=False)
            shortcut = nn.Sequential(narrow, nn.BatchNorm2d(width))
        layers.append(BasicBlock(inputs, width, stride, shortcut))
        layers += [BasicBlock(width, width) for _ in range(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def vit_tiny() -> nn.Module:
    return models.VisionTransformer(
        image_size=32,
        patch_size=4,
        num_layers=12,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        num_classes=10,
    )


# name: how to make it, and the batch
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "LeNet": (lenet, 64),
    "LeNet, one batch norm": (lambda: lenet(norm=(0,)), 64),
    "LeNet, three batch norms": (lambda: lenet(norm=(0, 1, 2)), 64),
    "ResNet-20": (resnet20, 64),
    "ResNet-18": (lambda: models.resnet18(num_classes=10), 64),
    "ViT-tiny": (vit_tiny, 32),
}
LOCKS = {
    "none": None,
    "first": KeyLockConfig(module="affine"),
    "all": KeyLockConfig(module="affine", targets="all"),
    "all, chained": KeyLockConfig(module="affine", targets="all", chained=True),
    "mixing, all": KeyLockConfig(module="mixing", targets="all"),
    "weights, all": KeyLockConfig(module="weights", targets="all"),
    "strong": KeyLockConfig(preset="strong"),
    "whole": KeyLockConfig(module="whole"),
}


def make(net: str, lock: str) -> nn.Module:
    """A model, locked or not."""
    torch.manual_seed(0)
    model = NETS[net][0]()
    config = LOCKS[lock]
    if config is not None:
        lock_model(model, config)
    return model


def step_of(net: str, lock: str) -> Callable[[], None]:
    """One training step: forward, backward, SGD with momentum and weight decay."""
    model = make(net, lock).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    images: Tensor = torch.rand(NETS[net][1], 3, 32, 32)
    labels = torch.arange(len(images)) % 10

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step
