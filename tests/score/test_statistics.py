"""Intervals and tests against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest

from tsugiki.score.metrics import per_example, score
from tsugiki.score.rules import METRICS
from tsugiki.score.statistics import (
    FEW,
    interval,
    mcnemar,
    mean_over_seeds,
    paired_difference,
    student_t,
    wilson,
)

stats = pytest.importorskip("scipy.stats")


def rows(n: int) -> list[str]:
    return [str(number) for number in range(n)]


@pytest.mark.parametrize("n", [5, 50, 1119])
def test_wilson_equals_scipys_near_both_ends(n: int) -> None:
    for right in (0, 1, 2, n // 2, n - 1, n):
        theirs = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert wilson(right / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_few_right_answers_have_wilsons_interval_and_many_the_bootstraps() -> None:
    """A bootstrap of one right answer in a hundred ends at 0 in a third of its draws."""
    n = 100
    for right in (0, 1, FEW - 1, n - 2, n):
        values = [1.0] * right + [0.0] * (n - right)
        assert interval(values, rows(n)) == wilson(right / n, n)
    values = [1.0] * 40 + [0.0] * 60
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert interval(values, rows(n)) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_wilson_by_group_counts_a_group_once() -> None:
    values, pairs = [0.0] * 100, [str(number // 2) for number in range(100)]
    assert interval(values, pairs) == wilson(0.0, 50)


@pytest.mark.parametrize("freedom", [1.0, 2.0, 3.7, 8.0, 40.0])
def test_students_quantile_equals_scipys(freedom: float) -> None:
    assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)


def test_the_parts_of_a_difference_over_seeds_are_welchs_and_the_rows_own() -> None:
    dice = np.random.default_rng(0)
    first, second = dice.random((4, 300)), 0.1 + 0.8 * dice.random((5, 300))
    estimate = paired_difference(first.tolist(), second.tolist(), rows(300))
    welch = stats.ttest_ind(first.mean(axis=1), second.mean(axis=1), equal_var=False)
    theirs = welch.confidence_interval(0.95)
    assert estimate.seeds == pytest.approx((theirs.high - theirs.low) / 2, rel=1e-3)
    averaged = first.mean(axis=0) - second.mean(axis=0)
    assert estimate.rows == pytest.approx(1.96 * stats.sem(averaged))
    assert estimate.high - estimate.mean == pytest.approx(np.hypot(estimate.rows, estimate.seeds))


def test_a_paired_difference_to_a_baseline_is_that_of_the_bootstrap() -> None:
    dice = np.random.default_rng(2)
    values, floor = (dice.random(400) < 0.6).astype(float), np.full(400, 0.5)
    estimate = paired_difference([values.tolist()], [floor.tolist()], rows(400))
    theirs = stats.bootstrap(
        (values - floor,), np.mean, n_resamples=4000, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (estimate.low, estimate.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_a_difference_of_one_row_is_no_victory() -> None:
    """Wilson's interval of a share had stood for a difference: one row of 500 was “better”."""
    for more in (1, 3):
        first = [1.0] * (200 + more) + [0.0] * (300 - more)
        second = [1.0] * 200 + [0.0] * 300
        assert paired_difference([first], [second], rows(500)).low <= 0
        assert paired_difference([second], [first], rows(500)).high >= 0


def test_a_correlation_that_is_nought_everywhere_has_an_interval_on_both_sides() -> None:
    slack = 1.96**2 / (50 + 1.96**2)
    values = score("mcc", [0.0] * 50, rows(50), "mcc")
    assert (values.low, values.high) == pytest.approx((-slack, slack))


def test_mcnemar_equals_scipys_binomial_test() -> None:
    dice = np.random.default_rng(3)
    first, second = ((dice.random(200) < share).astype(float) for share in (0.6, 0.5))
    ours = mcnemar(first.tolist(), second.tolist(), rows(200))
    assert ours.p == pytest.approx(
        stats.binomtest(ours.only_first, ours.only_first + ours.only_second).pvalue
    )


def test_a_score_below_zero_keeps_its_interval() -> None:
    """Matthews' correlation may be negative; a share of right answers may not."""
    dice = np.random.default_rng(4)
    values = (dice.standard_normal((3, 200)) * 0.5 - 0.3).tolist()
    assert mean_over_seeds(values, rows(200), METRICS["mcc"].scale).low < -0.3
    assert mean_over_seeds([[0.0] * 20] * 3, rows(20), METRICS["mcc"].scale).low < 0.0
    assert mean_over_seeds([[0.0] * 20] * 3, rows(20)).low == 0.0


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_an_interval_ends_where_a_score_does(seeds: int) -> None:
    """Of 60 rows that one method answers and the other does not, +94 to +106 points was said."""
    slack = 1.96**2 / (60 + 1.96**2)
    ours, theirs = [[1.0] * 60] * seeds, [[0.0] * 60] * seeds
    better = paired_difference(ours, theirs, rows(60))
    assert (better.low, better.high) == pytest.approx((1 - slack, 1.0))
    assert wilson(1.0, 60) == pytest.approx((better.low, better.high)), "as of a share"
    worse = paired_difference(theirs, ours, rows(60))
    assert (worse.low, worse.high) == pytest.approx((-1.0, slack - 1))
    correlation = paired_difference(ours, theirs, rows(60), scale=METRICS["mcc"].scale)
    assert correlation.high == pytest.approx(1 + slack), "up to 2 points of Matthews'"
    nats = paired_difference([[5.0, 6.0, 7.0]] * seeds, [[1.0] * 3] * seeds, rows(3), scale=None)
    assert nats.high > 5
    assert mean_over_seeds(ours, rows(60)).high == 1.0


@pytest.mark.parametrize("seeds", [1, 3])
def test_what_is_cut_off_covers_nothing(seeds: int) -> None:
    """Near the end of the scale: every interval within it, and the truth in as many as before."""
    dice, covered, past = np.random.default_rng(5), 0, 0
    for _ in range(300):
        ours = (dice.random((seeds, 40)) < 0.97).astype(float)
        theirs = (dice.random((seeds, 40)) < 0.03).astype(float)
        whole = paired_difference(ours.tolist(), theirs.tolist(), rows(40), scale=None)
        cut = paired_difference(ours.tolist(), theirs.tolist(), rows(40))
        assert -1 <= cut.low <= cut.mean <= cut.high <= 1
        past += whole.high > 1
        covered += cut.low <= 0.94 <= cut.high
    assert past or seeds == 1
    assert covered / 300 >= 0.93


@pytest.mark.parametrize("metric", ["macro_f1", "mcc"])
def test_a_score_of_classes_ends_where_its_scale_does(metric: str) -> None:
    """Values whose mean it is may lie outside."""
    targets = ["a"] * 20 + ["b"] * 20
    answers = ["b", *targets[1:]]
    values = per_example(metric, answers, targets)[metric]
    found = score(metric, values, rows(40), metric)
    low, high = METRICS[metric].scale
    assert low <= found.low <= found.value <= found.high <= high
