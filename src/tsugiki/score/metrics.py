"""Numbers from answers: per-example values, their mean, a bootstrap interval, and a signature that says by which rule.

Intervals resample groups (images, for JNLI) when rows of one group depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsugiki.data.text import normalise
from tsugiki.score.japanese import versions
from tsugiki.score.rules import ROUGE_TYPES, SUMMARY_RULES

RESAMPLES = 2000


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
    """Raises `ConfigError` before anything runs when a library that the metric needs is not installed."""
    if metric == "rouge":
        rouge("準備", "準備")


def rouge(answer: str, target: str) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L in 0–1 by the lm-eval rule (neologdn, MeCab unidic-lite, google rouge-score)."""
    return SUMMARY_RULES["lm-eval"](answer, target)


def signature(metric: str) -> str:
    """The rule in one line, in the manner of sacreBLEU."""
    if metric == "rouge":
        used = versions()
        return "rouge|rule:lm-eval|norm:neologdn-{neologdn}|seg:mecab-unidic-lite-{unidic-lite}|fugashi:{fugashi}|impl:rouge-score-{rouge-score}|f1".format(
            **used
        )
    return f"{metric}|norm:nfkc+strip|decode:greedy"


def per_example(metric: str, answers: Sequence[str], targets: Sequence[str]) -> dict[str, list[float]]:
    """Values by score name, one for each example. `exact_match_raw` stands beside the metric of closed tasks."""
    pairs = list(zip(answers, targets, strict=True))
    if metric == "rouge":
        rows = [rouge(answer, target) for answer, target in pairs]
        return {name: [row[name] for row in rows] for name in ROUGE_TYPES}
    return {
        metric: [matches(answer, target) for answer, target in pairs],
        "exact_match_raw": [matches_raw(answer, target) for answer, target in pairs],
    }


def interval(values: Sequence[float], groups: Sequence[str], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean, resampling whole groups; Wilson's interval where all answers are right, or all wrong.

    (A bootstrap of equal values has no width, however few they are. Source: Wilson 1927, JASA 22, 209-212.)
    """
    sums, sizes = _by_group(values, groups)
    if set(values) in ({0.0}, {1.0}):
        slack = 1.96**2 / (len(sums) + 1.96**2)
        return (0.0, slack) if values[0] == 0.0 else (1.0 - slack, 1.0)
    draws = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _by_group(values: Sequence[float], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    names, place = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(place, weights=np.asarray(values, dtype=float), minlength=len(names))
    return sums, np.bincount(place, minlength=len(names)).astype(float)


def score(name: str, values: Sequence[float], groups: Sequence[str], metric: str) -> Score:
    low, high = interval(values, groups)
    return Score(name=name, value=float(np.mean(values)), low=low, high=high, n=len(values), groups=len(set(groups)), signature=signature(metric))


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Right answers that only the first method, or only the second, gave, and how likely so uneven a split is by chance."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[float], second: Sequence[float], groups: Sequence[str]) -> McNemar:
    """McNemar's test of two methods on the same examples (values 0 or 1); whole groups count as one observation.

    Without groups, exact binomial; with groups the statistic (Σ d)² / Σ d² over the groups' differences d, on one degree of
    freedom, which is McNemar's own where every group holds one example.
    Source: McNemar 1947, Psychometrika 12, 153-157; Yang, Sun & Hardin 2010, Biometrical Journal 52, 638-652 (after Obuchowski 1998).
    """
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    only_first, only_second = int(((one == 1) & (other == 0)).sum()), int(((one == 0) & (other == 1)).sum())
    differences, sizes = _by_group(one - other, groups)
    if not (only_first or only_second):
        return McNemar(only_first=0, only_second=0, p=1.0)
    if sizes.max() == 1:
        few, all_of_them = min(only_first, only_second), only_first + only_second
        tail = sum(math.comb(all_of_them, k) for k in range(few + 1)) / 2**all_of_them
        return McNemar(only_first=only_first, only_second=only_second, p=min(1.0, 2 * tail))
    squares = float((differences**2).sum())
    statistic = float(differences.sum()) ** 2 / squares if squares else 0.0
    return McNemar(only_first=only_first, only_second=only_second, p=math.erfc(math.sqrt(statistic / 2)))


def paired_difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], groups: Sequence[str]) -> tuple[float, float, float]:
    """(mean of first - second, low, high) of two methods on the same examples, with one row of values for each seed.

    The same groups of examples are drawn for both; seeds are drawn for each method by itself, as they are not paired.
    With one seed a method this is the plain paired bootstrap, and the spread between seeds is not in it.
    """
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    mean = float(one.mean() - other.mean())
    if len(one) == len(other) == 1:
        differences = one[0] - other[0]
        if not differences.any():  # a bootstrap of equal values has no width: Wilson's slack, to both sides
            slack = 1.96**2 / (len(set(groups)) + 1.96**2)
            return mean, -slack, slack
        return (mean, *interval(list(differences), groups))
    names, place = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(place, minlength=len(names)).astype(float)
    by_group = [np.stack([np.bincount(place, weights=row, minlength=len(names)) for row in rows]) for rows in (one, other)]
    random = np.random.default_rng(0)
    draws = random.integers(len(names), size=(RESAMPLES, len(names)))
    totals = sizes[draws].sum(axis=1)
    means = [_seeds_drawn(rows, random)[:, None] @ rows[:, draws].sum(axis=2).T[:, :, None] for rows in by_group]
    low, high = np.percentile((means[0] - means[1])[:, 0, 0] / totals, [2.5, 97.5])
    return mean, float(low), float(high)


def _seeds_drawn(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """[resamples, seeds]: the share of each seed in each resample."""
    drawn = random.integers(len(rows), size=(RESAMPLES, len(rows)))
    return np.stack([(drawn == seed).mean(axis=1) for seed in range(len(rows))], axis=1)


def majority_baseline(train_targets: Sequence[str], targets: Sequence[str]) -> float:
    """Accuracy of always giving the most frequent training answer."""
    values, counts = np.unique(list(train_targets), return_counts=True)
    return float(np.mean([target == values[counts.argmax()] for target in targets]))


def chance_baseline(candidates: Sequence[Sequence[str]]) -> float:
    """Expected accuracy of a uniform draw among each row's candidates."""
    return float(np.mean([1 / len(row) for row in candidates]))


def lead_baseline(texts: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """ROUGE of the text's first characters, as many as the mean target has."""
    length = round(np.mean([len(target) for target in targets]))
    return mean_of([rouge(text[:length], target) for text, target in zip(texts, targets, strict=True)])


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
