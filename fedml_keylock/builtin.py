"""Registers our own defense, attacks and metrics, like any plugin's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from .defense import DefenseFactory
    from .locks import Lock

__all__ = ["keylock", "register_attacks", "register_defenses", "register_metrics"]


def keylock(settings: Mapping[str, Any]) -> Lock:
    """Make the defense of a `keylock:` section.

    Raises:
        ConfigError: naming the field.

    Example:
        >>> keylock({"lock": "rotated", "group_key": "group"}).title
        'keylock:rotated:group'

    """
    from .locks import KeyLockConfig, make_lock

    return make_lock(KeyLockConfig.from_mapping(settings))


@hookimpl
def register_defenses(register: Callable[[str, DefenseFactory], None]) -> None:
    """Register the keylock defense."""
    register("keylock", keylock)


@hookimpl
def register_attacks(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Register the published attacks, each by its preset's name."""
    from .inversion import presets

    for name in presets.__all__:
        register(name, getattr(presets, name))


@hookimpl
def register_metrics(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """Register psnr, ssim, both after the best scale and offset of each channel, and lpips."""
    from .evaluation import metrics
    from .evaluation.lpips import lpips_metrics

    for name in ("psnr", "ssim", "psnr_aligned", "ssim_aligned"):
        register(name, getattr(metrics, name))
    for name, metric in lpips_metrics().items():
        register(name, metric)
