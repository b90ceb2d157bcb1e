"""Intervals and tests of means over examples, groups of them and seeds. No torch here.

Intervals resample groups (images, for JNLI) when rows of one group depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

RESAMPLES = 2000
Z95 = 1.96
FEW = 10  # right or wrong answers, below which Wilson's interval stands for the bootstrap
Scale = tuple[float, float]
"""The least and the greatest that a score can be."""
SHARE: Scale = (0.0, 1.0)


def interval(
    values: Sequence[float], groups: Sequence[str], *, discrete: bool = True
) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean, resampling whole groups; Wilson's interval where fewer
    than `FEW` answers are right, or wrong.

    (A bootstrap of equal values has no width, however few they are, and one of nearly equal values
    ends at 0 or 1 too often. A group of rows counts there as one. Source: Wilson 1927, JASA 22,
    209-212.)
    """
    rounded = np.round(np.asarray(values, dtype=float), 9)
    right = float(rounded.sum())
    right_or_wrong = discrete and bool(np.isin(rounded, (0.0, 1.0)).all())
    if right_or_wrong and min(right, len(rounded) - right) < FEW:
        return wilson(right / len(rounded), len(set(groups)))
    return _bootstrap(values, groups)


def _bootstrap(values: Sequence[float], groups: Sequence[str]) -> tuple[float, float]:
    sums, sizes = _by_group(values, groups)
    draws = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share among n observations."""
    square = Z95**2 / n
    middle, half = share + square / 2, Z95 * math.sqrt(share * (1 - share) / n + square / n / 4)
    low, high = ((middle + sign * half) / (1 + square) for sign in (-1, 1))
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def _by_group(values: Sequence[float], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    names, group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(group_of, weights=np.asarray(values, dtype=float), minlength=len(names))
    return sums, np.bincount(group_of, minlength=len(names)).astype(float)


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Right answers that only the first method, or only the second, gave, and how likely so uneven
    a split is by chance."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[float], second: Sequence[float], groups: Sequence[str]) -> McNemar:
    """McNemar's test of two methods on the same examples (values 0 or 1); whole groups count as
    one observation.

    Without groups, exact binomial; with groups the statistic (Σ d)² / Σ d² over the groups'
    differences d, on one degree of freedom, which is McNemar's own where every group holds one
    example.
    Source: McNemar 1947, Psychometrika 12, 153-157; Yang, Sun & Hardin 2010, Biometrical Journal
    52, 638-652 (after Obuchowski 1998).
    """
    ours, theirs = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    only_first, only_second = (
        int(((ours == 1) & (theirs == 0)).sum()),
        int(((ours == 0) & (theirs == 1)).sum()),
    )
    differences, sizes = _by_group(ours - theirs, groups)
    if not (only_first or only_second):
        return McNemar(only_first=0, only_second=0, p=1.0)
    if sizes.max() == 1:
        few, all_of_them = min(only_first, only_second), only_first + only_second
        tail = sum(math.comb(all_of_them, k) for k in range(few + 1)) / 2**all_of_them
        return McNemar(only_first=only_first, only_second=only_second, p=min(1.0, 2 * tail))
    squares = float((differences**2).sum())
    statistic = float(differences.sum()) ** 2 / squares if squares else 0.0
    return McNemar(
        only_first=only_first, only_second=only_second, p=math.erfc(math.sqrt(statistic / 2))
    )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, or a difference of means, with its 95 % interval. `rows` and `seeds`: half widths
    that come of the examples and of the seeds; with one seed the second is not known, and 0."""

    mean: float
    low: float
    high: float
    rows: float
    seeds: float


def paired_difference(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    groups: Sequence[str],
    *,
    scale: Scale | None = SHARE,
) -> Estimate:
    """first - second of two methods on the same examples, with one row of values for each seed.
    `scale`: of a score, which a difference cannot pass, so that its interval ends there (a value
    that cannot be is not covered by what is cut off); equal answers on few rows do not say that
    all would be. None: values that are measured (nats), which have no end, and of which equal ones
    do say it.

    With one seed each: the paired bootstrap by group, and the spread between seeds is not in it.
    With two: seeds are drawn too, for each method by itself; two say little of how far runs vary.
    From three on, two half widths added as squares: that of the seeds' means by Student's t
    (Welch's degrees of freedom, as methods vary each in its own way), and that of the examples,
    each averaged over the seeds. What seed and example do together is in both: the interval is a
    little too wide.
    Measured: docs/verdicts.md. Sources: Welch 1947, Biometrika 34, 28-35; Zou & Donner 2008,
    Statistics in Medicine 27, 1693-1702 (limits of a sum from the limits of its parts).
    """
    ours, theirs = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    # A bootstrap of equal values has no width: Wilson's slack, to both sides.
    if scale and len(ours) == len(theirs) == 1 and not (ours != theirs).any():
        slack = _slack(len(set(groups)))
        return Estimate(mean=0.0, low=-slack, high=slack, rows=slack, seeds=0.0)
    estimate = _estimate([ours, theirs], groups, discrete=scale is not None)
    if scale is None:
        return estimate
    low, high = scale
    return _cut(estimate, (low - high, high - low))


