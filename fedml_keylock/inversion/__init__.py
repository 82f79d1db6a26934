"""Gradient inversion: what a server can see in the updates that it gets.

    attack = inverting_gradients(steps=2000)
    attack.reconstruct(updates, model, knowledge=knowledge, generator=generator)

The attacks see what was shared and what ``Knowledge`` declares, never the truth.
"""

from .attack import GradientInversion
from .knowledge import LEVELS, Knowledge, Secrets
from .presets import dlg, inverting_gradients
from .prior import total_variation

__all__ = [
    "LEVELS",
    "GradientInversion",
    "Knowledge",
    "Secrets",
    "dlg",
    "inverting_gradients",
    "total_variation",
]
