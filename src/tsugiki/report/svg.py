"""Figures as SVG with text kept as text: drawn by hand, so that a page needs no font and no script
from elsewhere."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tsugiki.report.looks import Look

WIDTH, HEIGHT = 420, 290
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 44
TEXT_PX, LEAST_PX = 13, 11.2  # as drawn; as small as a page may scale it
STYLE = (
    "text{fill:#1a1a1a;font:13px system-ui,'Hiragino Sans','Noto Sans CJK JP',sans-serif}"
    ".name{font-weight:bold}.halo{paint-order:stroke;stroke:#fff;stroke-width:3px}"
    ".grid{stroke:#d0d0d0;stroke-width:1}svg{color:#1a1a1a;background:#fff}"
)


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
    series: Mapping[str, Sequence[Point]],
    looks: Mapping[str, Look],
    x: Axis,
    y: Axis,
    title: str,
    *,
    lines: bool = False,
    floor: tuple[str, float] | None = None,
) -> str:
    """An SVG figure: the look of each series, intervals as bars, what needs no model (name, score)
    as a dashed line, a legend, and a text alternative."""
    parts = [*_frame(x, y)]
    if floor is not None and y.low <= floor[1] <= y.high:
        parts.append(_dashed(_py(y, floor[1])))
    for name, points in series.items():
        look = looks[name]
        placed = [(_px(x, point.x), _py(y, point.y), point) for point in points]
        parts.append(f'<g data-method="{escape(look.name)}" data-colour="{look.colour}">')
        if lines:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in placed)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{look.colour}" '
                f'stroke-width="1.6"{_dash(look)}/>'
            )
            placed = [each for each in placed if each[2].low is not None]
        for px, py, point in placed:
            parts += _dot(px, py, point, y, look, name)
        parts.append("</g>")
    floor_name = () if floor is None else (f"{floor[0]} {floor[1]:.3f}",)
    legend = _legend({name: looks[name] for name in series}, lines, floor_name)
    height = HEIGHT + 20 * (len(series) + len(floor_name))
    return picture([*parts, *legend], WIDTH, height, title)


def _dash(look: Look) -> str:
    return f' stroke-dasharray="{2 + 3 * look.number} 3"' if look.number else ""


def _dashed(y: float) -> str:
    return (
        f'<line class="floor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
        'stroke="currentColor" stroke-width="1.2" stroke-dasharray="5 4"/>'
    )


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


def _dot(px: float, py: float, point: Point, y: Axis, look: Look, name: str) -> list[str]:
    parts = []
    if point.low is not None and point.high is not None:
        low, high = _py(y, max(point.low, y.low)), _py(y, min(point.high, y.high))
        parts.append(
            f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{high:.1f}" '
            f'stroke="{look.colour}" stroke-width="1.5"/>'
        )
    size = 6.5 if point.strong else 4.5
    parts.append(
        f"<g><title>{escape(name)}: "
        f"{point.y:.3f}</title>{drawn_mark(px, py, size, look, point.strong)}</g>"
    )
    return parts


def drawn_mark(px: float, py: float, size: float, look: Look, strong: bool = False) -> str:
    """The mark of a look, ringed where it is to be seen first."""
    colour, mark = look.colour, look.mark
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


def _legend(looks: Mapping[str, Look], lines: bool, floor: Sequence[str]) -> list[str]:
    parts = []
    for number, (name, look) in enumerate(looks.items()):
        y = HEIGHT + 14 + 20 * number
        mark = (
            f'<line x1="{LEFT}" x2="{LEFT + 20}" y1="{y}" y2="{y}" stroke="{look.colour}" '
            f'stroke-width="3"{_dash(look)}/>'
            if lines
            else drawn_mark(LEFT + 10, y, 4.5, look)
        )
        named = f'data-method="{escape(look.name)}" data-colour="{look.colour}"'
        parts.append(f"<g {named}>{mark}</g>")
        parts.append(f'<text x="{LEFT + 28}" y="{y + 4}">{escape(shortened(name, 46))}</text>')
    for number, name in enumerate(floor, len(looks)):
        y = HEIGHT + 14 + 20 * number
        parts.append(
            f'<line x1="{LEFT}" x2="{LEFT + 20}" y1="{y}" y2="{y}" stroke="currentColor" '
            'stroke-width="1.2" stroke-dasharray="5 4"/>'
        )
        parts.append(f'<text x="{LEFT + 28}" y="{y + 4}">{escape(name)}</text>')
    return parts


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: Japanese signs take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def shortened(text: str, most: int) -> str:
    """A text of at most so many columns; what is cut off is marked."""
    if columns_of(text) <= most:
        return text
    kept = ""
    for char in text:
        if columns_of(kept + char) > most - 1:
            break
        kept += char
    return kept + "…"


def picture(parts: Sequence[str], width: float, height: float, title: str) -> str:
    """The figure itself. A page may scale it down until its text has 11 px; a narrower place
    scrolls."""
    least = width * LEAST_PX / TEXT_PX
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'style="min-width:{least:.0f}px" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def stand_alone(svg: str) -> str:
    """The same figure as a file of its own, with the styles that a page would give it."""
    start = '<svg xmlns="http://www.w3.org/2000/svg" '
    opened, rest = svg.replace("<svg ", start, 1).split(">", 1)
    width, height = opened.split('viewBox="0 0 ', 1)[1].split('"', 1)[0].split()
    paper = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    size = f' width="{width}" height="{height}"'
    # `currentColor` is not known everywhere that a figure is taken.
    inside = rest.replace("currentColor", "#1a1a1a")
    return f"{opened}{size}><style>{STYLE}</style>{paper}{inside}\n"
