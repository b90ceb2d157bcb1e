"""Numbers from answers: per-example values, and their mean with its interval. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsugiki.data.text import normalise
from tsugiki.score.rules import METRICS
from tsugiki.score.statistics import around, interval, within


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean over examples with its 95 % bootstrap interval. `n` examples in `groups` groups."""

    name: str
    value: float
    low: float
    high: float
    n: int
    groups: int
    signature: str


def matches(answer: str, target: str) -> float:
    """1.0 when answer and target are equal after NFKC and strip of both."""
    return float(normalise(answer) == normalise(target))


def matches_raw(answer: str, target: str) -> float:
    """1.0 when answer and target are the same characters."""
    return float(answer == target)


def check_ready(metric: str) -> None:
    """Raises `ConfigError` before anything runs when a library that the metric needs is not
    installed."""
    METRICS[metric].rule("準備", "準備")


def rouge(answer: str, target: str) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L in 0–1 by the lm-eval rule (neologdn, MeCab unidic-lite,
    google rouge-score)."""
    return METRICS["rouge"].rule(answer, target)


def signature(metric: str) -> str:
    """The rule in one line, in the manner of sacreBLEU."""
    return METRICS[metric].signature()


def per_example(
    metric: str, answers: Sequence[str], targets: Sequence[str]
) -> dict[str, list[float]]:
    """Values by score name, one for each example."""
    return METRICS[metric].score(answers, targets)


def score(name: str, values: Sequence[float], groups: Sequence[str], metric: str) -> Score:
    low, high = interval(values, groups)
    if METRICS[metric].whole is not None and max(values) - min(values) < 1e-12:
        low, high = around(float(np.mean(values)), len(set(groups)))
    low, high = within(METRICS[metric].scale, (low, high))
    return Score(
        name=name,
        value=float(np.mean(values)),
        low=low,
        high=high,
        n=len(values),
        groups=len(set(groups)),
        signature=signature(metric),
    )
