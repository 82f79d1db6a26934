"""The paper's matrix: forty-four cells, their published accuracy, and the settings of all of them.

Ren et al., arXiv 2305.04095: eleven pairs of model and data, each under four settings.
"""

from dataclasses import dataclass

KEYLOCK = {"lock": "paper"}
"""The published lock, as the `keylock:` section of a job's YAML has it."""

SETTINGS = ("central", "central+lock", "fedavg", "fedavg+lock")
DATA = ("mnist", "cifar10", "cifar100", "fashion_mnist", "photos")
"""The paper's three, and two that come in packages. No published number is of these two."""

SIZES = {
    "lenet": 32,
    "resnet20": 32,
    "resnet32": 32,
    "resnet18": 224,
    "resnet34": 224,
    "vgg16": 224,
}
"""Model to the side of its pictures, in pixels; whatever has another side is scaled."""

# test accuracy in per cent, in the order of SETTINGS
PUBLISHED = {
    ("lenet", "mnist"): (98.09, 98.07, 98.14, 97.45),
    ("resnet20", "cifar10"): (91.63, 90.58, 91.20, 88.45),
    ("resnet20", "cifar100"): (67.59, 67.49, 58.58, 61.97),
    ("resnet32", "cifar10"): (92.34, 91.05, 91.37, 89.29),
    ("resnet32", "cifar100"): (70.35, 69.89, 61.91, 64.17),
    ("resnet18", "cifar10"): (91.62, 93.12, 89.50, 91.66),
    ("resnet18", "cifar100"): (72.15, 75.90, 68.59, 74.19),
    ("resnet34", "cifar10"): (92.20, 94.68, 89.27, 93.27),
    ("resnet34", "cifar100"): (73.21, 78.22, 68.30, 76.61),
    ("vgg16", "cifar10"): (89.13, 93.84, 88.13, 93.54),
    ("vgg16", "cifar100"): (63.23, 74.86, 61.91, 73.06),
}


@dataclass(frozen=True)
class Cell:
    """One of the matrix, or one like it on other data."""

    model: str
    data: str
    setting: str

    @property
    def name(self) -> str:
        """How its folder is called."""
        return f"{self.model}-{self.data}-{self.setting}"

    @property
    def size(self) -> int:
        return SIZES[self.model]

    @property
    def locked(self) -> bool:
        return self.setting.endswith("+lock")

    @property
    def federated(self) -> bool:
        return self.setting.startswith("fedavg")

    @property
    def published(self) -> float | None:
        """Test accuracy in per cent; None where the paper has none."""
        row = PUBLISHED.get((self.model, self.data))
        return row[SETTINGS.index(self.setting)] if row else None


@dataclass(frozen=True)
class Recipe:
    """How every cell is trained: as published, unless a user wants less.

    Attributes:
        rounds: of FedAvg, or epochs where training is central.
        silos: the training pictures are shared out among them at random, in equal parts.
        epochs: local ones in each round.
        train_images: how many pictures are trained on; 0 for all.
        test_images: how many are tested with, likewise.

    """

    rounds: int = 200
    silos: int = 3
    epochs: int = 1
    batch_size: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    train_images: int = 0
    test_images: int = 0


PAPER = tuple(Cell(*pair, setting) for pair in PUBLISHED for setting in SETTINGS)
"""The forty-four."""


def choose(models: list[str], data: list[str], settings: list[str]) -> list[Cell]:
    """Cells of these models, on these data or else each on those that it was published on."""
    return [
        Cell(model, one, setting)
        for model in models
        for one in data or [d for m, d in PUBLISHED if m == model]
        for setting in settings
    ]
