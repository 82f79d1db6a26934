"""The FedML releases that every seam was tested with. Here so that reading it imports no fedml."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["SUPPORTED", "unsupported"]

SUPPORTED = ("0.9.6",)


def unsupported(version: str, problems: Sequence[str] = ()) -> str | None:
    """Why a FedML cannot be used, in one line that names both versions; None if it can.

    Args:
        version: of the FedML that was found.
        problems: what of it is not as in the releases that were tested.

    Example:
        >>> print(unsupported("0.9.7").split(";")[0])
        fedml 0.9.7 is not supported
        >>> unsupported(SUPPORTED[-1]) is None
        True

    """
    remedy = f"pip install 'fedml=={SUPPORTED[-1]}'"
    tested = f"fedml_keylock was tested with fedml {', '.join(SUPPORTED)}"
    if version not in SUPPORTED:
        return f"fedml {version} is not supported; {tested}: {remedy}"
    if problems:
        what = "; ".join(problems).replace("\n", " ")
        again = remedy.replace("install", "install --force-reinstall")
        return f"this fedml {version} is not as released: {what}; {tested}: {again}"
    return None
