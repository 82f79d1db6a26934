"""The models that the lock is shown on: every torchvision classifier, FedML's hub, odd shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import make_layers
from torchvision.ops import StochasticDepth

SMALL = 64
SIZES = {"inception_v3": 299, "maxvit_t": 224}
"""Side of the images that a model needs; for the others, SMALL."""

FAMILIES = {
    "AlexNet": ("alexnet",),
    "ConvNeXt": ("convnext",),
    "DenseNet": ("densenet",),
    "EfficientNet": ("efficientnet",),
    "GoogLeNet, Inception": ("googlenet", "inception"),
    "MaxViT": ("maxvit",),
    "MNASNet": ("mnasnet",),
    "MobileNet": ("mobilenet",),
    "RegNet": ("regnet",),
    "ResNet, ResNeXt, Wide ResNet": ("resnet", "resnext", "wide_resnet"),
    "ShuffleNet": ("shufflenet",),
    "SqueezeNet": ("squeezenet",),
    "Swin": ("swin",),
    "VGG": ("vgg",),
    "ViT": ("vit",),
}


@dataclass(frozen=True)
class Model:
    """A model to try: how to make it, and the shape of one input."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int = 10

    def inputs(self, count: int = 2, *, device: str = "cpu") -> Tensor:
        """``(count, *shape)`` in [0, 1)."""
        generator = torch.Generator().manual_seed(count)
        return torch.rand(count, *self.shape, generator=generator).to(device)


def torchvision_names() -> list[str]:
    """Every classifier of torchvision."""
    return sorted(models.list_models(module=models))


def family_of(name: str) -> str:
    """The row of the table that a torchvision model is in."""
    return next(f for f, starts in FAMILIES.items() if name.startswith(starts))


def torchvision_model(name: str) -> Model:
    """A classifier of torchvision with ten classes, on the smallest images that it takes."""
    size = SIZES.get(name, SMALL)
    more: dict[str, object] = {"num_classes": 10, "weights": None}
    if name.startswith("vit_"):
        size = more["image_size"] = 56 if name.endswith("_14") else SMALL
    if name in ("googlenet", "inception_v3"):
        more["init_weights"] = False  # otherwise it warns

    def make() -> nn.Module:
        return prepared(models.get_model(name, **more))

    return Model(name, make, (3, size, size))


def prepared(model: nn.Module) -> nn.Module:
    """A model of torchvision whose every part acts from the first step on."""
    if isinstance(model, models.VisionTransformer):
        # its head starts at zero, and would hide every difference
        nn.init.normal_(model.get_parameter("heads.head.weight"), std=0.02)
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0  # a block that a batch of two skips has no gradient
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # after two steps evaluation is not that of a new model
    return model


def narrow_head(make: Callable[..., nn.Module], features: int) -> nn.Module:
    """A model with three layers of thousands of units at its end, and here of few."""
    with torch.device("meta"):
        model = make(num_classes=10)
        model.classifier = nn.Sequential(
            *(nn.Linear(features, 32), nn.ReLU(True), nn.Linear(32, 32), nn.ReLU(True)),
            nn.Linear(32, 10),
        )
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


SMALL_ONES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "AlexNet": (lambda: narrow_head(models.alexnet, 9216), SMALL),
    "ConvNeXt": (
        lambda: models.ConvNeXt(
            [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 2), CNBlockConfig(24, None, 1)],
            num_classes=10,
        ),
        SMALL,
    ),
    "DenseNet": (lambda: models.DenseNet(8, (2, 2, 2), 16, num_classes=10), SMALL),
    "EfficientNet": (
        lambda: models.EfficientNet(
            [
                FusedMBConvConfig(2, 3, 1, 8, 8, 1),
                MBConvConfig(1, 3, 1, 8, 8, 1, 1.0, 1.0),
                MBConvConfig(6, 5, 2, 8, 16, 2, 1.0, 1.0),
            ],
            dropout=0.0,
            num_classes=10,
        ),
        SMALL,
    ),
    "GoogLeNet, Inception": (
        lambda: models.googlenet(num_classes=10, weights=None, init_weights=False),
        SMALL,
    ),
    "MaxViT": (
        lambda: models.MaxVit((32, 32), 8, 4, [8, 16], [1, 1], 4, 0.0, num_classes=10),
        32,
    ),
    "MNASNet": (lambda: models.MNASNet(0.25, num_classes=10, dropout=0.0), SMALL),
    "MobileNet": (lambda: models.mobilenet_v3_small(num_classes=10, width_mult=0.5), SMALL),
    "RegNet": (
        lambda: models.RegNet(
            BlockParams.from_init_params(4, 16, 16.0, 2.5, 8, se_ratio=0.25), num_classes=10
        ),
        SMALL,
    ),
    "ResNet, ResNeXt, Wide ResNet": (
        lambda: models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10),
        SMALL,
    ),
    "ShuffleNet": (
        lambda: models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 48, 64], num_classes=10),
        SMALL,
    ),
    "SqueezeNet": (lambda: models.squeezenet1_1(num_classes=10, dropout=0.0), SMALL),
    "Swin": (
        lambda: models.SwinTransformer(
            [4, 4], 16, [1, 2], [2, 4], [4, 4], stochastic_depth_prob=0.0, num_classes=10
        ),
        32,
    ),
    "VGG": (
        lambda: narrow_head(
            partial(models.VGG, make_layers([16, "M", 24, "M", 32, 32, "M"])), 32 * 49
        ),
        32,
    ),
    "ViT": (
        lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10),
        32,
    ),
}
"""Family to a small member of it, of torchvision's own class, and the side of its images."""


