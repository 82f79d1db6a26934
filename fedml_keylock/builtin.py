"""Our own defense, attacks and metrics, registered as any plugin's would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .hookspecs import hookimpl
from .locks import KeyLockConfig
from .locks.paper.lock import PaperLock
from .locks.protocol import Lock
from .locks.rotated.lock import RotatedLock
from .types import DefenseFactory

__all__ = [
    "Lock",
    "PaperLock",
    "RotatedLock",
    "keylock",
    "register_attacks",
    "register_defenses",
    "register_metrics",
]


def keylock(settings: Mapping[str, Any]) -> Lock:
    """The defense that a `keylock:` section asks for.

    Raises:
        ConfigError: naming the field.

    Example:
        >>> type(keylock({"module": "whole", "group_key": "group"})).__name__
        'RotatedLock'

    """
    config = KeyLockConfig.from_mapping(settings)
    return (RotatedLock if config.is_whole else PaperLock)(config)


@hookimpl
def register_defenses(register: Callable[[str, DefenseFactory], None]) -> None:
    """Keylock."""
    register("keylock", keylock)


@hookimpl
def register_attacks(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """The published attacks, each by its preset's name."""
    from .inversion import presets

    for name in presets.__all__:
        register(name, getattr(presets, name))


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """psnr, ssim, and both after the best scale and offset of each channel; lpips with weights."""
    from .evaluation import metrics
    from .evaluation.lpips import lpips_metrics

    for name in ("psnr", "ssim", "psnr_aligned", "ssim_aligned"):
        register(name, getattr(metrics, name))
    for name, metric in lpips_metrics().items():
        register(name, metric)
