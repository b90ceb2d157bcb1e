"""What needs no model: the most frequent class, chance among a row's candidates, a text's first
characters; and what guessing costs in nats. No torch here."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np

from tsugiki.config.task import TaskSpec
from tsugiki.data.example import Example
from tsugiki.score.metrics import per_example
from tsugiki.score.rules import METRICS

Name = Literal["majority", "chance", "lead"]
# Scores of closed tasks that are 1 for a right answer.
SHARES_OF_RIGHT = {"accuracy", "exact_match"}


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Answers that need no model: `values` holds each row's worth, by the name of the score."""

    name: Name
    values: Mapping[str, Sequence[float]]

    def of(self, score: str) -> Sequence[float] | None:
        """Each row's worth under a score: of an answer that is right or wrong the same by either
        name of that; None under one that it was not scored by."""
        names = SHARES_OF_RIGHT if score in SHARES_OF_RIGHT else {score}
        return next((values for name, values in self.values.items() if name in names), None)


def baselines(
    spec: TaskSpec, train: Sequence[Example], rows: Sequence[Example]
) -> tuple[Baseline, ...]:
    """Those that the task's kind has, on these rows."""
    targets = [row.target for row in rows]
    main = METRICS[spec.metric].main
    match spec.kind:
        case "generation":
            field = spec.cut or spec.fields[0]
            lead = lead_baseline(spec.metric, [row.fields[field] for row in rows], targets)
            return (Baseline(name="lead", values=lead),)
        case "choice":  # candidates differ by row: there is no most frequent answer
            return (_chance(spec.metric, rows),)
        case "classification":
            most = majority_baseline(spec.metric, [row.target for row in train], targets)
            majority = Baseline(name="majority", values={main: most})
            return majority, _chance(spec.metric, rows)
        case unknown:
            assert_never(unknown)


def _chance(metric: str, rows: Sequence[Example]) -> Baseline:
    drawn = chance_baseline(metric, [row.candidates for row in rows], [row.target for row in rows])
    return Baseline(name="chance", values={METRICS[metric].main: drawn})


def majority_baseline(
    metric: str, train_targets: Sequence[str], targets: Sequence[str]
) -> list[float]:
    """Each answer's worth of always giving the most frequent training answer."""
    values, counts = np.unique(list(train_targets), return_counts=True)
    always = str(values[counts.argmax()])
    return per_example(metric, [always] * len(targets), targets)[METRICS[metric].main]


def chance_baseline(
    metric: str, candidates: Sequence[Sequence[str]], targets: Sequence[str]
) -> list[float]:
    """Each answer's expected worth when it is drawn among the row's candidates; of a score of the
    whole, its value when every row is answered once with each of them."""
    main = METRICS[metric].main
    if METRICS[metric].whole is None:
        return [
            statistics.fmean(per_example(metric, row, [target] * len(row))[main])
            for row, target in zip(candidates, targets, strict=True)
        ]
    weights = math.lcm(*(len(row) for row in candidates))
    answers, wanted = [], []
    for row, target in zip(candidates, targets, strict=True):
        answers += [candidate for candidate in row for _ in range(weights // len(row))]
        wanted += [target] * weights
    values = per_example(metric, answers, wanted)[main]
    return [
        statistics.fmean(values[start : start + weights])
        for start in range(0, len(values), weights)
    ]


def lead_baseline(
    metric: str, texts: Sequence[str], targets: Sequence[str]
) -> dict[str, list[float]]:
    """Each answer's scores by name, the answer being the text's first characters: as many as the
    mean target has."""
    length = round(np.mean([len(target) for target in targets]))
    return per_example(metric, [text[:length] for text in texts], targets)


def guessing_nats(spec: TaskSpec, train: Sequence[Example]) -> float | None:
    """Mean cross-entropy of an answer that is guessed by its frequency (of candidates: evenly), in
    nats; None for free text."""
    if not spec.closed:
        return None
    if spec.kind == "choice":
        return statistics.fmean(math.log(len(row.candidates)) for row in train)
    counts = Counter(row.target for row in train)
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())
