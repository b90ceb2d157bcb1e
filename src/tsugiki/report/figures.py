"""Which figures a report has, by section of the page: each from the run records."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsugiki.report.compare import pooled
from tsugiki.report.exclusive import exclusive_step_s, peak_of_one
from tsugiki.report.headline import forest_plot
from tsugiki.report.looks import COLOURS, Look, looks_of, told_apart
from tsugiki.report.material import Material
from tsugiki.report.shapes import bars, heat_map, stacked
from tsugiki.report.standing import floor_of, lost_seeds
from tsugiki.report.svg import Point, axis_over, chart
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.score.failures import CLASSES
from tsugiki.score.metrics import Score
from tsugiki.study.cells import Cell, Key, StudyResult
from tsugiki.words import Language, called, say

MOST_SERIES = 8  # more are no longer told apart by mark and dash
CURVE_POINTS = 80
Pairs = list[tuple[Cell, RunRecord]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the page; `name` is that of its file."""

    name: str
    title: str
    svg: str


def all_figures(material: Material, language: Language) -> dict[str, list[Figure]]:
    """Figures by section of the page; a section without data is empty."""
    return _Figures(material, language).all()


class _Figures:
    def __init__(self, material: Material, language: Language) -> None:
        self.material, self.language = material, language
        self.result: StudyResult = material.result
        self.looks = looks_of(self.result)

    def all(self) -> dict[str, list[Figure]]:
        """Every figure of the report."""
        chosen = _by_task(self.result, chosen_only=True)
        cells = _by_task(self.result, chosen_only=False)
        forest = forest_plot(self.material, self.language)
        title = self.words("forest")
        return {
            "forest": [Figure(name="forest", title=title, svg=forest)] if forest else [],
            "quality": [
                figure for task, pairs in chosen.items() for figure in self.quality(task, pairs)
            ],
            "cost": [figure for task, pairs in chosen.items() for figure in self.cost(task, pairs)],
            "landscape": [
                figure for task, pairs in cells.items() for figure in self.rates(task, pairs)
            ],
            "heat": [figure for key in self.result.chosen for figure in self.heat(key)],
            "curves": [
                figure for task, pairs in chosen.items() for figure in self.training(task, pairs)
            ],
        }

    def words(self, key: str, **values: object) -> str:
        return say(self.language, f"page.{key}", **values)

    def metric(self, pairs: Pairs, part: str) -> str:
        """`exact match on test`."""
        scores = next((own for _, record in pairs if (own := record.scores(part))), None)
        name = called(self.language, "label", scores.main.name) if scores else ""
        return self.words(f"metric_{part}", metric=name)

    def floor(self, task: str, pairs: Pairs, part: str) -> tuple[str, float] | None:
        """What needs no model, on the rows that were scored."""
        known = self.material.tasks.get(task)
        for _, record in pairs if known is not None else ():
            scores = record.scores(part)
            if known is not None and scores is not None:
                ids = tuple(answer.id for answer in record.answers(part))
                floor = floor_of(known, part, ids, scores.main.name)
                if floor is None:
                    return None
                return say(self.language, f"floor.{floor.name}"), floor.mean
        return None

    def quality(self, task: str, pairs: Pairs) -> list[Figure]:
        """Test score, over all seeds, against trained parameters."""
        series, methods = dict[str, list[Point]](), dict[str, str]()
        for cell, record in pairs:
            if record.scores("test") is not None and record.outcome.trainable:
                if lost_seeds(self.result, cell):
                    continue  # no mean over the rest
                over = pooled(self.result.seeds(cell))
                point = Point(
                    x=record.outcome.trainable / 1e6,
                    y=over.means[over.main],
                    low=over.low,
                    high=over.high,
                )
                series.setdefault(cell.row_name, []).append(point)
                methods[cell.row_name] = cell.method.name
        own = [pair for pair in pairs if pair[0].row_name in series]
        labels = (self.words("parameters"), self.metric(own, "test"))
        title = f"{labels[1]}: {task}{_n_of(own, 'test')}"
        floor = self.floor(task, own, "test")
        return self.chart(("score", task), title, series, methods, labels, log=True, floor=floor)

    def cost(self, task: str, pairs: Pairs) -> list[Figure]:
        """Memory and time of the chosen cells as bars."""
        memory, seconds, methods = dict[str, float](), dict[str, float](), dict[str, str]()
        for cell, record in pairs:
            methods[cell.row_name] = cell.method.name
            # Of a CPU only the whole process is known, which compares nothing.
            if peak := peak_of_one(record):
                memory[cell.row_name] = peak / 2**20
            if (value := exclusive_step_s(record)) is not None:
                seconds[cell.row_name] = value
        looks = told_apart(methods, self.looks)
        return [
            Figure(
                name=_file("cost", kind, task),
                title=f"{task}: {self.words(kind)}",
                svg=bars(values, looks, f"{task}: {self.words(kind)}"),
            )
            for kind, values in (("memory", memory), ("seconds", seconds))
            if values
        ]

    def rates(self, task: str, pairs: Pairs) -> list[Figure]:
        """Validation score over the learning rate, one series for each other setting; of many
        settings the best at each rate, one series a method."""
        series, methods = dict[str, list[Point]](), dict[str, str]()
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
                strong = self.result.chosen.get(cell.key) is cell
                name = " · ".join([cell.row_name, *extra])
                methods[name] = cell.method.name
                series.setdefault(name, []).append(
                    _point(cell.config.train.learning_rate, scores.main, strong)
                )
        if len(series) > MOST_SERIES:
            series, methods = _best_by_rate(series, methods, self.words("best"))
        labels = (self.words("rate"), self.metric(pairs, "validation"))
        title = f"{labels[1]}: {task}{_n_of(pairs, 'validation')}"
        floor = self.floor(task, pairs, "validation")
        return self.chart(("rates", task), title, series, methods, labels, log=True, floor=floor)

    def heat(self, key: Key) -> list[Figure]:
        """Settings × learning rate, where a method searched both; one scale a task."""
        cells = [cell for cell in self.result.cells if cell.key == key]
        varying = [
            name
            for name in cells[0].settings
            if len({str(cell.settings[name]) for cell in cells}) > 1
        ]
        if "learning_rate" not in varying or len(varying) < 2:
            return []
        others = [name for name in varying if name != "learning_rate"]
        label = {id(cell): _setting_label(cell, others) for cell in cells}
        rows = list(dict.fromkeys(label.values()))
        rates = sorted({cell.config.train.learning_rate for cell in cells})
        values: dict[tuple[int, int], float | None] = {}
        strong = []
        for cell in cells:
            square = (rows.index(label[id(cell)]), rates.index(cell.config.train.learning_rate))
            record = self.result.record(cell)
            if record is not None:
                done = record.status == "done"
                values[square] = record.main_score("validation") if done else None
            if self.result.chosen.get(key) is cell:
                strong.append(square)
        title = " · ".join(key)
        described = f"{self.words('validation')}, {self.words('rate')}: {title}"
        columns = [f"{rate:g}" for rate in rates]
        svg = heat_map(rows, columns, values, strong, described, self.scale(key[1]))
        return [Figure(name=_file("heat", *key), title=title, svg=svg)]

    def scale(self, task: str) -> tuple[float, float]:
        """From the lowest to the highest score on validation of all methods on a task."""
        scores = [
            score
            for cell in self.result.cells
            if cell.key[1] == task
            and (record := self.result.record(cell)) is not None
            and record.status == "done"
            and (score := record.main_score("validation")) is not None
        ]
        return (min(scores, default=0.0), max(scores, default=1.0))

    def training(self, task: str, pairs: Pairs) -> list[Figure]:
        """Loss, the sample of validation, and kinds of answers over the steps."""
        methods = {cell.row_name: cell.method.name for cell, _ in pairs}
        losses = {cell.row_name: points for cell, record in pairs if (points := _smoothed(record))}
        labels = (self.words("step"), self.words("loss"))
        title = f"{task}: {self.words('loss')}"
        figures = self.chart(("loss", task), title, losses, methods, labels, lines=True)
        watched = [pair for pair in pairs if pair[1].validations]
        scores = {
            cell.row_name: [
                _point(validation.step, validation.scores.main) for validation in record.validations
            ]
            for cell, record in watched
        }
        n = watched[0][1].validations[0].scores.main.n if watched else 0
        title = f"{task}: {self.words('sample', n=n)}"
        labels = (self.words("step"), self.metric(pairs, "validation"))
        figures += self.chart(("curve", task), title, scores, methods, labels, lines=True)
        names: dict[str, str] = {kind: say(self.language, f"failure.{kind}") for kind in CLASSES}
        for cell, record in watched:
            title = f"{cell.row_name}, {task}: {self.words('answers', n=n)}"
            columns = {
                str(validation.step): validation.scores.failures
                for validation in record.validations
            }
            name = _file("answers", cell.row_name, task)
            figures.append(Figure(name=name, title=title, svg=stacked(columns, names, title)))
        return figures

    def chart(
        self,
        name: tuple[str, str],
        title: str,
        series: Mapping[str, Sequence[Point]],
        methods: Mapping[str, str],
        labels: tuple[str, str],
        *,
        log: bool = False,
        lines: bool = False,
        floor: tuple[str, float] | None = None,
    ) -> list[Figure]:
        """One figure, or none where there is nothing to draw."""
        points = [point for column in series.values() for point in column]
        if not points:
            return []
        x_label = self.words("log_scale", label=labels[0]) if log else labels[0]
        x = axis_over([point.x for point in points], x_label, log=log)
        y = axis_over([*_bounds(points), *([floor[1]] if floor else [])], labels[1])
        looks: dict[str, Look] = told_apart({key: methods[key] for key in series}, self.looks)
        svg = chart(series, looks, x, y, title, lines=lines, floor=floor)
        return [Figure(name=_file(*name), title=title, svg=svg)]


