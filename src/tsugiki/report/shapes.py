"""Heat maps, bars and stacked columns as SVG: see `report/svg`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from tsugiki.report.looks import Look
from tsugiki.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    columns_of,
    picture,
    shortened,
)

LIGHT, DARK = "#eef3f8", "#00508a"
# Of kinds of answers: none of them a method's (Paul Tol's “muted”).
KINDS = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255",
    "#AA4499",
)  # fmt: skip


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[int, int], float | None],
    strong: Sequence[tuple[int, int]],
    title: str,
    scale: tuple[float, float],
) -> str:
    """An SVG table of shaded cells on a scale that several may share, darker for higher, the value
    written in each, a bar of the shades under it; `strong` cells are framed, None is a cell
    without a value.

    Shades of one colour with the number in it: readable without colour, and in print.
    """
    low, high = scale
    left, top, width, height = 20 + 7 * max(map(columns_of, rows), default=0), 28, 62, 30
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
            shade = _mixed(LIGHT, DARK, share)
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
                f'text-anchor="middle" style="fill:{_ink_on(shade)}">{text}</text>'
            )
    below = top + height * len(rows) + 10
    parts += _colour_bar(left, below, scale)
    return picture(parts, max(WIDTH, left + width * len(columns) + 8), below + 38, title)


def _colour_bar(left: int, y: int, scale: tuple[float, float]) -> list[str]:
    steps, width = 20, 9
    parts = [
        f'<rect x="{left + width * step}" y="{y}" width="{width + 0.5}" height="10" '
        f'fill="{_mixed(LIGHT, DARK, step / (steps - 1))}"/>'
        for step in range(steps)
    ]
    ends = ((left, "start", scale[0]), (left + width * steps, "end", scale[1]))
    return parts + [
        f'<text x="{x}" y="{y + 26}" text-anchor="{anchor}">{value:.3f}</text>'
        for x, anchor, value in ends
    ]


def _ink_on(shade: str) -> str:
    """Black or white, whichever is told better from the shade: never below 4.5 : 1."""
    brightness = _luminance(shade)
    return "#ffffff" if 1.05 / (brightness + 0.05) > (brightness + 0.05) / 0.05 else "#000000"


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def bars(values: Mapping[str, float], looks: Mapping[str, Look], title: str) -> str:
    """Horizontal bars from zero, the value written at each."""
    high = max(values.values(), default=1.0) or 1.0
    left, height = 150, 26
    parts = []
    for number, (name, value) in enumerate(values.items()):
        y, length = 8 + height * number, (WIDTH - left - 80) * value / high
        look = looks[name]
        label = escape(shortened(name, 20))
        parts.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{label}</text>')
        parts.append(
            f'<g data-method="{escape(look.name)}" data-colour="{look.colour}"><rect x="{left}" '
            f'y="{y + 2}" width="{max(length, 1):.1f}" height="{height - 9}" '
            f'fill="{look.colour}"/></g>'
        )
        parts.append(f'<text x="{left + max(length, 1) + 6:.1f}" y="{y + 15}">{value:,.4g}</text>')
    return picture(parts, WIDTH, 16 + height * len(values), title)


def stacked(columns: Mapping[str, Mapping[str, int]], names: Mapping[str, str], title: str) -> str:
    """Stacked columns of counts as shares, bottom up in the order of `names` (class → text in the
    legend)."""
    used = [name for name in names if any(column.get(name) for column in columns.values())]
    # A class keeps its colour from chart to chart.
    colours = {name: KINDS[number % len(KINDS)] for number, name in enumerate(names)}
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
    return picture(parts, WIDTH, HEIGHT + 20 * len(used), title)


def _mixed(light: str, dark: str, share: float) -> str:
    pairs = zip(
        (light[1:3], light[3:5], light[5:7]), (dark[1:3], dark[3:5], dark[5:7]), strict=True
    )
    return "#" + "".join(
        f"{round(int(low, 16) + (int(high, 16) - int(low, 16)) * share):02x}" for low, high in pairs
    )
