"""Pictures and labels, held as bytes and made into numbers batch by batch.

MNIST and CIFAR are torchvision's files. Two more need no download: `fashion_mnist` (Debian: apt-get
install dataset-fashion-mnist) and `photos`, 32x32 colour patches of the ten photos that come with
scikit-image and scikit-learn, labelled by photo, those to test with from another part of each.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TORCHVISION = {"mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
PATCH = 32


@dataclass(frozen=True)
class Pictures:
    """A data set.

    Attributes:
        train: ``(n, c, s, s)``, bytes.
        train_labels: ``(n,)``.
        test: ``(m, c, s, s)``, bytes.
        test_labels: ``(m,)``.
        classes: how many.
        mean: of the training pictures, for each channel, on 0 to 255.
        std: likewise.
        augment: whether training crops and mirrors them: colour pictures, not digits or clothes.

    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int
    mean: Tensor
    std: Tensor
    augment: bool

    @property
    def channels(self) -> int:
        return self.train.shape[1]

    def limited(self, train: int, test: int) -> "Pictures":
        """The first so many of each; 0 for all."""
        return replace(
            self,
            train=self.train[: train or None],
            train_labels=self.train_labels[: train or None],
            test=self.test[: test or None],
            test_labels=self.test_labels[: test or None],
        )


