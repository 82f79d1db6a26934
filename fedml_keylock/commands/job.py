"""Loads the parts of a job that are not in its YAML: the model, and a silo's vault file."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ConfigError, VaultError, reason_of
from ..locks.vault.file import Stored
from ..locks.vault.silo import silo_path, silos_in

__all__ = [
    "build_model",
    "check_owner",
    "read_silo",
]


def build_model(spec: str) -> nn.Module:
    """Make a job's model, imported with the current folder first, as `python -m` does.

    Args:
        spec: ``module:callable``, called without arguments; or ``torchvision:name``.

    Raises:
        ConfigError: it cannot be imported or called, or makes something else.

    Example:
        >>> build_model("torch.nn:Identity")
        Identity()

    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise ConfigError(f"--model {spec}: must be MODULE:CALLABLE, such as main:Net")
    if module == "torchvision":
        return _torchvision(name)
    sys.path.insert(0, str(Path.cwd()))
    try:
        made: Any = import_module(module)
        where = getattr(made, "__file__", None) or module
        for part in name.split("."):
            if not hasattr(made, part):
                raise ConfigError(f"--model {spec}: there is no {name} in {where}")
            made = getattr(made, part)
        made = made()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            raise ConfigError(
                f"--model {spec}: there is no module {error.name} in {Path.cwd()} or installed; "
                "run it in the job's folder"
            ) from None
        raise ConfigError(f"--model {spec}: {reason_of(error)}") from None
    if not isinstance(made, nn.Module):
        raise ConfigError(f"--model {spec}: gives a {type(made).__name__}, not a torch.nn.Module")
    return made


def _torchvision(name: str) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ConfigError(f"--model torchvision:{name}: torchvision has no such classifier")
    plain = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, **plain)
    return model


def read_silo(folder: Path, silo: int) -> Stored:
    """Read a silo's file in a vault; VaultError if it is missing or cannot be read."""
    path = silo_path(folder, silo)
    if not os.path.lexists(path):
        there = ", ".join(map(str, silos_in(folder)))
        raise VaultError(
            f"vault {folder}: silo {silo} has no file here"
            + (f"; those that have: {there}" if there else "; name the vault's folder")
        )
    return Stored.read(path)


def check_owner(stored: Stored, silo: int, layout: str, *, hint: str = "") -> None:
    """Raise VaultError, ending in the hint, for a file of another silo, model or settings."""
    if (stored.silo, stored.layout) != (silo, layout):
        raise VaultError(
            f"vault {stored.path}: it is silo {stored.silo}'s with layout {stored.layout}; silo "
            f"{silo} with this model and these settings has layout {layout}{hint}"
        )
