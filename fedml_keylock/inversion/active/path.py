"""Passes pictures unchanged through convolutions to a model's first linear layer, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ...errors import AttackError, reason_of
from ...tensors import copy_of, under
from ..engine.layer_inputs import watch
from ..loss import Loss
from ..outputs import logits_of
from .arming import State, loaded

__all__ = ["Path"]

_LEVELS = 65
"""Number of uniform pictures that measure how the path changes brightness."""


@dataclass(frozen=True)
class Path:
    """The first linear layer of a model, behind the input or behind convolutions.

    Attributes:
        attack: name of the attack, for messages.
        shape: shape of a picture.
        bounds: least and greatest pixel value.
        convolutions: names of the layers before the linear one.
        linear: name of the first linear layer.
        behind: name of the linear layer after it.
        inside: shape of the picture in the linear layer's input.
        width: number of inputs of the linear layer.

    """

    attack: str
    shape: tuple[int, ...]
    bounds: tuple[float, float]
    convolutions: tuple[str, ...]
    linear: str
    behind: str
    inside: tuple[int, ...]
    width: int

    @classmethod
    def of(
        cls, attack: str, model: nn.Module, shape: tuple[int, ...], bounds: tuple[float, float]
    ) -> Path:
        """Find the path through a model.

        Raises:
            AttackError: the model begins in another way.

        """
        own = {n: m for n, m in model.named_modules() if [*m.parameters(recurse=False)]}
        inputs = torch.full((1, *shape), sum(bounds) / 2).to(next(model.parameters()))
        copied = copy_of(model).eval()
        calls, error = watch(copied, {n: copied.get_submodule(n) for n in own}, inputs)
        convolutions: list[str] = []
        channels = shape[0]
        for place, (name, layer, got) in enumerate(calls):
            said = f"{attack} needs a model whose first linear layer a picture reaches"
            if isinstance(layer, nn.Linear):
                if got is None or got.ndim != 2 or layer.bias is None:
                    raise AttackError(f"{said}, with a bias; {name} (Linear) is not such a one")
                if sum(other is layer for _, other, _ in calls) > 1:
                    raise AttackError(f"{said} once; {name} (Linear) runs more than once")
                behind = calls[place + 1][:2] if place + 1 < len(calls) else ("", None)
                if not isinstance(behind[1], nn.Linear):
                    raise AttackError(
                        f"{attack} needs a second linear layer right behind {name}, which says "
                        "what comes back to each row"
                    )
                inside = _inside(attack, layer.in_features, channels, shape)
                return cls(
                    attack, tuple(shape), bounds, tuple(convolutions), name,
                    behind[0], inside, layer.in_features,
                )  # fmt: skip
            if not (
                isinstance(layer, nn.Conv2d)
                and layer.groups == 1
                and min(layer.in_channels, layer.out_channels) >= shape[0]
            ):
                raise AttackError(
                    f"{said} through convolutions alone; before it there is {name} "
                    f"({type(layer).__name__})"
                )
            convolutions.append(name)
            channels = layer.out_channels
        if error is not None:
            raise AttackError(f"{attack}: the model takes no {shape} image: {reason_of(error)}")
        raise AttackError(f"{attack} needs a model with a linear layer")

    def open(self, model: nn.Module, state: State) -> None:
        """Write kernels that pass the picture on unchanged, as far as strides allow."""
        colours = self.shape[0]
        for place, name in enumerate(self.convolutions):
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Conv2d)
            weight = state[under(name, "weight")].zero_()
            rows, columns = (
                _block(size, step, pad)
                for size, step, pad in zip(
                    layer.kernel_size, layer.stride, _padding(layer), strict=True
                )
            )
            for colour in range(colours):
                taken = weight[colour, colour, rows, columns]
                taken.fill_(1 / taken.numel())
            if layer.bias is not None:
                # a ReLU stops negative values
                lift = -min(self.bounds[0], 0.0) if place == 0 else 0.0
                state[under(name, "bias")].fill_(lift)

    def write(
        self,
        state: State,
        rows: Tensor,
        biases: Tensor,
        *,
        most: float,
        signal: float,
        growth: float,
    ) -> None:
        """Write the layer's rows ``(r, width)`` and biases ``(r,)`` into a state, scaled down.

        The later layers' output is then nearly the same for all pictures, so that a picture's
        contribution to a row depends on its label only. And no update is too large for the weights.

        Args:
            state: the state to change.
            rows: the layer's new rows.
            biases: the layer's new biases.
            most: largest sum of all rows' outputs for a picture.
            signal: the most by which that may change the next layer's output.
            growth: bound on a row's update, as a multiple of the largest weight, at a learning rate
                of 1.

        """
        behind = state[under(self.behind, "weight")]
        behind /= behind.abs().max()
        greatest = float(rows.abs().max())
        small = (signal / (growth * greatest * most)) ** 0.5
        behind *= growth * greatest * small
        state[under(self.linear, "weight")].copy_(small * rows)
        state[under(self.linear, "bias")].copy_(small * biases)

    def brightness(self, like: Tensor) -> Tensor:
        """The row ``(width,)`` that computes the mean of the picture."""
        row = torch.zeros(self.width).to(like)
        row[: prod(self.inside)] = 1 / prod(self.inside)
        return row

    def reached(self, model: nn.Module, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """The layer's inputs ``(n, width)`` for images ``(n, *shape)`` under a state."""
        copied = loaded(model, state)
        layer = copied.get_submodule(self.linear)
        images = images.to(next(copied.parameters()))
        got = [
            watch(copied, {self.linear: layer}, some)[0][0][2] for some in torch.split(images, 64)
        ]
        return torch.cat([some for some in got if some is not None])

    def per_label(
        self, model: nn.Module, state: Mapping[str, Tensor], loss: Loss, classes: int
    ) -> Tensor:
        """What one picture of each label adds to each bias's gradient: ``(classes, rows)``.

        Assumes barely active rows, as armed ones are, and the loss of a single picture.

        Raises:
            AttackError: the value depends on more than the label, or no gradient reaches the layer.

        """
        if loss.targets != "classes" or getattr(loss.function, "reduction", "mean") != "mean":
            raise AttackError(
                f"{self.attack} needs the mean of a loss of classes, which tells one picture of a "
                f"row from two; the job's is {loss.name}"
            )
        copied = loaded(model, state)
        kept: list[Tensor] = []

        def active(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            kept.append(torch.full_like(output, _NEXT_TO_NOTHING).requires_grad_())
            return kept[-1] * 1

        hook = copied.get_submodule(self.linear).register_forward_hook(active)
        middle = torch.full((classes, *self.shape), sum(self.bounds) / 2)
        try:
            scores = logits_of(copied(middle.to(next(copied.parameters()))))
            # the loss is a mean over this many
            cost = classes * loss(scores, torch.arange(classes, device=scores.device))
            (found,) = torch.autograd.grad(cost, kept)
        finally:
            hook.remove()
        if not bool(found.isfinite().all()) or not bool(found.any()):
            raise AttackError(f"{self.attack}: nothing comes back to {self.linear} from the loss")
        return found.double()

    def pictures(self, model: nn.Module, state: Mapping[str, Tensor], found: Tensor) -> Tensor:
        """Convert the layer's inputs ``(n, width)`` to pictures ``(n, *shape)``.

        Exact if the layer gets the picture itself. Pooled, strided or cropped pictures stay coarse,
        and are enlarged to their place.

        Raises:
            AttackError: the layer's input does not grow with the picture's brightness.

        """
        low, high = self.bounds
        values = torch.linspace(low, high, _LEVELS)
        flat = values.view(-1, *[1] * len(self.shape)).expand(-1, *self.shape)
        size = prod(self.inside)
        table = self.reached(model, state, flat)[:, :size].double()
        found = found[:, :size].double()
        if not bool((table.diff(dim=0) > 0).all()):
            raise AttackError(
                f"{self.attack}: what reaches {self.linear} does not grow with the brightness"
            )
        place = (found[:, None] > table[:, :]).sum(1).clamp(1, _LEVELS - 1)
        below, above = table.gather(0, place - 1), table.gather(0, place)
        step = (high - low) / (_LEVELS - 1)
        found = low + step * (place - 1 + (found - below) / (above - below))
        images = found.view(-1, *self.inside).to(next(model.parameters()))
        if self.inside == self.shape:
            return images
        return self._enlarged(model, state, images)

    def _enlarged(self, model: nn.Module, state: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Enlarge the layer's pictures to their place in the input; repeats border pixels."""
        copied = loaded(model, state)
        got: list[Tensor] = []
        layer = copied.get_submodule(self.linear)
        hook = layer.register_forward_pre_hook(lambda _layer, inputs: got.append(inputs[0]))
        low, high = self.bounds
        generator = torch.Generator().manual_seed(0)
        noise = low + (high - low) * torch.rand(16, *self.shape, generator=generator)
        noise = noise.to(images).requires_grad_()
        try:
            copied(noise)
        finally:
            hook.remove()
        (seen,) = torch.autograd.grad(got[0][:, : prod(self.inside)].sum(), noise)
        rows, columns = (seen.abs().sum(d).nonzero().flatten() for d in ((0, 1, 3), (0, 1, 2)))
        top, bottom, left, right = (
            int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1,
        )  # fmt: skip
        size = (bottom - top, right - left)
        images = interpolate(images, size=size, mode="bilinear", align_corners=False)
        rim = (left, self.shape[2] - right, top, self.shape[1] - bottom)
        return nn.functional.pad(images, rim, mode="replicate")


_NEXT_TO_NOTHING = 1e-20


def _padding(layer: nn.Conv2d) -> tuple[int, ...]:
    if isinstance(layer.padding, str):
        return tuple((size - 1) // 2 * (layer.padding == "same") for size in layer.kernel_size)
    return layer.padding


def _block(size: int, step: int, pad: int) -> slice:
    """The part of a kernel of this size whose pixels no other output position uses."""
    taken = min(step, size)
    start = min(max(pad, (size - taken) // 2), size - taken)
    return slice(start, start + taken)


def _inside(attack: str, width: int, channels: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the picture in a layer's input of flattened channels."""
    if len(shape) == 1 or width == prod(shape):
        return tuple(shape)
    pixels = width // channels
    height = round((pixels * shape[1] / shape[2]) ** 0.5)
    if width % channels or height < _SMALLEST or pixels % height:
        raise AttackError(
            f"{attack} needs a picture in front of the first linear layer, which gets {width} "
            f"numbers of {channels} channels"
        )
    return shape[0], height, pixels // height


_SMALLEST = 3
"""Least height, in rows, of a picture."""
