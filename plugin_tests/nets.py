"""Nets that tests of different parts and benchmarks have in common."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock


def lenet(channels: int = 1, size: int = 12, *, norm: tuple[int, ...] = ()) -> nn.Module:
    """LeNet as in the attacks' literature, with GELU; perhaps batch norms of its own."""
    layers: list[nn.Module] = []
    for index, (inputs, stride) in enumerate([(channels, 2), (12, 2), (12, 1)]):
        layers.append(nn.Conv2d(inputs, 12, 5, stride, 2))
        if index in norm:
            layers.append(nn.BatchNorm2d(12))
        layers.append(nn.GELU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * (size // 4) ** 2, 10))


def sigmoid_lenet() -> nn.Module:
    """The LeNet of DLG (Zhu et al. 2019): sigmoids, every weight uniform in [-0.5, 0.5]."""
    torch.manual_seed(0)
    layers = [nn.Sigmoid() if isinstance(layer, nn.GELU) else layer for layer in lenet(3, 32)]
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