def run_figures(record: RunRecord, language: Language) -> list[Figure]:
    """Of one run: its loss over the steps, and the sample of validation where it was looked at."""
    name = record.folder.name
    watched = [_point(seen.step, seen.scores.main) for seen in record.validations]
    metric = record.validations[0].scores.main.name if watched else ""
    drawn = {
        "loss": (_smoothed(record), say(language, "page.loss")),
        "curve": (
            watched,
            say(language, "page.metric_validation", metric=called(language, "label", metric)),
        ),
    }
    return [
        Figure(
            name=kind,
            title=f"{name}: {label}",
            svg=chart(
                {name: points},
                {name: Look(name=name, colour=COLOURS[0])},
                axis_over([point.x for point in points], say(language, "page.step")),
                axis_over(_bounds(points), label),
                f"{name}: {label}",
                lines=True,
            ),
        )
        for kind, (points, label) in drawn.items()
        if points
    ]


def _bounds(points: Sequence[Point]) -> list[float]:
    every = (value for point in points for value in (point.low, point.y, point.high))
    return [value for value in every if value is not None]


def _file(*parts: str) -> str:
    """A file's name of what a figure shows."""
    return re.sub(r"[^\w.+-]+", "-", "-".join(parts)).strip("-.")


def _n_of(pairs: Pairs, part: str) -> str:
    n = next((own.main.n for _, record in pairs if (own := record.scores(part))), None)
    return "" if n is None else f" (n = {n:,})"


