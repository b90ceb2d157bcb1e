"""How many rows and seeds a paired comparison needs, from a pilot: what the verdict's own interval
(`statistics.paired_difference`) will do, before it is made. No torch here.

    difference of two methods' means over n rows and k seeds each
        variance   (rows + residual / k) / n + (seeds of the one + of the other) / k
        interval   √((z √(rows + residual / k) / √n)² + (t √(spread of the runs / k))²)

"Equal" is said where the whole interval lies within the margin (two one-sided tests of 2.5 %:
Schuirmann 1987, J. Pharmacokin. Biopharm. 15, 657-680), a difference where it does not hold 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import numpy as np

from tsugiki.score.statistics import Z95, row_variance, student_t

ALPHA = 0.025  # a side: the verdict's 95 % interval
SPREAD = 0.01  # standard deviation of a method's seeds that is expected before any was seen
DRAWS = 4000
MOST_ROWS, MOST_SEEDS = 10_000_000, 50
Aim = Literal["equal", "detect"]


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """What a comparison varies by, as far as a pilot tells: `rows`, a row's variance in the
    difference that no seed averages away; of either method `residual`, the variance of row and seed
    together, and `runs`, the variance of its runs' means over the pilot's `n` rows, with so many
    degrees of `freedom` (0: one run; only what is assumed is known of the spread of seeds)."""

    rows: float
    residual: tuple[float, float]
    runs: tuple[float, float]
    n: int
    freedom: int


def pilot_of(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], groups: Sequence[str]
) -> Pilot:
    """From answers to the same rows, one row of values for each seed: an analysis of variance of
    rows × seeds (Searle, Casella & McCulloch 1992, "Variance Components"). Rows of a group count
    together."""
    both = [np.asarray(values, dtype=float) for values in (first, second)]
    averaged = both[0].mean(axis=0) - both[1].mean(axis=0)
    n, count = len(averaged), min(len(values) for values in both)
    # Answers that never differ say little of how often they would: one row of the pilot might.
    rows = row_variance(averaged, groups) or 1 / n
    if count < 2:
        return Pilot(rows=rows, residual=(0.0, 0.0), runs=(0.0, 0.0), n=n, freedom=0)
    residual = [_residual(values) for values in both]
    shared = rows - sum(each / len(values) for each, values in zip(residual, both, strict=True))
    runs = [float(values.mean(axis=1).var(ddof=1)) for values in both]
    return Pilot(
        rows=max(0.0, shared),
        residual=(residual[0], residual[1]),
        runs=(runs[0], runs[1]),
        n=n,
        freedom=count - 1,
    )


def _residual(values: np.ndarray) -> float:
    centred = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    count, n = values.shape
    return float((centred**2).sum()) / (count - 1) / max(1, n - 1)


def power(pilot: Pilot, n: int, seeds: int, margin: float, aim: Aim) -> float:
    """The share of studies with n rows and so many seeds a method that call equal methods equal
    (`aim` "equal"), or tell a difference of one margin ("detect").

    How well a pilot of few seeds knows their spread is drawn, too. With one seed the run itself is
    spoken of: seeds are left out.
    """
    normal, seen = _drawn(seeds)
    of_rows = (pilot.rows + sum(pilot.residual) / seeds) / n
    if seeds == 1:
        half, error = np.full(DRAWS, Z95 * math.sqrt(of_rows)), math.sqrt(of_rows)
    else:
        spreads = seed_variances(pilot)
        runs = [
            (variance + residual / n) * chance / seeds
            for variance, residual, chance in zip(spreads, pilot.residual, seen, strict=True)
        ]
        error = np.sqrt(of_rows + spreads.sum(axis=0) / seeds)
        half = _half_width(of_rows, runs[0], runs[1], seeds)
    difference = normal * error + (margin if aim == "detect" else 0.0)
    said = np.abs(difference) + half < margin if aim == "equal" else np.abs(difference) > half
    return float(said.mean())


@lru_cache(maxsize=64)
def seed_variances(pilot: Pilot) -> np.ndarray:
    """[2, DRAWS]: of either method, what its seeds' variance may be after the pilot: `SPREAD` is
    what is expected before (a half-normal standard deviation), and a variance of runs over the true
    one is χ² over its degrees of freedom."""
    spreads = np.linspace(0.0, 6 * SPREAD, 2001)
    drawn = np.empty((2, DRAWS))
    for side, (residual, seen) in enumerate(zip(pilot.residual, pilot.runs, strict=True)):
        true = spreads**2 + residual / pilot.n
        log_weight = -(spreads**2) / (2 * SPREAD**2)
        if pilot.freedom and seen > 0:
            true = np.maximum(true, 1e-12)
            log_weight -= pilot.freedom / 2 * (np.log(true) + seen / true)
        weights = np.exp(log_weight - log_weight.max())
        shares = np.cumsum(weights) / weights.sum()
        even = (np.arange(DRAWS) + 0.5) / DRAWS
        quantiles = np.interp(even, shares, spreads)
        drawn[side] = np.random.default_rng(side).permutation(quantiles) ** 2
    return drawn


def _half_width(of_rows: float, first: np.ndarray, second: np.ndarray, seeds: int) -> np.ndarray:
    """As `paired_difference` makes it: two seeds are drawn with the rows (which halves their
    variance), three and more have Student's t."""
    both = first + second
    if seeds == 2:
        return Z95 * np.sqrt(of_rows + both / 2)
    spread = np.where(both > 0, both, 1.0)
    freedom = spread**2 * (seeds - 1) / np.maximum(first**2 + second**2, 1e-300)
    quantiles = np.interp(np.clip(freedom, 1.0, 200.0), *_student())
    wide: np.ndarray = np.sqrt(Z95**2 * of_rows + np.where(both > 0, quantiles**2 * both, 0.0))
    return wide


