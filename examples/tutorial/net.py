"""The job's model."""

from torch import Tensor, nn


class Net(nn.Module):
    """Images ``(n, 1, 28, 28)`` to class scores ``(n, 10)``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(12, 12, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(12 * 7 * 7, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