def small_model(family: str) -> Model:
    """A small member of a family, whose numbers cost little."""
    make, size = SMALL_ONES[family]
    return Model(f"small {family}", lambda: prepared(make()), (3, size, size))


@contextlib.contextmanager
def cheap_start() -> Iterator[None]:
    """Models start at a normal and not at a truncated one, which takes minutes for 600 million."""

    def normal(tensor: Tensor, *_: object, **__: object) -> Tensor:
        return tensor.data.normal_(0.0, 0.02)

    with mock.patch("torch.nn.init.trunc_normal_", normal):
        yield


def loss_of(outputs: object) -> Tensor:
    """A scalar of a model's outputs; of those of auxiliary heads too."""
    if isinstance(outputs, Tensor):
        target = torch.arange(outputs.shape[0], device=outputs.device) % outputs.shape[1]
        return nn.functional.cross_entropy(outputs.float(), target)
    assert isinstance(outputs, tuple)
    return torch.stack([loss_of(part) for part in outputs if isinstance(part, Tensor)]).sum()


def fedml_hub() -> list[Model]:
    """FedML's model hub: those of its models that have a convolution."""
    from fedml.model.cv.cnn import CNN_WEB, CNN_OriginalFedAvg
    from fedml.model.cv.efficientnet import EfficientNet
    from fedml.model.cv.resnet import resnet20
    from fedml.model.cv.vgg import vgg11, vgg16
    from fedml.model.model_hub import create

    def hub(name: str, dataset: str) -> Callable[[], nn.Module]:
        args = SimpleNamespace(model=name, dataset=dataset, federated_optimizer="FedAvg")
        return lambda: create(args, 10)

    return [
        Model("cnn", hub("cnn", "mnist"), (28, 28)),
        Model("cnn (FedAvg paper)", CNN_OriginalFedAvg, (28, 28), 62),
        Model("cnn_web", CNN_WEB, (3, 32, 32)),
        Model("resnet18_gn", hub("resnet18_gn", "fed_cifar100"), (3, 32, 32)),
        Model("resnet20", lambda: resnet20(10), (3, 32, 32)),
        Model("resnet56", hub("resnet56", "cifar10"), (3, 32, 32)),
        Model("mobilenet", hub("mobilenet", "cifar10"), (3, 32, 32)),
        # at 32x32 its evaluation is NaN after two steps, locked or not
        Model("mobilenet_v3", hub("mobilenet_v3", "cifar10"), (3, 64, 64)),
        # the hub's own call, EfficientNet(), raises in FedML 0.9.6
        Model(
            "efficientnet",
            partial(EfficientNet.from_name, "efficientnet-b0", drop_connect_rate=0.0),
            (3, 64, 64),
        ),
        Model("vgg11", vgg11, (3, 32, 32)),
        Model("vgg16", vgg16, (3, 32, 32)),
    ]


def fedml_refused() -> list[Model]:
    """Those of FedML's hub whose first layer gives the input away, whatever stands behind it."""
    from fedml.model.linear.lr import LogisticRegression
    from fedml.model.nlp.rnn import RNN_FedShakespeare, RNN_OriginalFedAvg, RNN_StackOverFlow

    return [
        Model("lr", lambda: LogisticRegression(784, 10), (784,)),
        Model("rnn (shakespeare)", RNN_OriginalFedAvg, (20,)),
        Model("rnn (fed_shakespeare)", RNN_FedShakespeare, (20,)),
        Model("rnn (stackoverflow)", RNN_StackOverFlow, (20,)),
    ]


@contextlib.contextmanager
def no_start() -> Iterator[None]:
    """Models keep whatever the memory held: for shapes only."""
    with contextlib.ExitStack() as stack:
        for name in dir(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                stack.enter_context(mock.patch(f"torch.nn.init.{name}", lambda t, *_, **__: t))
        yield