@cache
def _student() -> tuple[np.ndarray, np.ndarray]:
    freedoms = np.concatenate([np.arange(1.0, 12.0, 0.25), np.arange(12.0, 201.0, 4.0)])
    return freedoms, np.array([student_t(float(freedom)) for freedom in freedoms])


@cache
def _drawn(seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """The same draws whatever is asked: standard normals; of either method the variance that a
    study sees over the true one."""
    dice = np.random.default_rng(2026)
    normal = dice.standard_normal(DRAWS)
    seen = dice.chisquare(seeds - 1, (2, DRAWS)) / (seeds - 1) if seeds > 1 else np.ones((2, DRAWS))
    return normal, seen


def least_detected(pilot: Pilot, n: int, seeds: int, wanted: float) -> float:
    """The smallest difference that a study with n rows detects so often, to half a thousandth; at
    most 1."""
    low, high = 0.0, 1.0
    while high - low > 5e-4:
        middle = (low + high) / 2
        enough = power(pilot, n, seeds, middle, "detect") >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return high


def rows_needed(pilot: Pilot, seeds: int, margin: float, wanted: float, aim: Aim) -> int | None:
    """The fewest rows that reach a power; None where no number of rows does."""
    if power(pilot, MOST_ROWS, seeds, margin, aim) < wanted:
        return None
    low, high = 1, MOST_ROWS
    while high - low > max(1, low // 200):  # to half a per cent
        middle = math.isqrt(low * high) if high > 2 * low else (low + high) // 2
        low, high = (
            (low, middle)
            if power(pilot, middle, seeds, margin, aim) >= wanted
            else (
                middle,
                high,
            )
        )
    return high


def seeds_needed(pilot: Pilot, n: int, margin: float, wanted: float, aim: Aim) -> int | None:
    """The fewest seeds a method that reach a power on n rows, from three on; None where no number
    up to `MOST_SEEDS` does. Of an assumed variance as of a measured one."""
    return next(
        (
            seeds
            for seeds in range(3, MOST_SEEDS + 1)
            if power(pilot, n, seeds, margin, aim) >= wanted
        ),
        None,
    )
