"""Packs an exported model into a file that loads without this package, and verifies it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import ConfigError, first_line

__all__ = ["SUFFIX", "Package", "difference", "pack", "random_input"]

SUFFIX = ".pt2"
"""Suffix that torch.export.load needs."""


@dataclass(frozen=True)
class Package:
    """A file's content, and the model loaded from it.

    Attributes:
        form: state_dict or exported.
        content: the file's bytes.
        loaded: the model as loaded from the file.
        missing: a name that the job's model class lacks, "" if it has all.

    """

    form: str
    content: bytes = field(repr=False)
    loaded: Callable[[Tensor], Any] = field(repr=False)
    missing: str = ""


def pack(exported: nn.Module, plain: nn.Module, form: str, example: Tensor | None) -> Package:
    """Convert a model of `export_model` to a form that loads without this package.

    Args:
        exported: the model.
        plain: the job's model before it was locked; a state_dict is loaded into it.
        form: state_dict, exported, or auto for the one that fits.
        example: an input of the model, if there is one.

    Raises:
        ConfigError: the model does not fit that form.

    Example:
        >>> pack(nn.Linear(3, 2), nn.Linear(3, 2), "auto", None).form
        'state_dict'

    """
    state, names = exported.state_dict(), plain.state_dict().keys()
    missing = next((name for name in state if name not in names), "")
    if form == "auto":
        form = "exported" if missing else "state_dict"
    if form == "state_dict":
        if missing:
            raise ConfigError(
                f"--format state_dict: the lock needs {missing}, which the model's class does not "
                "have; use --format exported"
            )
        content = _saved(torch.save, state)
        plain.load_state_dict(torch.load(BytesIO(content), weights_only=True))
        return Package(form, content, plain.eval())
    return Package(form, *_exported(exported, example), missing)


def _saved(save: Callable[[Any, Any], None], what: Any) -> bytes:
    file = BytesIO()
    save(what, file)
    return file.getvalue()


def _exported(model: nn.Module, example: Tensor | None) -> tuple[bytes, Callable[[Tensor], Any]]:
    if example is None:
        raise ConfigError("--format exported: needs the shape of an input: give --example-shape")
    any_batch = ({0: torch.export.Dim.AUTO},)
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=any_batch)
    except Exception as error:  # the model is anyone's code
        raise ConfigError(
            f"--format exported: torch.export cannot take the model ({first_line(error)}); export "
            "it in Python: fedml_keylock.export_model(model)"
        ) from None
    content = _saved(torch.export.save, program)
    return content, torch.export.load(BytesIO(content)).module()


def random_input(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Two random inputs of this shape, checked on a model in eval mode; ConfigError if it fails.

    Example:
        >>> random_input(nn.Linear(3, 2), (3,)).shape
        torch.Size([2, 3])

    """
    like = next(p for p in model.parameters() if p.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    try:
        example = torch.randn((2, *shape), generator=generator).to(like)
        with torch.no_grad():
            model(example)
    except Exception as error:  # the model is anyone's code
        given = ",".join(map(str, shape))
        raise ConfigError(
            f"--example-shape {given}: the model does not take it: {first_line(error)}"
        ) from None
    return example


def difference(
    model: nn.Module, loaded: Callable[[Tensor], Any], example: Tensor
) -> tuple[float, float]:
    """The largest difference of two models' outputs on an input, and the largest output.

    ConfigError if the loaded model does not run, or rounding does not explain the difference.

    Example:
        >>> difference(nn.Identity(), nn.Identity(), torch.ones(2))
        (0.0, 1.0)

    """
    with torch.no_grad():
        wanted = [t for t in tree_leaves(model(example)) if isinstance(t, Tensor)]
        try:
            found = [t for t in tree_leaves(loaded(example)) if isinstance(t, Tensor)]
        except Exception as error:  # the model is anyone's code
            raise ConfigError(f"the exported model does not run: {first_line(error)}") from None
    if [t.shape for t in wanted] != [t.shape for t in found]:
        raise ConfigError("the exported model's outputs are of another shape: nothing was written")
    largest = max(float(t.abs().max()) for t in wanted)
    most = max(float((a - b).abs().max()) for a, b in zip(wanted, found, strict=True))
    rounding = torch.finfo(example.dtype).eps ** 0.5
    if not most <= rounding * max(1.0, largest):
        raise ConfigError(
            f"the exported model's outputs differ by {most:.1e} from the locked model's: nothing "
            "was written"
        )
    return most, largest
