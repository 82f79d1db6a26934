"""Runs one task and stores its result, so that no task runs twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ...errors import AttackError, KeyLockError
from ...files import replacing
from ...tensors import one_thread, tensors_of
from ..trials import attack_updates
from .plan import Task

__all__ = ["Result", "Store", "work_on"]


@dataclass(frozen=True)
class Result:
    """A task's result, one entry per update: see ``Reconstruction``.

    Attributes:
        images: ``(u, n, c, h, w)`` within the attack's bounds.
        labels: ``(u, n, ...)``.
        cost: ``(u,)``.
        history: ``(t, u)``.

    """

    images: Tensor
    labels: Tensor
    cost: Tensor
    history: Tensor

    @classmethod
    def of(cls, content: bytes) -> Result:
        """Read the result of `work_on`; AttackError if it is damaged."""
        try:
            return cls(**tensors_of(content))
        except (TypeError, ValueError) as error:
            raise AttackError(f"damaged: {error}") from None

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Result:
        """Map the images by a function."""
        return replace(self, images=function(self.images))


def work_on(task: Task, checkpoint: Path | None = None) -> bytes | str:
    """Run a task in any process; returns the result in safetensors, or one line on its failure.

    An update that changed nothing has no gradient: rounding may make it so for an image that the
    model is sure of. Its picture is empty and its cost NaN, as if every restart diverged.
    """
    rows, given = _moved(task), task.given
    if not rows or task.known.get("statistics"):  # the attack names the others
        rows = list(range(len(task.updates)))
    if given is not None and task.trial.level == "oracle":
        given = {name: value[rows] for name, value in given.items()}
    try:
        with one_thread():
            made = attack_updates(
                task.attack,
                [task.updates[row] for row in rows],
                task.model,
                knowledge=replace(task, given=given).knowledge(),
                attacker_model=task.attacker_model,
                seed=task.start,
                checkpoint=checkpoint,
            )
    except KeyLockError as error:  # `attack_updates` turns every failure into this error
        return str(error)
    tensors = {field.name: getattr(made, field.name).detach().cpu() for field in fields(Result)}
    count, history = len(task.updates), tensors["history"]
    every = {
        "images": tensors["images"].new_zeros(count, *tensors["images"].shape[1:]),
        "labels": tensors["labels"].new_full((count, *tensors["labels"].shape[1:]), -1),
        "cost": tensors["cost"].new_full((count,), torch.nan),
        "history": history.new_full((len(history), count), torch.nan),
    }
    every["history"][:, rows] = history
    for name in ("images", "labels", "cost"):
        every[name][rows] = tensors[name]
    return save(every)


def _moved(task: Task) -> list[int]:
    """Indices of the updates that changed anything, as the attacker reads them."""
    read = (
        task.updates if task.attacker_model is None else map(task.attacker_model.read, task.updates)
    )
    return [
        place
        for place, update in enumerate(read)
        if any(not torch.equal(update.before[name], update.after[name]) for name in update.after)
    ]


class Store:
    """A folder of results that only its owner can read: they show somebody's data.

    The folder is made if it is missing.

    Raises:
        AttackError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> store = Store(Path(tempfile.mkdtemp()) / "work")
        >>> store.has("00ff")
        False

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError as error:
            raise AttackError(f"{folder}: cannot be written: {error.strerror}") from None

    def path(self, name: str) -> Path:
        """Path of a task's result."""
        return self.folder / f"{name}.safetensors"

    def checkpoint(self, name: str) -> Path:
        """Path of a task's checkpoint."""
        return self.folder / f"{name}.part.safetensors"

    def has(self, name: str) -> bool:
        """Whether a task has a result."""
        return self.path(name).exists()

    def write(self, name: str, content: bytes) -> None:
        """Write a result, whole or not at all; AttackError if it cannot be written."""
        path = self.path(name)
        try:
            with replacing(path) as part:
                part.write_bytes(content)
        except OSError as error:
            raise AttackError(f"{path}: cannot be written: {error.strerror}") from None

    def read(self, name: str) -> Result:
        """Read a result; AttackError if it is missing or damaged."""
        path = self.path(name)
        try:
            return Result.of(path.read_bytes())
        except (OSError, AttackError) as error:
            raise AttackError(f"{path}: {error}; remove it") from None
