"""LeNet as the gradient leakage papers have it: three convolutions and a linear layer."""

from torch import Tensor, nn


class LeNet(nn.Module):
    """Images ``(n, 1, 32, 32)`` to class scores ``(n, classes)``."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
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
