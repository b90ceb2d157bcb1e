"""All numbers of a report for programs: `results` has a row for each model, task, method,
configuration, seed and metric, `comparison` one for each pair; as CSV and as JSON. No torch here.

Scores and differences are shares of 1; times are seconds, memory and weights bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import fmean
from typing import TypeVar

from tsugiki.report.compare import pooled
from tsugiki.report.finding import DETECT, EQUAL, Finding, examples_needed
from tsugiki.report.forgetting import Change
from tsugiki.report.material import Material
from tsugiki.report.standing import lost_seeds
from tsugiki.report.table import spreadsheet
from tsugiki.report.texts import chosen_text
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import Scores
from tsugiki.score.baselines import baselines
from tsugiki.study.cells import Cell, StudyResult
from tsugiki.train.cost import Cost


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One number. `seed`: a number, or “mean” over all seeds; `part`: validation, test, or empty
    for costs; `batch`: rows of a step whose cost it is, `lanes` how many trained together."""

    model: str
    task: str
    method: str
    configuration: str
    chosen: bool
    seed: int | str
    part: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    batch: int | None = None
    lanes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One pair. `measured_on`: the test of the task itself, or what nothing was tuned on; there
    `second` is “base” for the model before tuning, and of a text the difference is a ratio."""

    model: str
    task: str
    first: str
    second: str
    measured_on: str
    metric: str
    first_value: float | None = None
    second_value: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seeds: int | None = None
    verdict: str = ""
    margin: float | None = None
    examples_to_detect: int | None = None
    examples_to_call_equal: int | None = None
    trained_share: float | None = None
    memory_share: float | None = None
    step_share: float | None = None
    planned_power_to_detect: float | None = None
    planned_power_to_call_equal: float | None = None


def results_rows(material: Material) -> list[Measured]:
    """Every number that a run measured, and what needs no model."""
    result, rows = material.result, list[Measured]()
    for cell in result.cells:
        record = result.record(cell)
        if record is None:
            continue
        chosen = result.chosen.get(cell.key) is cell
        rows += _of_run(cell, record, chosen=chosen, test=chosen)
        if not chosen:
            continue
        for repeat in result.repeats.get(cell.key, []):
            rows += _of_run(cell, repeat, chosen=True, test=True)
        rows += _mean(result, cell)
    return [*rows, *_baselines(material)]


def _of_run(cell: Cell, record: RunRecord, *, chosen: bool, test: bool) -> Iterator[Measured]:
    known = _Known(cell, record.config.train.seed, chosen)
    for part in ("validation", "test") if test else ("validation",):
        scores = record.scores(part)
        if scores is not None:
            yield from _of_scores(known, part, scores)
    outcome = record.outcome
    counts = {
        "trainable_parameters": outcome.trainable,
        "parameters": outcome.total,
        "weights_bytes": outcome.weights_bytes,
        "steps": outcome.steps,
        "validation_loss": outcome.validation_loss,
    }
    for name, value in counts.items():
        if value is not None:
            yield known.row("", name, value)
    for batch, cost in (outcome.exclusive_cost or {}).items():
        yield from _of_cost(known, cost, batch)
    if outcome.cost is not None and (outcome.cost.lanes > 1 or not outcome.exclusive_cost):
        yield from _of_cost(known, outcome.cost, record.config.train.batch)


@dataclass(frozen=True)
class _Known:
    """What the rows of one run share."""

    cell: Cell
    seed: int | str
    chosen: bool

    def row(
        self,
        part: str,
        metric: str,
        value: float,
        bounds: tuple[float | None, float | None] = (None, None),
        n: int | None = None,
        batch: int | None = None,
        lanes: int | None = None,
    ) -> Measured:
        model, task, method = self.cell.key
        return Measured(
            model=model,
            task=task,
            method=method,
            configuration=chosen_text(self.cell, "en"),
            chosen=self.chosen,
            seed=self.seed,
            part=part,
            metric=metric,
            value=value,
            low=bounds[0],
            high=bounds[1],
            n=n,
            batch=batch,
            lanes=lanes,
        )


def _of_scores(known: _Known, part: str, scores: Scores) -> Iterator[Measured]:
    for score in scores.scores:
        yield known.row(part, score.name, score.value, (score.low, score.high), score.n)
    if scores.candidate_rate is not None:
        yield known.row(part, "candidate_rate", scores.candidate_rate, n=scores.main.n)
    yield known.row(part, "answer_s", scores.answer_s, n=scores.main.n)
    for name, count in scores.failures.items():
        yield known.row(part, f"answers:{name}", count, n=scores.main.n)


def _of_cost(known: _Known, cost: Cost, batch: int) -> Iterator[Measured]:
    for name in (
        "step_s_median", "step_s_mean", "tokens_per_s", "peak_allocated_bytes",
        "peak_reserved_bytes", "peak_process_bytes",
    ):  # fmt: skip
        value = getattr(cost, name)
        if value is not None:
            yield known.row("", name, value, batch=batch, lanes=cost.lanes)


def _mean(result: StudyResult, cell: Cell) -> Iterator[Measured]:
    """Over the seeds of a chosen configuration, where all of them were scored on test."""
    records = result.seeds(cell)
    if not records or lost_seeds(result, cell):
        return
    over, known = pooled(records), _Known(cell, "mean", True)
    n = records[0].scored("test").main.n
    for name, value in over.means.items():
        bounds = (over.low, over.high) if name == over.main else (None, None)
        yield known.row("test", name, value, bounds, n)
    yield known.row("test", f"{over.main}:sd", over.spread, n=n)
    yield known.row("test", "seeds", len(records))


def _baselines(material: Material) -> Iterator[Measured]:
    for label, task in material.tasks.items():
        examples = task.examples["test"]
        for baseline in baselines(task.spec, task.examples["train"], examples):
            for score, values in baseline.values.items():
                yield Measured(
                    model="", task=label, method=baseline.name, configuration="", chosen=False,
                    seed="", part="test", metric=score, value=fmean(values), n=len(examples),
                )  # fmt: skip


def comparison_rows(material: Material) -> list[Compared]:
    """Every pair on test, then what tuning did to the rest."""
    plan = material.result.plan
    planned = {
        (pair.model, pair.task, pair.first, pair.second): (pair.detect.power, pair.equal.power)
        for pair in (plan.pairs if plan else ())
    }
    rows = []
    for pair in material.findings:
        key = (pair.model, pair.task, pair.first.method, pair.second.method)
        detect, equal = planned.get(key, (None, None))
        rows.append(
            replace(
                _of_pair(pair), planned_power_to_detect=detect, planned_power_to_call_equal=equal
            )
        )
    return [*rows, *map(_of_change, material.changes)]


def _of_pair(pair: Finding) -> Compared:
    silent = Compared(
        model=pair.model,
        task=pair.task,
        first=pair.first.method,
        second=pair.second.method,
        measured_on="test",
        metric="",
        verdict=pair.verdict or "no verdict",
        margin=pair.margin,
    )
    own = pair.comparison
    if own is None:
        return silent
    return replace(
        silent,
        metric=own.score,
        first_value=own.first,
        second_value=own.second,
        difference=own.difference,
        low=own.low,
        high=own.high,
        n=own.n,
        seeds=own.seeds,
        examples_to_detect=examples_needed(own, pair.margin, DETECT),
        examples_to_call_equal=examples_needed(own, pair.margin, EQUAL),
        trained_share=pair.parameter_share,
        memory_share=pair.memory_share,
        step_share=pair.step_share,
    )


def _of_change(change: Change) -> Compared:
    text = change.mode == "text"
    estimate = change.difference
    value, low, high = change.ratio if text else (estimate.mean, estimate.low, estimate.high)
    return Compared(
        model=change.key[0],
        task=change.key[1],
        first=change.key[2],
        second=change.other or "base",
        measured_on=change.on,
        metric={"text": "perplexity", "answers": "generated", "likeliest": "likeliest candidate"}[
            change.mode
        ],
        first_value=change.value,
        second_value=change.against,
        difference=value,
        low=low,
        high=high,
        n=change.n,
        seeds=change.seeds,
    )


Row = TypeVar("Row", Measured, Compared)


def as_csv(kind: type[Row], rows: Sequence[Row]) -> str:
    """One line a row under the names of its fields."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(kind)]
    writer.writerow(names)
    for row in rows:
        values = (getattr(row, name) for name in names)
        writer.writerow(
            [spreadsheet(value) if isinstance(value, str) else value for value in values]
        )
    return text.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """A list of objects; what is not known is left out."""
    content = [
        {name: value for name, value in asdict(row).items() if value is not None} for row in rows
    ]
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
