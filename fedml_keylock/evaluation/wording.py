"""Writes a report's numbers and accuracies as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "accuracy_text",
    "columns",
    "digits",
    "ends_of",
    "interval_text",
    "joined",
    "labels_text",
    "mean_of",
    "number",
]

LABELS_LEAK = 0.8
"""Share of labels recovered from which labels leak."""
STILL_WORKS, FAILS = 0.9, 0.5
"""Shares of the silos' accuracy: from the first on a model still works, below the second it does
not, and between them it works in part."""


def mean_of(interval: Mapping[str, Any] | None) -> float | None:
    """An interval's mean, or None if it is missing or not finite.

    Example:
        >>> mean_of({"mean": 0.5}), mean_of({"mean": float("nan")}), mean_of(None)
        (0.5, None, None)

    """
    value = None if interval is None else interval.get("mean")
    return float(value) if value is not None and math.isfinite(value) else None


def ends_of(interval: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """An interval's low and high, or None if one is missing or not finite.

    Example:
        >>> ends_of({"mean": 0.5, "low": 0.4, "high": 0.6}), ends_of({"mean": 0.5, "low": None})
        ((0.4, 0.6), None)

    """
    low, high = (mean_of({"mean": (interval or {}).get(end)}) for end in ("low", "high"))
    return None if low is None or high is None else (low, high)


def digits(value: float) -> str:
    """Two decimals; three if rounding to two would reach a threshold that the value misses.

    Example:
        >>> digits(0.834), digits(0.496), digits(0.5)
        ('0.83', '0.496', '0.50')

    """
    return f"{value:.3f}" if value < round(value, 1) == round(value, 2) else f"{value:.2f}"


def interval_text(
    interval: Mapping[str, Any] | None,
    *,
    percent: bool = False,
    decibels: bool = False,
    most: float = math.inf,
) -> str:
    """An interval as text; without its ends if they are missing or equal.

    `percent` prints shares, 0 to 1, as 0 to 100. `decibels` prints one decimal. `most` is the
    metric's largest value, at which the interval is cut.

    Example:
        >>> interval_text({"mean": 0.832, "low": 0.71, "high": 0.95, "n": 4})
        '0.83 [0.71, 0.95]'
        >>> interval_text({"mean": 0.5, "low": None, "high": None, "n": 1}, percent=True)
        '50.0 %'

    """
    mean = mean_of(interval)
    if mean is None:
        return "-"
    text = f"{100 * mean:.1f} %" if percent else f"{mean:.1f}" if decibels else digits(mean)
    low, high = ends_of(interval) or (mean, mean)
    if low == high:
        return text
    if percent:
        return f"{text} [{100 * max(low, 0.0):.1f}, {100 * min(high, 1.0):.1f}]"
    ends = [f"{end:.1f}" if decibels else digits(end) for end in (low, min(high, most))]
    return f"{text} [{', '.join(ends)}]"


def joined(words: Iterable[str]) -> str:
    """Words joined by commas and a final "and".

    Example:
        >>> joined(["a", "b", "c"])
        'a, b and c'

    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def labels_text(shares: Iterable[float | None]) -> str:
    """Text on labels, from the share recovered in each row; empty if no row has one.

    Example:
        >>> labels_text([0.25, 1.0])
        'The labels leak: up to 100 % of them were recovered.'

    """
    known = [share for share in shares if share is not None]
    if not known:
        return ""
    if max(known) >= LABELS_LEAK:
        return f"The labels leak: up to {100 * max(known):.0f} % of them were recovered."
    return f"At most {100 * max(known):.0f} % of the labels were recovered."


