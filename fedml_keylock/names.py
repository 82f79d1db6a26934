"""Names of what is in a model."""

from __future__ import annotations

__all__ = ["under"]


def under(owner: str, name: str) -> str:
    """The full name of something that a module has; the model's own name is empty.

    Example:
        >>> under("layer1.0", "weight"), under("", "weight")
        ('layer1.0.weight', 'weight')

    """
    return ".".join(filter(None, (owner, name)))
