"""Fold the lock into a plain model.

``fold.py`` has the arithmetic, ``feeds.py`` finds what feeds what.
"""

from .folding import export_model

__all__ = ["export_model"]
