"""Two small nets for 28x28 images: what exact attacks need, and what the paper's lock protects."""

from torch import nn


def mlp(classes: int = 10) -> nn.Module:
    """Images ``(n, 1, 28, 28)`` to scores ``(n, classes)``, by linear layers and ReLU."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 512),
        nn.ReLU(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def cnn(classes: int = 10) -> nn.Module:
    """The same with a convolution before it, which the lock stands behind."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 784, 256),
        nn.ReLU(),
        nn.Linear(256, classes),
    )


MODELS = {"mlp": mlp, "cnn": cnn}
"""`model_args.model` in the YAML."""
