"""Stores the silos' training images, the truth for scoring, apart from the capture."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...errors import AttackError
from ...files import replacing
from ...inversion import CROSS_ENTROPY, LocalTraining, Loss, PublicData
from ...types import ClientUpdate
from ..capture import Capture
from .subject import Protection, Subject
from .training import output_shape

__all__ = ["Truth", "from_capture", "load_truth", "save_truth"]

Truth = dict[tuple[int, int], tuple[Tensor, Tensor]]
"""Round and silo to images ``(n, c, h, w)``, as the model's inputs, and labels ``(n, ...)``."""

_KEY = re.compile(r"round-(\d+)/silo-(\d+)/(images|labels)")


def save_truth(path: Path, truth: Mapping[tuple[int, int], tuple[Tensor, Tensor]]) -> None:
    """Write the silos' training images of captured rounds to a file that only its owner can read.

    The file is in safetensors, with entries such as ``round-00000/silo-0/images``.

    Raises:
        AttackError: the data are of another kind, or cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "truth.safetensors"
        >>> save_truth(path, {(0, 1): (torch.rand(2, 1, 28, 28), torch.tensor([3, 4]))})
        >>> load_truth(path)[0, 1][1]
        tensor([3, 4])

    """
    tensors = {}
    for (round_index, silo), (images, labels) in truth.items():
        name = f"round-{round_index:05d}/silo-{silo}"
        _check(f"truth {path}: {name}", images, labels)
        tensors[f"{name}/images"] = images.detach().float().cpu().contiguous()
        tensors[f"{name}/labels"] = labels.detach().cpu().contiguous()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file(tensors, part)
    except (OSError, SafetensorError) as error:
        raise AttackError(f"truth {path}: cannot be written: {error}") from None


def load_truth(path: Path) -> Truth:
    """Read what `save_truth` wrote; AttackError if it is missing, damaged or of another kind.

    Nothing in the file is executed.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AttackError(f"truth {path}: not a readable safetensors file: {error}") from None
    parts: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise AttackError(
                f"truth {path}: {name!r} is not like 'round-00000/silo-0/images' or '.../labels'"
            )
        parts.setdefault((int(match[1]), int(match[2])), {})[match[3]] = tensor
    if not parts:
        raise AttackError(f"truth {path}: it is empty")
    truth: Truth = {}
    for (round_index, silo), part in sorted(parts.items()):
        name = f"truth {path}: round-{round_index:05d}/silo-{silo}"
        if len(part) != 2:
            raise AttackError(f"{name} has no {'labels' if 'images' in part else 'images'}")
        _check(name, part["images"], part["labels"])
        labels = part["labels"]
        labels = labels.float() if labels.is_floating_point() else labels.long()
        truth[round_index, silo] = (part["images"].float(), labels)
    return truth


def from_capture(
    capture: Capture,
    truth: Truth,
    model: nn.Module,
    *,
    protection: Protection | None = None,
    secrets_of: Callable[[Sequence[ClientUpdate]], Mapping[str, Tensor]] | None = None,
    public: PublicData | None = None,
    training: LocalTraining | None = None,
    loss: Loss = CROSS_ENTROPY,
    limit: int | None = None,
    trained_from: int = 1,
) -> Subject:
    """The subject of a job's captured updates for which there is a truth.

    Args:
        capture: the job's capture.
        truth: the truth of some or all updates, with equally many images each.
        model: the job's model, unprotected, with any weights.
        protection: the job's defense; None for none.
        secrets_of: gives the private state of updates, ``(u, *shape)``, if somebody has it.
            Without it, only round 0 of a defense that changes updates can be audited.
        public: public data of the same kind.
        training: see `Subject`.
        loss: the loss that the silos minimised.
        limit: largest number of updates of each stage.
        trained_from: the first round whose weights count as trained.

    Raises:
        AttackError: capture, truth and model do not fit together, or the capture is damaged.

    """
    entries = capture.entries()
    foreign = sorted(set(truth) - set(entries))
    if foreign:
        raise AttackError(
            f"the truth has round {foreign[0][0]}, silo {foreign[0][1]}, which the capture has not"
        )
    early = [entry for entry in entries if entry in truth and entry[0] < trained_from]
    late = [entry for entry in entries if entry in truth and entry[0] >= trained_from]
    if secrets_of is None and protection is not None and protection.attacker_model.update_transform:
        # the model at a later round's start is unknown, so no control can be made
        early, late = [entry for entry in early if not entry[0]], []
        if not early:
            raise AttackError(
                f"under {protection.name} only round 0 begins with an open model, and the truth "
                "has later rounds: give the silos' vaults (--vault), kept with keep_history: true"
            )
    chosen = early[:limit] + late[:limit]
    sizes = {tuple(truth[entry][0].shape) for entry in chosen}
    if len(sizes) != 1:
        raise AttackError(f"the truth's updates must be of one shape, not {sorted(sizes)}")
    updates = tuple(capture.load(*entry) for entry in chosen)
    _check_model(model, protection.attacker_model.read(updates[0]) if protection else updates[0])
    images = torch.stack([truth[entry][0] for entry in chosen])
    outputs = output_shape(model, images[0])
    loss = loss.seen(truth[chosen[0]][1])
    return Subject(
        updates=updates,
        images=images,
        labels=torch.stack([loss.fitted(truth[entry][1], outputs) for entry in chosen]),
        model=model,
        classes=outputs[0],
        defense=protection.name if protection else "none",
        attacker_model=protection.attacker_model if protection else None,
        secrets=secrets_of(updates) if secrets_of else None,
        public=public,
        stages=tuple("untrained" if entry in early else "trained" for entry in chosen),
        training=training,
        bounds=capture.bounds,
        loss=loss,
        output_shape=outputs,
    )


def _check(name: str, images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or not len(images) or not images.is_floating_point():
        raise AttackError(
            f"{name}: images are {images.dtype} {tuple(images.shape)}, not n, c, h, w"
        )
    if labels.shape[:1] != images.shape[:1] or not labels.isfinite().all():
        raise AttackError(f"{name}: labels are {labels.dtype} {tuple(labels.shape)}, not one each")
    if not images.isfinite().all():
        raise AttackError(f"{name}: a pixel is not finite")


def _check_model(model: nn.Module, update: ClientUpdate) -> None:
    state = model.state_dict()
    for name, value in sorted(update.before.items()):  # a file may have them in any order
        own = state.get(name)
        if own is None or own.shape != value.shape:
            has = "has no such entry" if own is None else f"has {tuple(own.shape)}"
            raise AttackError(
                f"the capture is of another model: {name} is {tuple(value.shape)}, the model {has}"
            )
