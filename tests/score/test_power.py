"""What a plan promises: against the textbook, against its own variances, and in synthetic studies
(`benchmarks/plans.py` draws a thousand of each)."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tsugiki.score.power import (
    MOST_SEEDS,
    SPREAD,
    Pilot,
    pilot_of,
    power,
    rows_needed,
    seed_variances,
    seeds_needed,
)

ROOT = Path(__file__).parents[2]


def of_rows(variance: float) -> Pilot:
    return Pilot(rows=variance, residual=(0.0, 0.0), runs=(0.0, 0.0), n=1, freedom=0)


def test_one_run_is_the_textbooks_two_one_sided_tests() -> None:
    """1 point at 15 % disagreement and power .9: (1.96 + 1.645)² · .15 / .01² = 19,500 rows."""
    needed = rows_needed(of_rows(0.15), 1, 0.01, 0.9, "equal")
    assert needed == pytest.approx((1.96 + 1.645) ** 2 * 0.15 / 0.01**2, rel=0.04)
    detect = rows_needed(of_rows(0.15), 1, 0.01, 0.8, "detect")
    assert detect == pytest.approx((1.96 + 0.8416) ** 2 * 0.15 / 0.01**2, rel=0.05)


def test_more_rows_and_more_seeds_never_take_power_away() -> None:
    pilot = Pilot(rows=0.1, residual=(0.05, 0.05), runs=(1e-4, 1e-4), n=1000, freedom=4)
    for aim in ("equal", "detect"):
        by_rows = [power(pilot, n, 5, 0.02, aim) for n in (500, 2000, 8000, 100_000)]
        by_seeds = [power(pilot, 4000, seeds, 0.02, aim) for seeds in (3, 5, 10, 30)]
        assert by_rows == sorted(by_rows)
        assert by_seeds == sorted(by_seeds)


def test_what_no_number_reaches_is_said() -> None:
    wild = Pilot(rows=0.1, residual=(0.0, 0.0), runs=(4e-3, 4e-3), n=1000, freedom=9)
    assert rows_needed(wild, 3, 0.01, 0.8, "equal") is None, "seeds alone are too wide"
    assert seeds_needed(of_rows(0.2), 100, 0.01, 0.8, "equal") is None, "rows alone are too few"
    assert seeds_needed(of_rows(0.001), 5000, 0.02, 0.8, "equal") in range(3, MOST_SEEDS)


def test_a_pilot_is_taken_apart_into_what_it_was_made_of() -> None:
    dice = np.random.default_rng(0)
    n, seeds, rows, residual, spread = 4000, 8, 0.08, 0.05, 0.02
    shared, own = dice.normal(0.5, 0.4, n), dice.normal(0, math.sqrt(rows), n)
    both = [
        shared + (own if side else 0) + dice.normal(0, spread, (seeds, 1))
        + dice.normal(0, math.sqrt(residual), (seeds, n))
        for side in range(2)
    ]  # fmt: skip
    pilot = pilot_of(both[0].tolist(), both[1].tolist(), [str(row) for row in range(n)])
    assert pilot.rows == pytest.approx(rows, rel=0.1)
    assert pilot.residual == pytest.approx((residual, residual), rel=0.05)
    assert (pilot.n, pilot.freedom) == (n, seeds - 1)
    seen = [float(np.sqrt(np.median(each))) for each in seed_variances(pilot)]
    assert seen == pytest.approx([math.sqrt(run) for run in pilot.runs], rel=0.35)


def test_rows_of_a_group_count_together() -> None:
    dice = np.random.default_rng(1)
    first = np.repeat(dice.random(200), 2)
    zeros = [0.0] * 400
    apart = pilot_of([first.tolist()], [zeros], [str(row) for row in range(400)])
    pairs = pilot_of([first.tolist()], [zeros], [str(row // 2) for row in range(400)])
    assert pairs.rows == pytest.approx(2 * apart.rows, rel=0.02)


def test_one_seed_leaves_the_spread_of_seeds_to_what_is_expected() -> None:
    pilot = pilot_of([[0.0, 1.0, 1.0]], [[1.0, 1.0, 0.0]], ["a", "b", "c"])
    assert pilot.freedom == 0
    spreads = np.sqrt(seed_variances(pilot))
    assert np.sqrt((spreads**2).mean(axis=1)) == pytest.approx([SPREAD, SPREAD], rel=0.02)


def plans() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plans", ROOT / "benchmarks" / "plans.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("design", "aim"),
    [
        pytest.param((1119, 1, 1), "equal", marks=pytest.mark.slow),
        ((1119, 3, 10), "detect"),
    ],
)
def test_a_plan_finds_what_it_promises(
    design: tuple[int, int, int], aim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150 synthetic studies of power .8: within four standard errors."""
    module = plans()
    monkeypatch.setattr(module, "STUDIES", 150)
    row = module.summary(design, aim)
    assert row["planned"] > 100
    assert row["found"] == pytest.approx(0.8, abs=0.13)
