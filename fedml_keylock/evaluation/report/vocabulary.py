"""What the columns and roles of a report are called, and what its names stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..leakage import SUM, UNDEFENDED

__all__ = ["KNOWLEDGE", "METRICS", "OF_SUMS", "ROLES", "meaning_of", "roles_of"]

METRICS = {
    "ssim_aligned": "SSIM aligned",
    "ssim": "SSIM",
    "psnr_aligned": "PSNR aligned, dB",
    "psnr": "PSNR, dB",
    "label_accuracy": "labels",
    "lpips_aligned": "LPIPS aligned",
    "lpips": "LPIPS",
}
ROLES = {"own_lock": "silos", "fresh_lock": "random key", "server": "server"}
LOCKS = {
    "sealed": "exact secure aggregation: words that only silos open",
    "rotated": "a secret rotation of what is sent",
    "paper": "the published key-lock module (arXiv 2305.04095)",
}
"""What the key-lock defense does under each of its locks."""
KNOWLEDGE = {
    "oblivious": "takes what was sent for plain weights",
    "adaptive": "knows the kind of lock, and searches for its secrets and the image together",
    "statistics": "adaptive, and reads the batch's statistics in normalisation layers",
    "insider": "adaptive, and has the private state of another silo that colludes",
    "temporal": "adaptive, and pools the rounds of one silo",
    "simulating": "adaptive, and has trained a decoder on public images under locks of its own",
    "oracle": "has the silo's private state: the attack's self-test, and no attacker",
}
"""What an attacker of each level of knowledge does."""
OF_SUMS = {
    SUM.strip(): "takes its own update off the sum, and attacks that of the others as one batch"
}
"""What an attacker does who has a sum of several silos' updates."""


def meaning_of(defense: str) -> str:
    """What the name of a defense stands for, in a few words; nothing for a plugin's.

    Example:
        >>> meaning_of("none")
        'as FedML trains without a defense'
        >>> meaning_of("keylock:rotated:group")
        'a secret rotation of what is sent, group'
        >>> meaning_of("keylock:paper:first")
        'the published key-lock module (arXiv 2305.04095), first'

    """
    if defense == UNDEFENDED:
        return "as FedML trains without a defense"
    section, *named = defense.split(":")
    if section != "keylock" or not named or named[0] not in LOCKS:
        return ""
    return ", ".join([LOCKS[named[0]], *named[1:]])


def roles_of(accuracy: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The roles that occur in defenses' accuracies, the usual ones first.

    Example:
        >>> roles_of({"none": {"server": {}}, "keylock": {"own_lock": {}, "a plugin's": {}}})
        ['own_lock', 'server', "a plugin's"]

    """
    found = {role for measured in accuracy.values() for role in measured}
    return [role for role in ROLES if role in found] + sorted(found - set(ROLES))
