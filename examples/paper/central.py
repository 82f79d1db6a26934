"""A central cell: one model trained on all pictures, in this process.

What it has come to is kept beside its result, so that it goes on when it was interrupted. With the
lock that file holds the lock as well: nobody but its owner can read it.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cells import KEYLOCK, Cell, Recipe
from data import Batches, Pictures, test_batches
from nets import build
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from training import count_right, rate, sgd, train_epoch

from fedml_keylock import (
    KeyLockConfig,
    is_locked,
    load_private_state_dict,
    lock_model,
    private_state_dict,
)
from fedml_keylock.files import replacing

SECONDS = 60
"""At least so many between two checkpoints."""


def train(
    cell: Cell,
    recipe: Recipe,
    seed: int,
    pictures: Pictures,
    checkpoint: Path,
    progress: Callable[[int], Any],
) -> dict[str, Any]:
    """Train a cell, or go on with it.

    Args:
        cell: a central one.
        recipe: how.
        seed: of the initial weights, the order of pictures and their crops. A lock is drawn from
            the system's entropy all the same.
        pictures: to train on and to test with.
        checkpoint: where what was trained is kept until training is over.
        progress: is told how many epochs are done.

    Returns:
        Accuracy after each epoch, under "test"; seconds; the device.

    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(
        cell.model,
        channels=pictures.channels,
        classes=pictures.classes,
        extra_convolution=cell.locked,
        seed=seed,
    )
    if cell.locked:
        lock_model(model, KeyLockConfig.from_mapping(KEYLOCK))
    model.to(device)
    optimizer = sgd(
        model,
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    batches = Batches(
        pictures,
        torch.arange(len(pictures.train)),
        size=cell.size,
        batch_size=recipe.batch_size,
        seed=seed,
        device=device,
    )
    test = test_batches(pictures, cell.size, device)
    curve, spent = resume(checkpoint, model, optimizer) if checkpoint.exists() else ([], 0.0)
    progress(len(curve))
    began = saved = time.monotonic()
    for epoch in range(len(curve), recipe.rounds):
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe.learning_rate, epoch, recipe.rounds)
        batches.epoch = epoch
        torch.manual_seed(1000 * epoch + seed)  # for VGG's dropout
        train_epoch(model, batches, optimizer)
        right, total = count_right(model, test, device)
        curve.append([epoch + 1, right / total])
        progress(epoch + 1)
        if time.monotonic() - saved > SECONDS and epoch + 1 < recipe.rounds:
            keep(checkpoint, model, optimizer, curve, spent + time.monotonic() - began)
            saved = time.monotonic()
    seconds = spent + time.monotonic() - began
    checkpoint.unlink(missing_ok=True)
    return {"accuracy": {"test": curve}, "seconds": round(seconds, 1), "device": device.type}


def keep(
    path: Path, model: nn.Module, optimizer: torch.optim.SGD, curve: list, seconds: float
) -> None:
    """Write the checkpoint, whole or not at all."""
    tensors = {f"public.{name}": tensor for name, tensor in model.state_dict().items()}
    if is_locked(model):
        private = private_state_dict(model)
        tensors |= {f"private.{name}": tensor for name, tensor in private.items()}
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{index}"] = buffer
    told = {"curve": json.dumps(curve), "seconds": str(seconds)}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as part:
        save_file(whole, part, told)


def resume(
    path: Path, model: nn.Module, optimizer: torch.optim.SGD
) -> tuple[list[list[float]], float]:
    """Put a checkpoint into a model and its optimizer.

    Returns:
        Accuracy after each epoch so far, and the seconds that they took.

    """
    parts: dict[str, dict[str, torch.Tensor]] = {"public": {}, "private": {}, "momentum": {}}
    with safe_open(str(path), "pt") as file:
        told = file.metadata()
        for name in file.keys():  # noqa: SIM118  # it is no mapping
            part, _, rest = name.partition(".")
            parts[part][rest] = file.get_tensor(name)
    model.load_state_dict(parts["public"])
    if is_locked(model):
        load_private_state_dict(model, parts["private"])
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        if str(index) in parts["momentum"]:
            momentum = parts["momentum"][str(index)].to(parameter.device)
            optimizer.state[parameter]["momentum_buffer"] = momentum
    return json.loads(told["curve"]), float(told["seconds"])
