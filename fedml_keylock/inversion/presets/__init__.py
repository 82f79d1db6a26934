"""The published attacks, each with its source's settings.

A preset takes any field of its attack's class, to change a setting. An unknown field or a wrong
value is a ConfigError.
"""

from .generators import ggl, grnn
from .others import analytic, cocktail_party, learned, spear, tableak
from .searches import dlg, gradinversion, idlg, inverting_gradients, surrogate
from .servers import imprint, inconsistent_models, trap_weights

__all__ = [
    "analytic",
    "cocktail_party",
    "dlg",
    "ggl",
    "gradinversion",
    "grnn",
    "idlg",
    "imprint",
    "inconsistent_models",
    "inverting_gradients",
    "learned",
    "spear",
    "surrogate",
    "tableak",
    "trap_weights",
]
