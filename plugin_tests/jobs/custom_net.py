"""The model of custom_job.py, where no fedml is needed."""

from torch import nn


class Net(nn.Sequential):
    """A convolution with a norm behind it, one without, and a head."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Identity(),
            nn.Linear(64, 3),
        )