def _setting_label(cell: Cell, names: Sequence[str]) -> str:
    return " · ".join(
        f"{cell.settings[name]}" if name == "targets" else f"{name} {cell.settings[name]}"
        for name in names
    )


def _by_task(result: StudyResult, chosen_only: bool) -> dict[str, Pairs]:
    by_task: dict[str, Pairs] = {}
    for cell in result.chosen.values() if chosen_only else result.cells:
        record = result.record(cell)
        if record is not None and record.status == "done":
            by_task.setdefault(cell.task.label, []).append((cell, record))
    return by_task


def _point(x: float, main: Score, strong: bool = False) -> Point:
    return Point(x=x, y=main.value, low=main.low, high=main.high, strong=strong)


def _best_by_rate(
    series: Mapping[str, list[Point]], methods: Mapping[str, str], best: str
) -> tuple[dict[str, list[Point]], dict[str, str]]:
    by_rate: dict[str, dict[float, Point]] = {}
    method = dict[str, str]()
    for name, points in series.items():
        whole = f"{name.split(' · ')[0]} ({best})"
        method[whole] = methods[name]
        highest = by_rate.setdefault(whole, {})
        for point in points:
            if point.x not in highest or point.y > highest[point.x].y:
                highest[point.x] = point
    best_of = {name: [points[x] for x in sorted(points)] for name, points in by_rate.items()}
    return best_of, method


def _smoothed(record: RunRecord) -> list[Point]:
    """Mean loss over at most `CURVE_POINTS` equal stretches of the training."""
    losses = record.losses
    width = max(1, math.ceil(len(losses) / CURVE_POINTS))
    return [
        Point(x=start + width / 2, y=sum(part) / len(part))
        for start in range(0, len(losses), width)
        if (part := losses[start : start + width])
    ]