class Batches:
    """Passes over pictures, as FedML and torch take a loader.

    Training shuffles, and colour pictures are cropped at random after a border of four pixels and
    mirrored at random. Each pass is drawn from the seed and from `epoch`, which a trainer sets, so
    that training that was interrupted goes on as if it had not been.
    """

    def __init__(
        self,
        pictures: Pictures,
        part: Tensor | None,
        *,
        size: int,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Over the training pictures at these places, or over all those to test with (None)."""
        self.training, self.seed, self.epoch = part is not None, seed, 0
        images, labels = pictures.test, pictures.test_labels
        if part is not None:
            images, labels = pictures.train[part], pictures.train_labels[part]
        self.images, self.labels = images.to(device), labels.to(device)
        self.augment = self.training and pictures.augment
        self.mean, self.std = (x.to(device).view(-1, 1, 1) for x in (pictures.mean, pictures.std))
        self.size, self.batch_size, self.device = size, batch_size, device

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draw = torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + self.epoch)
        order = torch.arange(len(self.labels))
        if self.training:
            order = order[torch.randperm(len(order), generator=draw)]
        for places in order.split(self.batch_size):
            chosen = places.to(self.device)
            images = self.images[chosen]
            if self.augment:
                images = crop_and_mirror(images, draw)
            yield self._numbers(images), self.labels[chosen]

    def _numbers(self, images: Tensor) -> Tensor:
        numbers = images.float().sub_(self.mean).div_(self.std)
        return numbers if numbers.shape[-1] == self.size else scaled(numbers, self.size)


def scaled(images: Tensor, size: int) -> Tensor:
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def crop_and_mirror(images: Tensor, draw: torch.Generator, border: int = 4) -> Tensor:
    """Each picture ``(n, c, s, s)`` at a place of its own in a black border; half are mirrored."""
    count, channels, side, _ = images.shape
    top, left = torch.randint(2 * border + 1, (2, count, 1), generator=draw).unbind(0)
    down = torch.arange(side).expand(count, side)
    across = torch.where(torch.rand(count, 1, generator=draw) < 0.5, down, side - 1 - down)
    rows, columns = ((x + y).to(images.device) for x, y in ((down, top), (across, left)))
    every = (torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None])
    first, second = (x.to(images.device) for x in every)
    return F.pad(images, [border] * 4)[
        first, second, rows[:, None, :, None], columns[:, None, None]
    ]


def load(name: str, root: Path, *, download: bool = False, stand_in: bool = False) -> Pictures:
    """A data set.

    Args:
        name: one of `cells.DATA`.
        root: torchvision's folder.
        download: fetch what is not there.
        stand_in: random pictures in its place where it is not there; they can only show that a
            cell runs.

    Raises:
        FileNotFoundError: in one line, with the folder and what to do.

    """
    try:
        if name == "fashion_mnist":
            found = _fashion_mnist(root, download)
        elif name == "photos":
            found = _photos()
        else:
            found = _torchvision(TORCHVISION[name], root, download)
    except FileNotFoundError:
        if not stand_in:
            raise
        found = _random(1 if name.endswith("mnist") else 3, 100 if name == "cifar100" else 10)
    train, labels, test, test_labels, classes = found
    if train.shape[-1] < PATCH:  # once, and not in every batch
        train, test = (_bytes(scaled(x.float(), PATCH)) for x in (train, test))
    std, mean = zip(*(torch.std_mean(channel.float()) for channel in train.unbind(1)), strict=True)
    return Pictures(
        train,
        labels.long(),
        test,
        test_labels.long(),
        classes,
        torch.stack(mean),
        torch.stack(std).clamp(min=1.0),
        augment=train.shape[1] == 3,
    )


def load_data(args, device):
    """FedML's dataset tuple of eight. Every rank holds all of it, as in FedML's own examples."""
    pictures = load(args.dataset, Path(args.data_cache_dir), stand_in=args.stand_in)
    pictures = pictures.limited(args.train_images, args.test_images)
    test = test_batches(pictures, args.image_size, device)
    silos = {
        silo: Batches(
            pictures,
            part,
            size=args.image_size,
            batch_size=args.batch_size,
            seed=args.random_seed * args.client_num_in_total + silo,
            device=device,
        )
        for silo, part in enumerate(_shuffled(pictures, args).chunk(args.client_num_in_total))
    }
    sizes = {silo: len(batches.labels) for silo, batches in silos.items()}
    tests = dict.fromkeys(silos, test)
    total, tested = len(pictures.train), len(pictures.test)
    return (total, tested, None, test, sizes, silos, tests, pictures.classes), pictures.channels


def test_batches(pictures: Pictures, size: int, device: torch.device | str) -> Batches:
    # large pictures in smaller batches: what a layer makes of them is held in memory
    return Batches(pictures, None, size=size, batch_size=500 if size <= 32 else 50, device=device)


def _shuffled(pictures: Pictures, args) -> Tensor:
    draw = torch.Generator().manual_seed(args.random_seed)
    return torch.randperm(len(pictures.train), generator=draw)


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.round().clamp(0, 255).byte()


def _torchvision(
    name: str, root: Path, download: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    from torchvision import datasets

    kind, found = getattr(datasets, name), []
    try:
        for train in (True, False):
            held = kind(str(root), train=train, download=download)
            images = torch.as_tensor(held.data)
            images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2)
            found += [images.contiguous(), torch.as_tensor(held.targets)]
    except RuntimeError as error:
        if download:
            raise FileNotFoundError(f"{name} cannot be fetched: {error}") from None
        raise FileNotFoundError(
            f"{name} is not in {root}, where torchvision would have it: --download fetches it, "
            "--data-dir names another folder"
        ) from None
    return *found, len(held.classes)


def _fashion_mnist(root: Path, download: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    if download or not DEBIAN.exists():
        return _torchvision("FashionMNIST", root, download)

    def read(name: str, header: int) -> Tensor:
        with gzip.open(DEBIAN / f"{name}-ubyte.gz") as file:
            return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())

    found = []
    for part in ("train", "t10k"):
        found += [read(f"{part}-images-idx3", 16).view(-1, 1, 28, 28)]
        found += [read(f"{part}-labels-idx1", 8)]
    return *found, 10


def _photos() -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """600 patches to train on and 100 to test with of each photo, the latter from its right."""
    try:
        from skimage import data
        from sklearn.datasets import load_sample_images
    except ImportError:
        raise FileNotFoundError(
            "photos are scikit-image's: pip install 'fedml-keylock[demo]'"
        ) from None

    names = (
        "astronaut",
        "chelsea",
        "coffee",
        "rocket",
        "hubble_deep_field",
        "immunohistochemistry",
    )
    photos = [getattr(data, name)() for name in (*names, "retina")]
    photos += [data.stereo_motorcycle()[0], *load_sample_images().images]
    draw = torch.Generator().manual_seed(0)
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for photo in photos:
        whole = torch.from_numpy(np.array(photo)[..., :3]).permute(2, 0, 1)
        cut = int(0.75 * whole.shape[2])  # no pixel is on both sides
        for patches, piece, count in zip(
            parts, (whole[:, :, :cut], whole[:, :, cut:]), (600, 100), strict=True
        ):
            high, wide = (side - PATCH + 1 for side in piece.shape[1:])
            places = torch.randperm(high * wide, generator=draw)[:count].tolist()
            at = [divmod(place, wide) for place in places]
            patches += [piece[:, y : y + PATCH, x : x + PATCH] for y, x in at]
    found: list[Tensor] = []
    for patches in parts:
        labels = torch.arange(len(photos)).repeat_interleave(len(patches) // len(photos))
        order = torch.randperm(len(labels), generator=draw)
        found += [torch.stack(patches)[order], labels[order]]
    return *found, len(photos)


def _random(channels: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    draw = torch.Generator().manual_seed(0)
    side = 28 if channels == 1 else PATCH
    found = []
    for count in (600, 100):
        shape = (count, channels, side, side)
        found += [torch.randint(256, shape, generator=draw, dtype=torch.uint8)]
        found += [torch.randint(classes, (count,), generator=draw)]
    return *found, classes
