"""The published attacks, each with its source's settings."""

from .generators import ggl, grnn
from .others import analytic, learned, tableak
from .searches import dlg, gradinversion, idlg, inverting_gradients

__all__ = [
    "analytic",
    "dlg",
    "ggl",
    "gradinversion",
    "grnn",
    "idlg",
    "inverting_gradients",
    "learned",
    "tableak",
]
