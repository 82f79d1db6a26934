"""What the columns and roles of a report are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["METRICS", "ROLES", "roles_of"]

METRICS = {
    "ssim_aligned": "SSIM aligned",
    "ssim": "SSIM",
    "psnr_aligned": "PSNR aligned, dB",
    "psnr": "PSNR, dB",
    "label_accuracy": "labels",
    "lpips_aligned": "LPIPS aligned",
    "lpips": "LPIPS",
}
ROLES = {"own_lock": "own lock", "fresh_lock": "fresh lock", "server": "server"}


def roles_of(accuracies: Iterable[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The roles that occur in some accuracies, the usual ones first.

    Example:
        >>> roles_of([{"none": {"server": {}}, "keylock": {"own_lock": {}, "a plugin's": {}}}])
        ['own_lock', 'server', "a plugin's"]

    """
    found = {role for one in accuracies for measured in one.values() for role in measured}
    return [role for role in ROLES if role in found] + sorted(found - set(ROLES))