def accuracy_text(
    measured: Mapping[str, Any], plain: Mapping[str, Any] | None, *, undefended: bool = False
) -> str:
    """Text on what a defense costs in accuracy, and for whom the model still works.

    `measured` has the defense's intervals of ``own_lock``, ``fresh_lock`` and ``server``; `plain`
    is the interval without a defense. If `undefended`, only the server's interval counts.

    Example:
        >>> accuracy_text({"own_lock": {"mean": 0.9}, "fresh_lock": {"mean": 0.1}}, {"mean": 0.95})
        ... # doctest: +NORMALIZE_WHITESPACE
        'Accuracy in the silos is 90.0 %, 5.0 points below the 95.0 % without a
        defense. A fresh random key does not work (10.0 %).'

    """
    if undefended:
        known = mean_of(measured.get("server")) is not None
        return f"Accuracy is {_share(measured['server'])}." if known else ""
    if all(mean_of(interval) is None for interval in measured.values()):
        return ""
    own, base = mean_of(measured.get("own_lock")), mean_of(plain)
    if own is None:
        others = {"fresh_lock": "With a fresh random key it is", "server": "Without a key it is"}
        said = ["Accuracy in the silos was not measured."]
        for role, start in others.items():
            if mean_of(measured.get(role)) is not None:
                said.append(f"{start} {_share(measured[role])}.")
        return " ".join(said)
    text = f"Accuracy in the silos is {_share(measured['own_lock'])}, "
    if base is None:
        return f"{text}with no run without a defense beside it. {_others(measured, own)}".rstrip()
    text += f"{_difference(own - base)} the {100 * base:.1f} % without a defense."
    if own < FAILS * base:
        return f"{text} The model does not work: other accuracies say nothing of the lock."
    return f"{text} {_others(measured, own)}".rstrip()


def number(value: float | None) -> str:
    """A number of any size, in two or three significant figures.

    Example:
        >>> number(0.25), number(0.000123), number(None)
        ('0.25', '1.2e-04', '-')

    """
    if value is None:
        return "-"
    return digits(value) if value == 0 or 0.1 <= abs(value) < 1e4 else f"{value:.1e}"


def columns(lines: Sequence[Sequence[str]], *, limit: int = 100) -> str:
    """Text in left-aligned columns.

    Lines have equally many cells; a line of a single cell is a heading. Text wider than `limit` is
    cut in the first column, then at the line's end.

    Example:
        >>> print(columns([["a", "b"], ["long", "c"]]))
        a     b
        long  c

    """
    full = [line for line in lines if len(line) > 1]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    if widths:
        room = limit - sum(widths[1:]) - 2 * (len(widths) - 1)
        widths[0] = min(widths[0], max(room, 12))
    text = []
    for line in lines:
        cells = list(line) if len(line) == 1 else [_clipped(line[0], widths[0]), *line[1:]]
        padded = (cell.ljust(width) for cell, width in zip(cells, widths or [0], strict=False))
        text.append(_clipped("  ".join(padded).rstrip(), limit))
    return "\n".join(text)


def _clipped(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 2]}.."


def _others(measured: Mapping[str, Any], own: float) -> str:
    said = []
    fresh, server = measured.get("fresh_lock"), measured.get("server")
    if (share := mean_of(fresh)) is not None:
        text = f"A fresh random key {_state(share, own)} ({_share(fresh)})"
        if share >= STILL_WORKS * own:
            text += (
                ": the lock is no secret to the model. Whoever holds the public weights can use "
                "them with a key made up on the spot"
            )
        said.append(f"{text}.")
    if (share := mean_of(server)) is not None:
        said.append(f"Without a key the server's model {_state(share, own)} ({_share(server)}).")
    return " ".join(said)


def _state(share: float, own: float) -> str:
    if share >= STILL_WORKS * own:
        return "still works"
    return "works in part" if share >= FAILS * own else "does not work"


def _difference(difference: float) -> str:
    points = round(100 * abs(difference), 1)
    if not points:
        return "the same as"
    word = "point" if points == 1 else "points"
    return f"{points:.1f} {word} {'above' if difference > 0 else 'below'}"


def _share(interval: Mapping[str, Any] | None) -> str:
    return interval_text(interval, percent=True)
