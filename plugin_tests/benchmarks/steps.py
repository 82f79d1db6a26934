"""The models that are timed, and one SGD step of each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from nets import lenet, resnet20
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision import models

from fedml_keylock import KeyLockConfig, lock_model


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
    "LeNet": (lambda: lenet(3, 32), 64),
    "LeNet, one batch norm": (lambda: lenet(3, 32, norm=(0,)), 64),
    "LeNet, three batch norms": (lambda: lenet(3, 32, norm=(0, 1, 2)), 64),
    "ResNet-20": (resnet20, 64),
    "ResNet-18": (lambda: models.resnet18(num_classes=10), 64),
    "ViT-tiny": (vit_tiny, 32),
}
LOCKS = {
    "none": None,
    "rotated": KeyLockConfig(lock="rotated"),
    "paper, first": KeyLockConfig(lock="paper"),
    "paper, all": KeyLockConfig(lock="paper", layers="all"),
    "paper, all, chained": KeyLockConfig(lock="paper", layers="all", chained=True),
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
