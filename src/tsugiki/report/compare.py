"""Looks at finished runs: a list of them, and two of them answer by answer. No torch here."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from tsugiki.errors import RunError
from tsugiki.report.texts import score_text
from tsugiki.runs.answer_values import values_of
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import Run
from tsugiki.score.rules import metric_of
from tsugiki.score.statistics import Estimate, McNemar, mcnemar, mean_over_seeds, paired_difference
from tsugiki.words import Message


@dataclass(frozen=True, kw_only=True)
class Changed:
    """Two answers to one example that differ."""

    id: str
    target: str
    first: str
    second: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two methods on the same examples: mean difference of the main score with its 95 % interval,
    McNemar's test, the answers that changed.

    `rows_half`, `seeds_half`: what of the interval's half width comes of the examples, and of the
    seeds (0 where one seed cannot tell).
    """

    score: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    rows_half: float
    seeds_half: float
    n: int
    seeds: int
    mcnemar: McNemar | None
    changed: tuple[Changed, ...]

    def __str__(self) -> str:
        """`accuracy: 0.710 - 0.650 = +0.060 [+0.010, +0.110], n = 300`"""
        bounds = f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
        p = "" if self.mcnemar is None else f", p = {self.mcnemar.p:.3g} (McNemar)"
        return f"{self.score}: {self.first:.3f} - {self.second:.3f} = {bounds}, n = {self.n}{p}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(str(self))}</p>"


def compare_runs(first: RunRecord, second: RunRecord, part: str) -> Comparison:
    """Two runs: see `compare_methods`."""
    return compare_methods([first], [second], part)


def compare_methods(
    firsts: Sequence[RunRecord], seconds: Sequence[RunRecord], part: str
) -> Comparison:
    """Paired by example on one part, one run a seed and method: see `metrics.paired_difference`.

    Raises:
        RunError: a run was not scored on the part, or they were scored on different examples.
    """
    first = firsts[0]
    for record in (*firsts, *seconds):
        if record.scores(part) is None:
            raise RunError(Message("error.not_scored", run=record.folder, part=part))
    answers = [record.answers(part) for record in (*firsts, *seconds)]
    for record, rows in zip((*firsts, *seconds), answers, strict=True):
        if [(answer.id, answer.target) for answer in answers[0]] != [
            (row.id, row.target) for row in rows
        ]:
            both = {"first": first.folder, "second": record.folder}
            raise RunError(Message("error.other_examples", **both))
    name = first.scored(part).main.name
    values = [values_of(record, part) for record in (*firsts, *seconds)]
    ours, theirs = values[: len(firsts)], values[len(firsts) :]
    groups, scale = [answer.group for answer in answers[0]], metric_of(name).scale
    estimate = paired_difference(ours, theirs, groups, scale=scale)
    changed = tuple(
        Changed(id=a.id, target=a.target, first=a.answer, second=b.answer)
        for a, b in zip(answers[0], answers[len(firsts)], strict=True)
        if a.answer != b.answer
    )
    return Comparison(
        score=name,
        first=sum(map(sum, ours)) / len(ours) / len(ours[0]),
        second=sum(map(sum, theirs)) / len(theirs) / len(theirs[0]),
        difference=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        rows_half=estimate.rows,
        seeds_half=estimate.seeds,
        n=len(values[0]),
        seeds=min(len(firsts), len(seconds)),
        mcnemar=_mcnemar(ours, theirs, groups),
        changed=changed,
    )


def _mcnemar(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], groups: Sequence[str]
) -> McNemar | None:
    """Of one run each, where an answer is right or wrong; None for summaries and several seeds."""
    if len(ours) > 1 or len(theirs) > 1 or not {*ours[0], *theirs[0]} <= {0.0, 1.0}:
        return None
    return mcnemar(ours[0], theirs[0], groups)


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """The test scores of one cell over its seeds: means by name, the main score's interval and
    standard deviation."""

    means: Mapping[str, float]
    main: str
    low: float
    high: float
    spread: float


def pooled(records: Sequence[RunRecord], part: str = "test") -> Pooled:
    """Mean and interval over examples (or groups of them) and seeds: see
    `metrics.mean_over_seeds`."""
    scored = [record.scored(part) for record in records]
    main, names = scored[0].main, list(scored[0].values)
    means = {name: statistics.fmean(scores.values[name] for scores in scored) for name in names}
    if len(records) == 1:
        return Pooled(means=means, main=main.name, low=main.low, high=main.high, spread=0.0)
    groups = [row.group for row in records[0].answers(part)]
    values, scale = [values_of(record, part) for record in records], metric_of(main.name).scale
    estimate = mean_over_seeds(values, groups, scale)
    spread = statistics.stdev(scores.main.value for scores in scored)
    return Pooled(means=means, main=main.name, low=estimate.low, high=estimate.high, spread=spread)


def against(records: Sequence[RunRecord], part: str, floor: Sequence[float]) -> Estimate:
    """How far a method's runs (one a seed) lie above values that need no model, one for each of
    their answers."""
    groups = [answer.group for answer in records[0].answers(part)]
    values = [values_of(record, part) for record in records]
    scale = metric_of(records[0].scored(part).main.name).scale
    return paired_difference(values, [floor], groups, scale=scale)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One run in a line: name, what was trained on what, status, start (of runs from before starts
    were kept: empty), training seconds, scores as text and the main ones as numbers."""

    run: str
    task: str
    model: str
    method: str
    status: str
    started: str
    train_s: float | None
    validation: str | None
    test: str | None
    validation_score: float | None
    test_score: float | None


def list_row(record: RunRecord) -> Listed:
    """One run in a line; a run that nobody works on any more is stopped."""
    mean, steps = record.cost().step_s_mean, record.outcome.steps
    stopped = record.status == "running" and not Run(record.folder).busy
    scores = {part: record.scores(part) for part in ("validation", "test")}
    texts = {part: score_text(score) if score else None for part, score in scores.items()}
    return Listed(
        run=record.folder.name,
        task=record.config.task.label,
        model=record.config.model.label,
        method=record.config.method,
        status="stopped" if stopped else record.status,
        started=record.outcome.started,
        train_s=mean * steps if mean and steps else None,
        validation=texts["validation"],
        test=texts["test"],
        validation_score=record.main_score("validation"),
        test_score=record.main_score("test"),
    )


def _best_last(score: float | None) -> tuple[bool, float]:
    return (score is not None, score or 0.0)


SORTED: Mapping[str, Callable[[Listed], tuple[object, ...]]] = {
    "time": lambda row: (row.started, row.run),
    "validation": lambda row: (*_best_last(row.validation_score), row.run),
    "test": lambda row: (*_best_last(row.test_score), row.run),
    "name": lambda row: (row.run,),
}
"""By what runs are listed: what one looks for comes last, next to the prompt."""
