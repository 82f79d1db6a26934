"""The paper's six models, for pictures of any number of channels and classes.

LeNet is that of the gradient leakage papers, with ReLU: theirs has sigmoids, with which it hardly
learns from torch's initial weights. ResNet-20 and 32 are those of He et al. for 32x32 pictures,
with projections as shortcuts. The other three are torchvision's, from scratch.
"""

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock


class LeNet(nn.Module):
    """Images ``(n, channels, 32, 32)`` to class scores ``(n, classes)``."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 12, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(12, 12, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(12, 12, 5, padding=2),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(12 * 8 * 8, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def small_resnet(blocks: int, channels: int, classes: int) -> nn.Module:
    """Three stages of so many blocks: ResNet-20 has three in each, ResNet-32 five."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    for inputs, width in ((16, 16), (16, 32), (32, 64)):
        stride, shortcut = width // inputs, None
        if stride > 1:
            narrow = nn.Conv2d(inputs, width, 1, stride, bias=False)
            shortcut = nn.Sequential(narrow, nn.BatchNorm2d(width))
        layers.append(BasicBlock(inputs, width, stride, shortcut))
        layers += [BasicBlock(width, width) for _ in range(blocks - 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def large_resnet(depth: int, channels: int, classes: int) -> nn.Module:
    """torchvision's, whose first layer takes the pictures' channels."""
    model = models.get_model(f"resnet{depth}", weights=None, num_classes=classes)
    if channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def vgg16(channels: int, classes: int, extra_convolution: bool) -> nn.Module:
    """torchvision's, without batch norms; with the lock the paper puts a convolution in front.

    That one has 64 channels and a ReLU behind it, as all others have, and the next takes 64 in
    place of 3.
    """
    model = models.vgg16(weights=None, num_classes=classes)
    first = [_convolution(channels)]
    if extra_convolution:
        first += [nn.ReLU(inplace=True), _convolution(64)]
    model.features = nn.Sequential(*first, *list(model.features)[1:])
    return model


def _convolution(channels: int) -> nn.Module:
    layer = nn.Conv2d(channels, 64, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


def build(
    name: str, *, channels: int, classes: int, extra_convolution: bool, seed: int
) -> nn.Module:
    """A model with the weights that its seed gives it, not locked.

    Args:
        name: a key of `cells.SIZES`.
        channels: of the pictures.
        classes: how many.
        extra_convolution: in front of VGG-16, for the lock; the other models have none.
        seed: of the initial weights; torch's own random numbers stay as they were.

    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "lenet":
            return LeNet(channels, classes)
        if name == "vgg16":
            return vgg16(channels, classes, extra_convolution)
        depth = int(name.removeprefix("resnet"))
        make, of = (small_resnet, (depth - 2) // 6) if depth in (20, 32) else (large_resnet, depth)
        return make(of, channels, classes)
