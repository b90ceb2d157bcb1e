"""What needs no model: the most frequent class, chance among a row's candidates, a text's first
characters; and what guessing costs in nats. No torch here."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tsugiki.config.task import TaskSpec
from tsugiki.data.example import Example
from tsugiki.score.metrics import per_example
from tsugiki.score.rules import METRICS

Name = Literal["majority", "chance", "lead"]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Answers that need no model: `values` holds each row's worth, by the name of the score."""

    name: Name
    values: Mapping[str, Sequence[float]]

    def of(self, score: str) -> Sequence[float] | None:
        """Each row's worth under a score: of an answer that is right or wrong the same under every
        score of closed tasks; None under one that it was not scored by."""
        known = self.values.get(score)
        return next(iter(self.values.values())) if known is None and self.name != "lead" else known


def baselines(
    spec: TaskSpec, train: Sequence[Example], rows: Sequence[Example]
) -> tuple[Baseline, ...]:
    """Those that the task's kind has, on these rows."""
    targets = [row.target for row in rows]
    main = METRICS[spec.metric].main
    if not spec.closed:
        field = spec.cut or spec.fields[0]
        lead = lead_baseline(spec.metric, [row.fields[field] for row in rows], targets)
        return (Baseline(name="lead", values=lead),)
    drawn = chance_baseline([row.candidates for row in rows])
    chance = Baseline(name="chance", values={main: drawn})
    if spec.kind == "choice":  # candidates differ by row: there is no most frequent answer
        return (chance,)
    most = majority_baseline([row.target for row in train], targets)
    return Baseline(name="majority", values={main: most}), chance


def majority_baseline(train_targets: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Each answer's worth of always giving the most frequent training answer: 1 or 0."""
    values, counts = np.unique(list(train_targets), return_counts=True)
    return [float(target == values[counts.argmax()]) for target in targets]


def chance_baseline(candidates: Sequence[Sequence[str]]) -> list[float]:
    """Each answer's expected worth when it is drawn among the row's candidates."""
    return [1 / len(row) for row in candidates]


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
