"""Figures as SVG with text kept as text: drawn by hand, so that a page needs no font and no script
from elsewhere."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# Okabe & Ito 2008: told apart by colour-blind readers too; the marks differ besides.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = ("circle", "square", "diamond", "triangle")
WIDTH, HEIGHT = 460, 290
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value with its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear or logarithmic axis."""

    label: str
    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (
                math.log10(self.high) - math.log10(self.low) or 1
            )
        return (value - self.low) / (self.high - self.low or 1)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            fine = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
            inside = [value for value in fine if self.low * 0.999 <= value <= self.high * 1.001]
            return inside[:: max(1, len(inside) // 5 + (len(inside) > 5))]
        step = 10 ** math.floor(math.log10((self.high - self.low) or 1))
        step = next(
            step * part
            for part in (0.1, 0.2, 0.5, 1.0, 2.0)
            if (self.high - self.low) / (step * part) <= 5
        )
        count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1
        return [(math.ceil(self.low / step - 1e-9) + i) * step for i in range(count)]


def axis_over(values: Sequence[float], label: str, *, log: bool = False) -> Axis:
    """An axis that holds all values with some air."""
    low, high = min(values), max(values)
    if log:
        return Axis(label=label, low=low / 1.4, high=high * 1.4, log=True)
    air = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return Axis(label=label, low=max(0.0, low - air) if low >= 0 else low - air, high=high + air)


def chart(
    series: Mapping[str, Sequence[Point]], x: Axis, y: Axis, title: str, *, lines: bool = False
) -> str:
    """An SVG figure: one colour and mark a series, intervals as bars, a legend, and a text
    alternative."""
    parts = [*_frame(x, y)]
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [(_px(x, point.x), _py(y, point.y), point) for point in points]
        if lines:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in placed)
            dash = "" if number < len(COLOURS) else ' stroke-dasharray="4 3"'
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" '
                f'stroke-width="1.6"{dash}/>'
            )
        else:
            for px, py, point in placed:
                parts += _dot(px, py, point, y, colour, MARKS[number % len(MARKS)], name)
    legend = _legend(list(series), lines)
    height = HEIGHT + 20 * len(series)
    return _svg([*parts, *legend], WIDTH, height, title)


def _px(axis: Axis, value: float) -> float:
    return LEFT + axis.at(value) * (WIDTH - LEFT - RIGHT)


def _py(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.at(value) * (HEIGHT - TOP - BOTTOM)


def _frame(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value in y.ticks():
        at = _py(y, value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in x.ticks():
        at = _px(x, value)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="grid"/>'
        )
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:.4g}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
        f'text-anchor="middle">{escape(x.label)}</text>'
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 '
        f'{middle})">{escape(y.label)}</text>'
    )
    return parts


def _dot(
    px: float, py: float, point: Point, y: Axis, colour: str, mark: str, name: str
) -> list[str]:
    parts = []
    if point.low is not None and point.high is not None:
        low, high = _py(y, max(point.low, y.low)), _py(y, min(point.high, y.high))
        parts.append(
            f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" '
            'stroke-width="1.5"/>'
        )
    size = 6.5 if point.strong else 4.5
    parts.append(
        f"<g><title>{escape(name)}: "
        f"{point.y:.3f}</title>{_mark(px, py, size, colour, mark, point.strong)}</g>"
    )
    return parts


