"""Gradient inversion: what a server can see in the updates that it gets.

    attack = inverting_gradients(steps=2000)
    attack.reconstruct(updates, model, knowledge=knowledge, generator=generator)

The attacks see what was shared and what ``Knowledge`` declares, never the truth.
"""

from .attack import GradientInversion
from .cost import weigh_layers
from .knowledge import (
    GRANTS,
    LEVELS,
    Attack,
    Knowledge,
    LocalTraining,
    PublicData,
    Secrets,
    check_level,
)
from .parametrisation import Parametrisation, Pixels
from .presets import dlg, gradinversion, idlg, inverting_gradients
from .prior import batch_norm_statistics, group_consistency, squared_norm, total_variation
from .transform import Clip, Noise, Prune, Quantise, Transform

__all__ = [
    "GRANTS",
    "LEVELS",
    "Attack",
    "Clip",
    "GradientInversion",
    "Knowledge",
    "LocalTraining",
    "Noise",
    "Parametrisation",
    "Pixels",
    "Prune",
    "PublicData",
    "Quantise",
    "Secrets",
    "Transform",
    "batch_norm_statistics",
    "check_level",
    "dlg",
    "gradinversion",
    "group_consistency",
    "idlg",
    "inverting_gradients",
    "squared_norm",
    "total_variation",
    "weigh_layers",
]
