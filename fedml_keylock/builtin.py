"""Our own defense, attacks and metrics, registered as any plugin's would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .hookspecs import hookimpl

if TYPE_CHECKING:
    from .defense import DefenseFactory
    from .locks import Lock

__all__ = ["keylock", "register_attacks", "register_defenses", "register_metrics"]


def keylock(settings: Mapping[str, Any]) -> Lock:
    """The defense that a `keylock:` section asks for.

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
