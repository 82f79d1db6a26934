"""Charts of a report: as numbers, in words, and as coordinates to draw.

The page draws them as SVG in its own colours, which follow its light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from matplotlib.ticker import MaxNLocator

from ..wording import digits, number

__all__ = ["Chart", "Drawing", "Line", "Series"]

WIDTH, HEIGHT = 440, 250
"""Size of the drawing in its own units; the page scales it to the available width."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 42
_HUES, _DASHES = 6, 4
"""Numbers of colours and line styles in the page's style sheet."""
_MOST_MARKS, _MOST_POINTS, _ROWS = 24, 240, 12
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Series:
    """One curve: its points, and their intervals if any.

    Attributes:
        name: the name in the legend.
        points: ``(x, y)``, from left to right.
        ends: each point's ``(low, high)`` or None.
        hue: index of the colour, 0 to 5. It shows the defense if a chart has several.
        dash: index of the line style, 0 to 3.
        everywhere: the series is a constant, drawn over the whole width.

    """

    name: str
    points: tuple[tuple[float, float], ...]
    ends: tuple[tuple[float, float] | None, ...] = ()
    hue: int = 0
    dash: int = 0
    everywhere: bool = False


@dataclass(frozen=True)
class Line:
    """A series as coordinates: a path, marks at its points, and bars for the intervals."""

    name: str
    path: str
    marks: tuple[tuple[float, float], ...]
    bars: tuple[tuple[float, float, float], ...]
    hue: int
    dash: int
    everywhere: bool


@dataclass(frozen=True)
class Drawing:
    """A chart as coordinates: its lines, and the positions and texts of the ticks."""

    lines: tuple[Line, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes.

    Attributes:
        title: the figure's title.
        x: name of the horizontal axis, "round".
        y: name of the vertical axis, "aligned SSIM".
        series: at least one, each with at least one point.
        percent: y is a share, shown as 0 to 100.
        logarithmic: y is positive, and its ticks are powers of ten.

    Example:
        >>> chart = Chart("dlg", "round", "aligned SSIM", (Series("none", ((0, 0.9), (5, 0.4))),))
        >>> chart.words()
        'dlg: aligned SSIM by round. none: 0.90 at round 0, 0.40 at round 5.'
        >>> chart.table()
        (['round', 'none'], [['0', '0.90'], ['5', '0.40']])
        >>> chart.drawing().lines[0].path
        'M52 31.6L426 129.6'

    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    percent: bool = False
    logarithmic: bool = False

    @property
    def heading(self) -> str:
        """The figure's heading: what is plotted against what."""
        what = self.y if self.title == self.y else f"{self.title}: {self.y}"
        return f"{what} by {self.x}"

    def words(self) -> str:
        """The chart in words, for readers who cannot see it."""
        said = []
        for one in self.series:
            if one.everywhere:
                said.append(f"{one.name}: {self._text(one.points[0][1])} throughout.")
                continue
            ends = dict.fromkeys((one.points[0], one.points[-1]))
            shown = [f"{self._text(y)} at {self.x} {x:g}" for x, y in ends]
            said.append(f"{one.name}: {', '.join(shown)}.")
        return " ".join([f"{self.heading}.", *said])

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The numbers as a table, heading first; many points are thinned to about twelve."""
        places = sorted({x for one in self.series if not one.everywhere for x, _ in one.points})
        lines = []
        for place in _thinned(places, _ROWS):
            values = [_at(one, place) for one in self.series]
            texts = ["-" if value is None else self._text(value) for value in values]
            lines.append([f"{place:g}", *texts])
        return [self.x, *(one.name for one in self.series)], lines

    def drawing(self) -> Drawing:
        """The chart as coordinates, with y pointing down."""
        xs = [x for one in self.series if not one.everywhere for x, _ in one.points] or [0.0]
        left, right = (min(xs), max(xs)) if min(xs) < max(xs) else (xs[0] - 1, xs[0] + 1)
        steps = MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]).tick_values(left, right)
        low, high, heights = self._heights()
        across, up = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

        def place(x: float) -> float:
            return round(_LEFT + across * (x - left) / (right - left), 1)

        def height(y: float) -> float:
            value = math.log10(y) if self.logarithmic else y
            share = (value - low) / (high - low)
            return round(HEIGHT - _BOTTOM - up * min(max(share, 0.0), 1.0), 1)

        lines = []
        for one in self.series:
            points = [(place(x), height(y)) for x, y in _thinned(one.points, _MOST_POINTS)]
            if one.everywhere:
                points = [(float(_LEFT), points[0][1]), (float(WIDTH - _RIGHT), points[0][1])]
            path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
            marked = not one.everywhere and len(points) <= _MOST_MARKS
            bars = [
                (place(x), height(ends[0]), height(ends[1]))
                for (x, _), ends in zip(one.points, one.ends, strict=False)
                if ends is not None
            ]
            shape = (one.hue % _HUES, one.dash % _DASHES, one.everywhere)
            marks = tuple(points) if marked else ()
            lines.append(Line(one.name, path, marks, tuple(bars), *shape))
        ticks = tuple((place(x), f"{x:g}") for x in map(float, steps) if left <= x <= right)
        return Drawing(tuple(lines), ticks, tuple((height(y), text) for y, text in heights))

    def _heights(self) -> tuple[float, float, list[tuple[float, str]]]:
        """Range of y (of its exponents if logarithmic), and its ticks."""
        ys = [y for one in self.series for _, y in one.points]
        if self.logarithmic:
            low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
            high = max(high, low + 1)
            every = math.ceil((high - low) / 5)
            return low, high, [(10.0**n, f"{10.0**n:g}") for n in range(low, high + 1, every)]
        most = 1.0 if max(ys) <= 1 else max(ys)  # intervals may be cut at the edge, points never
        found = [float(y) for y in MaxNLocator(nbins=5).tick_values(min(0.0, *ys), most)]
        texts = [(y, f"{100 * y:.0f} %" if self.percent else f"{y:g}") for y in found]
        return found[0], found[-1], texts

    def _text(self, value: float) -> str:
        if self.percent:
            return f"{100 * value:.1f} %"
        return number(value) if self.logarithmic else digits(value)


def _at(series: Series, place: float) -> float | None:
    return next((y for x, y in series.points if series.everywhere or x == place), None)


def _thinned(items: Sequence[_Item], most: int) -> list[_Item]:
    """Evenly spaced items, limited in number, with the first and the last."""
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(index * last / (most - 1))] for index in range(most)]
