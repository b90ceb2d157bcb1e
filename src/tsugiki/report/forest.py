"""The forest plot: every difference of a task with its interval, in points, the margin as a band.
No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from tsugiki.report.looks import Look
from tsugiki.report.svg import Axis, drawn_mark, picture, shortened

WIDTH, SIDE, ROW, NAME = 400, 8, 36, 26
INNER = WIDTH - 2 * SIDE


@dataclass(frozen=True, kw_only=True)
class Row:
    """A difference in points with its interval, in the look of the first of both; without one, why
    (`words`). `main`: one that the scale is made for; the others are drawn at its edge where they
    lie outside."""

    label: str
    look: Look
    value: float | None = None
    low: float = 0.0
    high: float = 0.0
    decimals: int = 1
    main: bool = True
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """What was compared on one task with one model."""

    name: str
    rows: tuple[Row, ...]


def forest(groups: Sequence[Group], margin: float, axis_label: str, title: str) -> str:
    """An SVG figure of all groups on one scale."""
    axis = _axis(groups, margin)
    bottom = sum(NAME + ROW * len(group.rows) + 6 for group in groups) + 4.0
    parts = _ground(axis, margin, bottom)
    y = 4.0
    for group in groups:
        name = escape(shortened(group.name, 52))
        parts.append(f'<text x="{SIDE}" y="{y + 16}" class="name halo">{name}</text>')
        y += NAME
        for row in group.rows:
            parts += _row(row, axis, y)
            y += ROW
        y += 6
    for tick in axis.ticks():
        x = _px(axis, tick)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_signed(tick)}</text>'
        )
    parts.append(
        f'<text x="{WIDTH / 2}" y="{bottom + 38}" text-anchor="middle">{escape(axis_label)}</text>'
    )
    return picture(parts, WIDTH, bottom + 46, title)


def _axis(groups: Sequence[Group], margin: float) -> Axis:
    """About zero, wide enough for the margin and for what is compared first."""
    rows = [row for group in groups for row in group.rows if row.value is not None]
    shown = [row for row in rows if row.main] or rows
    reach = max([2 * margin, *(abs(end) for row in shown for end in (row.low, row.high))]) * 1.15
    return Axis(label="", low=-reach, high=reach)


def _px(axis: Axis, value: float) -> float:
    return SIDE + axis.at(value) * INNER


def _signed(value: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:+.3g}".replace("-", "−")


def _ground(axis: Axis, margin: float, bottom: float) -> list[str]:
    left, right = _px(axis, -margin), _px(axis, margin)
    parts = [
        f'<rect class="band" x="{left:.1f}" y="4" width="{right - left:.1f}" '
        f'height="{bottom - 4:.1f}" fill="currentColor" fill-opacity="0.1"/>'
    ]
    for tick in axis.ticks():
        x = _px(axis, tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}" class="grid"/>')
    zero = _px(axis, 0.0)
    parts.append(
        f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="4" y2="{bottom}" stroke="currentColor" '
        'stroke-width="1.5"/>'
    )
    return parts


def _row(row: Row, axis: Axis, y: float) -> list[str]:
    """Names and numbers in one line, the interval under it over the whole width: so that a phone
    shows all of it."""
    label = f'<text x="{SIDE}" y="{y + 12:.1f}" class="halo">{escape(shortened(row.label, 36))}'
    parts = [f"{label}<title>{escape(row.label)}</title></text>"]
    right = f'<text x="{WIDTH - SIDE}" y="{y + 12:.1f}" text-anchor="end" class="halo">'
    if row.value is None:
        return [*parts, f"{right}{escape(row.words)}</text>"]
    form = f"+.{row.decimals}f"
    text = f"{row.value:+.1f} [{row.low:{form}}, {row.high:{form}}]".replace("-", "−")
    parts.append(f"{right}{text}</text>")
    colour, y = row.look.colour, y + 23
    parts.append(f'<g data-method="{escape(row.look.name)}" data-colour="{colour}">')
    low, high = max(row.low, axis.low), min(row.high, axis.high)
    if low < high:
        parts.append(
            f'<line x1="{_px(axis, low):.1f}" x2="{_px(axis, high):.1f}" y1="{y:.1f}" '
            f'y2="{y:.1f}" stroke="{colour}" stroke-width="2.5"/>'
        )
    if axis.low <= row.value <= axis.high:
        parts.append(drawn_mark(_px(axis, row.value), y, 5.5, row.look, row.main))
    else:
        parts.append(_arrow(row.value > 0, y, colour))
    parts.append("</g>")
    return parts


def _arrow(right: bool, y: float, colour: str) -> str:
    """What lies outside of the scale: its number stands beside it."""
    tip, back = (WIDTH - SIDE, -12) if right else (SIDE, 12)
    corners = f"{tip},{y:.1f} {tip + back},{y - 6:.1f} {tip + back},{y + 6:.1f}"
    return f'<polygon points="{corners}" fill="{colour}"/>'
