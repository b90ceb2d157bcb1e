"""Which figures a report has: each from the run records, as (title, SVG) pairs by section."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tsugiki.report.compare import pooled
from tsugiki.report.finding import exclusive_cost, exclusive_step_s
from tsugiki.report.standing import lost_seeds
from tsugiki.report.svg import Point, axis_over, bars, chart, heat_map, stacked
from tsugiki.report.words import Language, say
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.score.failures import CLASSES
from tsugiki.score.metrics import Score
from tsugiki.study.cells import Cell, Key, StudyResult

MOST_SERIES = 8  # more are no longer told apart by colour and mark
CURVE_POINTS = 80
Figures = list[tuple[str, str]]


def all_figures(
    result: StudyResult, words: Mapping[str, str], language: Language
) -> dict[str, Figures]:
    """Figures by section of the page; a section without data is empty."""
    chosen, cells = _by_task(result, chosen_only=True), _by_task(result, chosen_only=False)
    return {
        "quality": [
            figure
            for task, pairs in chosen.items()
            for figure in _quality(result, task, pairs, words)
        ],
        "cost": [figure for task, pairs in chosen.items() for figure in _cost(task, pairs, words)],
        "landscape": [
            figure for task, pairs in cells.items() for figure in _rates(result, task, pairs, words)
        ],
        "heat": [figure for key in result.chosen for figure in _heat(result, key, words)],
        "curves": [
            figure
            for task, pairs in chosen.items()
            for figure in _course(task, pairs, words, language)
        ],
    }


def _by_task(result: StudyResult, chosen_only: bool) -> dict[str, list[tuple[Cell, RunRecord]]]:
    by_task: dict[str, list[tuple[Cell, RunRecord]]] = {}
    for cell in result.chosen.values() if chosen_only else result.cells:
        record = result.record(cell)
        if record is not None and record.status == "done":
            by_task.setdefault(cell.task.label, []).append((cell, record))
    return by_task


def _name(cell: Cell) -> str:
    return f"{cell.model.label}-{cell.method.name}"


def _point(x: float, main: Score, strong: bool = False) -> Point:
    return Point(x=x, y=main.value, low=main.low, high=main.high, strong=strong)


def _quality(
    result: StudyResult, task: str, pairs: list[tuple[Cell, RunRecord]], words: Mapping[str, str]
) -> Figures:
    """Test score, over all seeds, against trained parameters."""
    series: dict[str, list[Point]] = {}
    for cell, record in pairs:
        if record.scores("test") is not None and record.outcome.trainable:
            if lost_seeds(result, cell):
                continue  # no mean over the rest
            over = pooled(result.seeds(cell))
            point = Point(
                x=record.outcome.trainable / 1e6,
                y=over.means[over.main],
                low=over.low,
                high=over.high,
            )
            series.setdefault(_name(cell), []).append(point)
    return _chart(task, series, words["parameters"], f"{words['test']}: {task}", log=True)


def _cost(task: str, pairs: list[tuple[Cell, RunRecord]], words: Mapping[str, str]) -> Figures:
    """Memory and time of the chosen cells as bars."""
    memory = {}
    for cell, record in pairs:
        measured = exclusive_cost(record)
        # Of a CPU only the whole process is known, which compares nothing.
        if peak := measured.peak_allocated_bytes:
            memory[_name(cell)] = peak / 2**20
    seconds = {
        _name(cell): value
        for cell, record in pairs
        if (value := exclusive_step_s(record)) is not None
    }
    figures = (
        [(f"{task}: {words['memory']}", bars(memory, f"{task}: {words['memory']}"))]
        if memory
        else []
    )
    return figures + (
        [(f"{task}: {words['seconds']}", bars(seconds, f"{task}: {words['seconds']}"))]
        if seconds
        else []
    )


def _rates(
    result: StudyResult, task: str, pairs: list[tuple[Cell, RunRecord]], words: Mapping[str, str]
) -> Figures:
    """Validation score over the learning rate, one series for each other setting; of many settings
    the best at each rate, one series a method."""
    series: dict[str, list[Point]] = {}
    for cell, record in pairs:
        if not method_of(cell.config).trains:
            continue
        extra = [
            f"{name} {value}"
            for name, value in cell.settings.items()
            if name not in ("learning_rate", "alpha")
        ]
        scores = record.scores("validation")
        if scores is not None:
            strong = result.chosen.get(cell.key) is cell
            series.setdefault(" · ".join([_name(cell), *extra]), []).append(
                _point(cell.config.train.learning_rate, scores.main, strong)
            )
    if len(series) > MOST_SERIES:
        series = _best_by_rate(series, words["best"])
    return _chart(task, series, words["rate"], f"{words['validation']}: {task}", log=True)


def _best_by_rate(series: Mapping[str, list[Point]], best: str) -> dict[str, list[Point]]:
    by_rate: dict[str, dict[float, Point]] = {}
    for name, points in series.items():
        highest = by_rate.setdefault(f"{name.split(' · ')[0]} ({best})", {})
        for point in points:
            if point.x not in highest or point.y > highest[point.x].y:
                highest[point.x] = point
    return {name: [points[x] for x in sorted(points)] for name, points in by_rate.items()}


def _heat(result: StudyResult, key: Key, words: Mapping[str, str]) -> Figures:
    """Settings × learning rate, where a method searched both."""
    cells = [cell for cell in result.cells if cell.key == key]
    varying = [
        name for name in cells[0].settings if len({str(cell.settings[name]) for cell in cells}) > 1
    ]
    if "learning_rate" not in varying or len(varying) < 2:
        return []
    others = [name for name in varying if name != "learning_rate"]
    label = {
        id(cell): " · ".join(
            f"{cell.settings[name]}" if name == "targets" else f"{name} {cell.settings[name]}"
            for name in others
        )
        for cell in cells
    }
    rows = list(dict.fromkeys(label.values()))
    rates = sorted({cell.config.train.learning_rate for cell in cells})
    values: dict[tuple[int, int], float | None] = {}
    strong = []
    for cell in cells:
        square = (rows.index(label[id(cell)]), rates.index(cell.config.train.learning_rate))
        record = result.record(cell)
        if record is not None:
            values[square] = record.main_score("validation") if record.status == "done" else None
        if result.chosen.get(key) is cell:
            strong.append(square)
    title = " · ".join(key)
    return [
        (
            title,
            heat_map(
                rows,
                [f"{rate:g}" for rate in rates],
                values,
                strong,
                f"{words['validation']}, {words['rate']}: {title}",
            ),
        )
    ]


def _course(
    task: str, pairs: list[tuple[Cell, RunRecord]], words: Mapping[str, str], language: Language
) -> Figures:
    """Loss, the sample of validation, and kinds of answers over the steps."""
    losses = {_name(cell): _smoothed(record) for cell, record in pairs}
    figures = _chart(
        f"{task}: {words['loss']}",
        {k: v for k, v in losses.items() if v},
        words["step"],
        f"{words['loss']}: {task}",
        lines=True,
    )
    scores = {
        _name(cell): [
            _point(validation.step, validation.scores.main) for validation in record.validations
        ]
        for cell, record in pairs
        if record.validations
    }
    title = f"{task}: {words['sample']}"
    figures += _chart(title, scores, words["step"], f"{words['validation']}: {task}", lines=True)
    names: dict[str, str] = {kind: say(language, f"failure.{kind}") for kind in CLASSES}
    for cell, record in pairs:
        if record.validations:
            title = f"{_name(cell)}, {task}: {words['answers']}"
            figures.append(
                (
                    title,
                    stacked(
                        {
                            str(validation.step): validation.scores.failures
                            for validation in record.validations
                        },
                        names,
                        title,
                    ),
                )
            )
    return figures


def _smoothed(record: RunRecord) -> list[Point]:
    """Mean loss over at most `CURVE_POINTS` equal stretches of the training."""
    losses = record.losses
    width = max(1, math.ceil(len(losses) / CURVE_POINTS))
    return [
        Point(x=start + width / 2, y=sum(part) / len(part))
        for start in range(0, len(losses), width)
        if (part := losses[start : start + width])
    ]


def _chart(
    title: str,
    series: Mapping[str, list[Point]],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    lines: bool = False,
) -> Figures:
    """[(title, SVG)], or nothing where there is nothing to draw."""
    points = [point for column in series.values() for point in column]
    if not points:
        return []
    x = axis_over([point.x for point in points], x_label, log=log)
    bounds = [
        value for point in points for value in (point.low, point.y, point.high) if value is not None
    ]
    return [(title, chart(series, x, axis_over(bounds, y_label), y_label, lines=lines))]