def _mark(px: float, py: float, size: float, colour: str, mark: str, strong: bool) -> str:
    ring = ' stroke="currentColor" stroke-width="1.5"' if strong else ""
    if mark == "circle":
        return f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{size}" fill="{colour}"{ring}/>'
    if mark == "square":
        return (
            f'<rect x="{px - size:.1f}" y="{py - size:.1f}" width="{2 * size}" '
            f'height="{2 * size}" fill="{colour}"{ring}/>'
        )
    corners = (
        [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)]
        if mark == "diamond"
        else [(0, -1.3), (1.2, 1), (-1.2, 1)]
    )
    path = " ".join(f"{px + size * dx:.1f},{py + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{path}" fill="{colour}"{ring}/>'


def _legend(names: Sequence[str], lines: bool) -> list[str]:
    parts = []
    for number, name in enumerate(names):
        y = HEIGHT + 14 + 20 * number
        colour = COLOURS[number % len(COLOURS)]
        mark = (
            f'<line x1="{LEFT}" x2="{LEFT + 20}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="3"/>'
            if lines
            else ""
        )
        mark = mark or _mark(LEFT + 10, y, 4.5, colour, MARKS[number % len(MARKS)], False)
        parts.append(f'{mark}<text x="{LEFT + 28}" y="{y + 4}">{escape(name)}</text>')
    return parts


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[int, int], float | None],
    strong: Sequence[tuple[int, int]],
    title: str,
) -> str:
    """An SVG table of shaded cells, darker for higher, the value written in each; `strong` cells
    are framed, None is a cell without a value.

    Shades of one colour with the number in it: readable without colour, and in print.
    """
    known = [value for value in values.values() if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    left, top, width, height = 20 + 7 * max(map(_columns, rows), default=0), 28, 62, 30
    parts = [
        f'<text x="{left + width * (index + 0.5):.0f}" y="{top - 8}" '
        f'text-anchor="middle">{escape(name)}</text>'
        for index, name in enumerate(columns)
    ]
    for row, name in enumerate(rows):
        y = top + height * row
        parts.append(f'<text x="{left - 8}" y="{y + 20}" text-anchor="end">{escape(name)}</text>')
        for column in range(len(columns)):
            if (row, column) not in values:
                continue
            value = values[row, column]
            share = 0.0 if value is None else (value - low) / (high - low or 1)
            ink = "#ffffff" if share > 0.55 else "#1a1a1a"
            shade = _mixed("#eef3f8", COLOURS[0], share)
            frame = (
                ' stroke="#D55E00" stroke-width="3"'
                if (row, column) in strong
                else ' stroke="#ffffff" stroke-width="1"'
            )
            parts.append(
                f'<rect x="{left + width * column}" y="{y}" width="{width - 2}" '
                f'height="{height - 2}" fill="{shade}"{frame}/>'
            )
            text = "–" if value is None else f"{value:.3f}"
            parts.append(
                f'<text x="{left + width * (column + 0.5) - 1:.0f}" y="{y + 19}" '
                f'text-anchor="middle" style="fill:{ink}">{text}</text>'
            )
    return _svg(
        parts, max(WIDTH, left + width * len(columns) + 8), top + height * len(rows) + 8, title
    )


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes: Japanese signs take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def bars(values: Mapping[str, float], title: str, unit: str = "") -> str:
    """Horizontal bars from zero, the value written at each."""
    high = max(values.values(), default=1.0) or 1.0
    left, height = 170, 26
    parts = []
    for number, (name, value) in enumerate(values.items()):
        y, length = 8 + height * number, (WIDTH - left - 90) * value / high
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="{left}" y="{y + 2}" width="{max(length, 1):.1f}" height="{height - 9}" '
            f'fill="{COLOURS[number % len(COLOURS)]}"/>'
        )
        parts.append(
            f'<text x="{left + max(length, 1) + 6:.1f}" '
            f'y="{y + 15}">{value:,.4g}{escape(unit)}</text>'
        )
    return _svg(parts, WIDTH, 16 + height * len(values), title)


def stacked(columns: Mapping[str, Mapping[str, int]], names: Mapping[str, str], title: str) -> str:
    """Stacked columns of counts as shares, bottom up in the order of `names` (class → text in the
    legend)."""
    used = [name for name in names if any(column.get(name) for column in columns.values())]
    # A class keeps its colour from chart to chart.
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    width = (WIDTH - LEFT - RIGHT) / max(len(columns), 1)
    inner = HEIGHT - TOP - BOTTOM
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = HEIGHT - BOTTOM - inner * share
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for index, (label, column) in enumerate(columns.items()):
        total, below = sum(column.values()) or 1, 0.0
        x = LEFT + width * index + width * 0.12
        for name in used:
            share = column.get(name, 0) / total
            y = HEIGHT - BOTTOM - inner * (below + share)
            colour = colours[name]
            box = f'x="{x:.1f}" y="{y:.1f}" width="{width * 0.76:.1f}" height="{inner * share:.1f}"'
            parts.append(
                f"<g><title>{escape(label)}: {escape(names[name])} {share:.0%}</title><rect {box} "
                f'fill="{colour}"/></g>'
            )
            below += share
        parts.append(
            f'<text x="{x + width * 0.38:.1f}" y="{HEIGHT - BOTTOM + 16}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
    for number, name in enumerate(used):
        y = HEIGHT - 4 + 20 * number
        parts.append(
            f'<rect x="{LEFT}" y="{y - 5}" width="14" height="10" fill="{colours[name]}"/>'
        )
        parts.append(f'<text x="{LEFT + 22}" y="{y + 4}">{escape(names[name])}</text>')
    return _svg(parts, WIDTH, HEIGHT + 20 * len(used), title)


def _svg(parts: Sequence[str], width: float, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _mixed(light: str, dark: str, share: float) -> str:
    pairs = zip(
        (light[1:3], light[3:5], light[5:7]), (dark[1:3], dark[3:5], dark[5:7]), strict=True
    )
    return "#" + "".join(
        f"{round(int(low, 16) + (int(high, 16) - int(low, 16)) * share):02x}" for low, high in pairs
    )