def mean_over_seeds(
    values: Sequence[Sequence[float]], groups: Sequence[str], scale: Scale = SHARE
) -> Estimate:
    """The mean of one method over examples and seeds (one row of values for each): an interval as
    in `paired_difference`, within the score's scale."""
    return _cut(_estimate([np.asarray(values, dtype=float)], groups), scale)


def _cut(estimate: Estimate, scale: Scale) -> Estimate:
    low, high = within(scale, (estimate.low, estimate.high))
    return replace(estimate, low=low, high=high)


def within(scale: Scale, bounds: tuple[float, float]) -> tuple[float, float]:
    """An interval, cut where its scale ends."""
    return max(scale[0], bounds[0]), min(scale[1], bounds[1])


def _estimate(
    methods: Sequence[np.ndarray], groups: Sequence[str], *, discrete: bool = True
) -> Estimate:
    """The first method's mean, less the second's where there is one; each [seeds, n]."""
    averaged = methods[0].mean(axis=0) - (methods[1].mean(axis=0) if len(methods) > 1 else 0.0)
    mean, counts = float(averaged.mean()), [len(method) for method in methods if len(method) > 1]
    if not counts:
        if len(methods) == 1:
            low, high = interval(list(averaged), groups, discrete=discrete)
        else:
            # A difference of few answers is no share: Wilson's interval would keep off zero.
            low, high = _bootstrap(list(averaged), groups)
            slack = _slack(len(set(groups))) if discrete and high - low < 1e-12 else 0.0
            low, high = low - slack, high + slack
        return Estimate(mean=mean, low=low, high=high, rows=(high - low) / 2, seeds=0.0)
    rows = _rows_half_width(averaged, groups, discrete=discrete)
    if min(counts) < 3:
        low, high = _seeds_and_rows_drawn(methods, groups)
        half = max(rows, (high - low) / 2)
        low, high = (low, high) if high > low else (mean - rows, mean + rows)
        return Estimate(
            mean=mean, low=low, high=high, rows=rows, seeds=math.sqrt(half**2 - rows**2)
        )
    parts = [
        (float(method.mean(axis=1).var(ddof=1)) / len(method), len(method) - 1)
        for method in methods
        if len(method) > 1
    ]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / count for part, count in parts) if variance else 1.0
    seeds = student_t(freedom) * math.sqrt(variance)
    half = math.hypot(rows, seeds)
    return Estimate(mean=mean, low=mean - half, high=mean + half, rows=rows, seeds=seeds)


def _rows_half_width(averaged: np.ndarray, groups: Sequence[str], *, discrete: bool) -> float:
    """Of the mean over groups of examples, by their variance; Wilson's slack where all are
    alike."""
    error = math.sqrt(row_variance(averaged, groups) / len(averaged))
    return Z95 * error if error > 1e-12 or not discrete else _slack(len(set(groups)))


def row_variance(values: np.ndarray, groups: Sequence[str]) -> float:
    """A row's variance in a mean over rows, by groups that are drawn as wholes (a mean of n rows
    has the n-th part of it)."""
    sums, sizes = _by_group(list(values - values.mean()), groups)
    spread = float((sums**2).sum()) * len(sums) / max(1, len(sums) - 1)
    return spread / float(sizes.sum())


def _seeds_and_rows_drawn(
    methods: Sequence[np.ndarray], groups: Sequence[str]
) -> tuple[float, float]:
    """Percentile bootstrap: the same groups for all methods, seeds for each by itself."""
    names, group_of = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sizes, drawn = np.bincount(group_of, minlength=len(names)).astype(float), _drawn(len(names))
    random, means = np.random.default_rng(1), []
    for method in methods:
        sums = np.stack(
            [np.bincount(group_of, weights=row, minlength=len(names)) for row in method], axis=1
        )
        seeds = random.integers(len(method), size=(RESAMPLES, len(method)))
        shares = np.stack([(seeds == seed).mean(axis=1) for seed in range(len(method))], axis=1)
        means.append((shares * (drawn @ sums)).sum(axis=1) / (drawn @ sizes))
    low, high = np.percentile(means[0] - (means[1] if len(means) > 1 else 0.0), [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _drawn(count: int) -> np.ndarray:
    """[resamples, count]: how often each of so many is drawn, the same every time."""
    drawn_rows = np.random.default_rng(0).integers(count, size=(RESAMPLES, count))
    drawn_rows += count * np.arange(RESAMPLES)[:, None]
    return (
        np.bincount(drawn_rows.ravel(), minlength=RESAMPLES * count)
        .reshape(RESAMPLES, count)
        .astype(float)
    )


def around(value: float, count: int) -> tuple[float, float]:
    """Wilson's slack to both sides of a score that is the same on every row."""
    return value - _slack(count), value + _slack(count)


def _slack(count: int) -> float:
    """Wilson's bound where all of so many observations are alike."""
    return Z95**2 / (count + Z95**2)


def student_t(freedom: float) -> float:
    """The two-sided 95 % quantile of Student's t: with t = √ν tan θ its density is that of
    cos(θ)^(ν - 1), summed here."""
    if freedom > 1e4:
        return Z95
    angles = np.linspace(0.0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    sums = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(math.sqrt(freedom) * np.tan(np.interp(0.95 * sums[-1], sums, angles)))
