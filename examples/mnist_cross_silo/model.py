"""LeNet as the gradient leakage papers have it, three convolutions and a linear layer.

Their activation is a sigmoid, with which it learns slowly; this one has GELU, which is as smooth
(second-order attacks need that) and learns as well as ReLU.
"""

from torch import Tensor, nn


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
