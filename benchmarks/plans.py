"""Whether a plan finds what it promises, on synthetic studies whose truth is known.

A study draws for either method a standard deviation of its seeds (half-normal, 1 point), makes
pilot answers on validation, plans with `score/power` for power .8, draws a test set of as many rows
as the plan says, and asks the verdict (`score/statistics.paired_difference`). Counted: of the
studies whose plan names a number of rows, how many say "equal" of equal methods, or tell a
difference of one margin; and the same by the truth that was drawn. CPU, minutes.

    python benchmarks/plans.py            # writes plans.json, and the table of docs/verdicts.md
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np

from tsugiki.report.finding import verdict_of
from tsugiki.score.power import SPREAD, Aim, pilot_of, rows_needed
from tsugiki.score.statistics import paired_difference

STUDIES, WANTED, MARGIN = 1000, 0.8, 0.02
ROWS, RESIDUAL = 0.08, 0.05  # variances: of the difference by row; of row and seed, each method
DESIGNS = ((1119, 1, 1), (1119, 5, 5), (1119, 3, 10), (1119, 5, 10), (1119, 1, 10))
OUT, PAGE = "benchmarks/plans.json", "docs/verdicts.md"
MOST = 60_000  # rows of a test set that is drawn


def answers(
    dice: np.random.Generator, n: int, seeds: int, spreads: tuple[float, float], difference: float
) -> list[np.ndarray]:
    """[seeds, n] values of either method: shared rows, the difference's rows, seeds, residual."""
    shared, own = dice.normal(0.5, 0.4, n), dice.normal(difference, math.sqrt(ROWS), n)
    return [
        shared
        + (own if side == 0 else 0.0)
        + dice.normal(0, spread, (seeds, 1))
        + dice.normal(0, math.sqrt(RESIDUAL), (seeds, n))
        for side, spread in enumerate(spreads)
    ]


def one(dice: np.random.Generator, design: tuple[int, int, int], aim: Aim) -> dict[str, object]:
    n, pilot_seeds, seeds = design
    drawn = tuple(float(each) for each in np.abs(dice.normal(0, SPREAD, 2)))
    # One seed speaks of its own run: there is no spread to be found.
    spreads = (0.0, 0.0) if seeds == 1 else (drawn[0], drawn[1])
    first, second = answers(dice, n, pilot_seeds, spreads, 0.0)
    pilot = pilot_of(first, second, [str(row) for row in range(n)])
    needed = rows_needed(pilot, seeds, MARGIN, WANTED, aim)
    said: dict[str, object] = {"spread": math.hypot(*spreads) / math.sqrt(2), "rows": needed}
    if needed is None or needed > MOST:
        return {**said, "found": None}
    truth = MARGIN if aim == "detect" else 0.0
    first, second = answers(dice, needed, seeds, spreads, truth)
    pair = paired_difference(first.tolist(), second.tolist(), [str(row) for row in range(needed)])
    if aim == "equal":
        return {**said, "found": verdict_of(pair.low, pair.high, MARGIN) == "equal"}
    return {**said, "found": pair.low > 0 or pair.high < 0}


def summary(design: tuple[int, int, int], aim: Aim) -> dict[str, object]:
    dice = np.random.default_rng(sum(design) + (aim == "equal"))
    studies = [one(dice, design, aim) for _ in range(STUDIES)]
    kept = [study for study in studies if study["found"] is not None]
    found = [bool(study["found"]) for study in kept]
    by_truth = {}
    for low, high in ((0.0, 0.004), (0.004, 0.008), (0.008, 0.012), (0.012, 1.0)):
        some = [bool(s["found"]) for s in kept if low <= float(str(s["spread"])) < high]
        if some:
            by_truth[f"{low:g}-{high:g}"] = {"n": len(some), "found": float(np.mean(some))}
    share = float(np.mean(found))
    return {
        "pilot_rows": design[0],
        "pilot_seeds": design[1],
        "seeds": design[2],
        "aim": aim,
        "studies": STUDIES,
        "planned": len(kept),
        "median_rows": float(np.median([float(str(study["rows"])) for study in kept])),
        "found": share,
        "error": math.sqrt(share * (1 - share) / len(kept)),
        "by_spread_of_seeds": by_truth,
    }


def main() -> None:
    rows, start = [], time.time()
    for design in DESIGNS:
        for aim in ("equal", "detect"):
            row = summary(design, aim)  # type: ignore[arg-type]
            rows.append(row)
            print(
                f"pilot {row['pilot_seeds']} seeds, study {row['seeds']} seeds, {aim}: "
                f"{row['found']:.3f} ± {row['error']:.3f} of {row['planned']} plans "
                f"(median {row['median_rows']:,.0f} rows) {row['by_spread_of_seeds']}",
                flush=True,
            )
    made = {
        "made": time.strftime("%Y-%m-%d"),
        "seconds": round(time.time() - start),
        "margin": MARGIN,
        "power": WANTED,
        "variance_of_rows": ROWS,
        "variance_of_row_and_seed": RESIDUAL,
        "spread_of_seeds": f"half-normal, {SPREAD}",
        "plans": rows,
    }
    Path(OUT).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    into_page(made)


def into_page(made: dict[str, object]) -> None:
    """Lays the table between its marks in the page."""
    head, begin, rest = Path(PAGE).read_text(encoding="utf-8").partition("<!-- plans -->\n")
    _, end, tail = rest.partition("<!-- /plans -->")
    Path(PAGE).write_text(head + begin + page(made) + end + tail, encoding="utf-8")


def page(made: dict[str, object]) -> str:
    """The table of `docs/verdicts.md`."""
    lines = [
        "| seeds of the pilot | seeds of the study | promise | kept | plans of 1,000 "
        "| rows, median | kept where seeds vary by < 0.4 / 0.4–0.8 / 0.8–1.2 / > 1.2 points |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in made["plans"]:  # type: ignore[attr-defined]
        truth = row["by_spread_of_seeds"].values()
        parts = " / ".join(f"{each['found']:.2f}" for each in truth)
        aim = "equal is called equal" if row["aim"] == "equal" else "2 points are detected"
        lines.append(
            f"| {row['pilot_seeds']} | {row['seeds']} | {aim} | {row['found']:.3f} ± "
            f"{row['error']:.3f} | {row['planned']} | {row['median_rows']:,.0f} | "
            f"{parts if len(truth) > 1 else '-'} |"
        )
    return "\n".join(lines) + f"\n\n{made['made']}, x86_64, {made['seconds']} s.\n"


if __name__ == "__main__":
    main()
