"""LeNet and ResNet-20 for 28x28 images, as the gradient leakage papers have them.

Their LeNet, three convolutions and a linear layer, has sigmoids, with which it learns slowly; this
one has GELU, which is as smooth (second-order attacks need that) and learns as well as ReLU.
"""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class LeNet(nn.Module):
    """Images ``(n, 1, 28, 28)`` to class scores ``(n, classes)``."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 12, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(12, 12, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(12, 12, 5, padding=2),
            nn.GELU(),
        )
        self.classifier = nn.Linear(12 * 7 * 7, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def resnet20(channels: int = 1, classes: int = 10) -> nn.Module:
    """ResNet-20 (He et al. 2016) on images ``(n, channels, 28, 28)``."""
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
        layers += [BasicBlock(width, width) for _ in range(2)]
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)]
    return nn.Sequential(*layers, *pool)


MODELS = {"lenet": LeNet, "resnet20": resnet20}
"""`model_args.model` in the YAML."""
