"""Looks at finished runs: a list of them, and two of them answer by answer. No torch here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tsugiki.errors import RunError
from tsugiki.report.notes import score_text
from tsugiki.runs.store import Run, RunRecord, read_record
from tsugiki.score.metrics import (
    Estimate,
    McNemar,
    mcnemar,
    mean_over_seeds,
    paired_difference,
    per_example,
)


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
    changed: tuple[Mapping[str, str], ...]


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
        if record.evaluation(part) is None:
            raise RunError(
                f"{record.folder}: was not scored on {part}. Run: tsugiki score {record.folder} "
                f"--part {part}"
            )
    answers = [record.answers(part) for record in (*firsts, *seconds)]
    for record, rows in zip((*firsts, *seconds), answers, strict=True):
        if [(one["id"], one["target"]) for one in answers[0]] != [
            (one["id"], one["target"]) for one in rows
        ]:
            raise RunError(
                f"{first.folder} and {record.folder}: were scored on different examples, so their "
                "answers cannot be paired"
            )
    name = str((first.evaluation(part) or {})["main"]["name"])
    values = [values_of(record, part) for record in (*firsts, *seconds)]
    ours, theirs = values[: len(firsts)], values[len(firsts) :]
    found = paired_difference(ours, theirs, [one["group"] for one in answers[0]])
    changed = tuple(
        {"id": a["id"], "target": a["target"], "first": a["answer"], "second": b["answer"]}
        for a, b in zip(answers[0], answers[len(firsts)], strict=True)
        if a["answer"] != b["answer"]
    )
    return Comparison(
        score=name,
        first=sum(map(sum, ours)) / len(ours) / len(ours[0]),
        second=sum(map(sum, theirs)) / len(theirs) / len(theirs[0]),
        difference=found.mean,
        low=found.low,
        high=found.high,
        rows_half=found.rows,
        seeds_half=found.seeds,
        n=len(values[0]),
        seeds=min(len(firsts), len(seconds)),
        mcnemar=_mcnemar(ours, theirs, [one["group"] for one in answers[0]]),
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
    evaluations = [record.evaluation(part) or {} for record in records]
    means = {
        one["name"]: statistics.fmean(e["scores"][place]["value"] for e in evaluations)
        for place, one in enumerate(evaluations[0]["scores"])
    }
    main = evaluations[0]["main"]
    mains = [float(e["main"]["value"]) for e in evaluations]
    if len(records) == 1:
        return Pooled(
            means=means, main=main["name"], low=main["low"], high=main["high"], spread=0.0
        )
    answers = [record.answers(part) for record in records]
    found = mean_over_seeds(
        [values_of(record, part) for record in records], [one["group"] for one in answers[0]]
    )
    return Pooled(
        means=means,
        main=main["name"],
        low=found.low,
        high=found.high,
        spread=statistics.stdev(mains),
    )


def against(records: Sequence[RunRecord], part: str, floor: Sequence[float]) -> Estimate:
    """How far a method's runs (one a seed) lie above values that need no model, one for each of
    their answers."""
    groups = [one["group"] for one in records[0].answers(part)]
    return paired_difference([values_of(record, part) for record in records], [floor], groups)


def values_of(record: RunRecord, part: str) -> list[float]:
    """Each answer's worth by the score that chooses, in the order of the answers."""
    stamp = (record.folder / f"answers-{part}.jsonl").stat().st_mtime_ns
    return _values_at(
        record.folder, part, str((record.evaluation(part) or {})["main"]["name"]), stamp
    )


@lru_cache(maxsize=512)
def _values_at(folder: Path, part: str, name: str, stamp: int) -> list[float]:
    """ROUGE of every answer takes a while, and a report asks for it several times."""
    return main_values(name, read_record(folder).answers(part))


def main_values(name: str, answers: Sequence[Mapping[str, Any]]) -> list[float]:
    """Per-example values of the score that chooses, from kept answers."""
    metric = "rouge" if name.startswith("rouge") else name
    return per_example(
        metric, [one["answer"] for one in answers], [one["target"] for one in answers]
    )[name]


def list_row(record: RunRecord) -> dict[str, Any]:
    """One run in a line: name, status, scores, training seconds."""
    measured = record.happened.get("measurement") or {}
    seconds = (
        measured["step_s_mean"] * record.happened["steps"] if measured.get("step_s_mean") else None
    )
    status = (
        "stopped" if record.status == "running" and not Run(record.folder).busy else record.status
    )
    row: dict[str, Any] = {"run": record.folder.name, "status": status, "train_s": seconds}
    for part in ("validation", "test"):
        evaluation = record.evaluation(part)
        row[part] = score_text(evaluation) if evaluation else None
    return row
