"""Figures as SVG with text kept as text: drawn by hand, so that a page needs no font and no script from elsewhere."""

from __future__ import annotations

import math
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
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low) or 1)
        return (value - self.low) / (self.high - self.low or 1)

    def ticks(self) -> list[float]:
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            fine = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
            inside = [value for value in fine if self.low * 0.999 <= value <= self.high * 1.001]
            return inside[:: max(1, len(inside) // 5 + (len(inside) > 5))]
        step = 10 ** math.floor(math.log10((self.high - self.low) or 1))
        step = next(step * part for part in (0.1, 0.2, 0.5, 1.0, 2.0) if (self.high - self.low) / (step * part) <= 5)
        count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1
        return [(math.ceil(self.low / step - 1e-9) + i) * step for i in range(count)]


def axis_over(values: Sequence[float], label: str, *, log: bool = False) -> Axis:
    """An axis that holds all values with some air."""
    low, high = min(values), max(values)
    if log:
        return Axis(label=label, low=low / 1.4, high=high * 1.4, log=True)
    air = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return Axis(label=label, low=max(0.0, low - air) if low >= 0 else low - air, high=high + air)


def chart(series: Mapping[str, Sequence[Point]], x: Axis, y: Axis, title: str, *, lines: bool = False) -> str:
    """An SVG figure: one colour and mark a series, intervals as bars, a legend, and a text alternative."""
    parts = [*_frame(x, y)]
    for number, (name, points) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [(_px(x, point.x), _py(y, point.y), point) for point in points]
        if lines:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in placed)
            dash = "" if number < len(COLOURS) else ' stroke-dasharray="4 3"'
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        else:
            for px, py, point in placed:
                parts += _dot(px, py, point, y, colour, MARKS[number % len(MARKS)], name)
    legend = _legend(list(series), lines)
    height = HEIGHT + 20 * len(series)
    body = "".join(parts) + "".join(legend)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{body}</svg>'


def _px(axis: Axis, value: float) -> float:
    return LEFT + axis.at(value) * (WIDTH - LEFT - RIGHT)


def _py(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.at(value) * (HEIGHT - TOP - BOTTOM)


def _frame(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value in y.ticks():
        at = _py(y, value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in x.ticks():
        at = _px(x, value)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="grid"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:.4g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y.label)}</text>')
    return parts


def _dot(px: float, py: float, point: Point, y: Axis, colour: str, mark: str, name: str) -> list[str]:
    parts = []
    if point.low is not None and point.high is not None:
        low, high = _py(y, max(point.low, y.low)), _py(y, min(point.high, y.high))
        parts.append(f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-width="1.5"/>')
    size = 6.5 if point.strong else 4.5
    parts.append(f"<g><title>{escape(name)}: {point.y:.3f}</title>{_mark(px, py, size, colour, mark, point.strong)}</g>")
    return parts


def _mark(px: float, py: float, size: float, colour: str, mark: str, strong: bool) -> str:
    ring = ' stroke="currentColor" stroke-width="1.5"' if strong else ""
    if mark == "circle":
        return f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{size}" fill="{colour}"{ring}/>'
    if mark == "square":
        return f'<rect x="{px - size:.1f}" y="{py - size:.1f}" width="{2 * size}" height="{2 * size}" fill="{colour}"{ring}/>'
    corners = [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)] if mark == "diamond" else [(0, -1.3), (1.2, 1), (-1.2, 1)]
    path = " ".join(f"{px + size * dx:.1f},{py + size * dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{path}" fill="{colour}"{ring}/>'


def _legend(names: Sequence[str], lines: bool) -> list[str]:
    parts = []
    for number, name in enumerate(names):
        y = HEIGHT + 14 + 20 * number
        colour = COLOURS[number % len(COLOURS)]
        mark = f'<line x1="{LEFT}" x2="{LEFT + 20}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>' if lines else ""
        mark = mark or _mark(LEFT + 10, y, 4.5, colour, MARKS[number % len(MARKS)], False)
        parts.append(f'{mark}<text x="{LEFT + 28}" y="{y + 4}">{escape(name)}</text>')
    return parts
