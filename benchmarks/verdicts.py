"""How often what a report says is wrong: studies made up with known truth, read by the code that
reads real ones.

    python benchmarks/verdicts.py --out benchmarks/verdicts.json --page docs/verdicts.md
        (about 50 minutes on two cores)
    python benchmarks/verdicts.py --studies 50 --out /tmp/some.json        (a look)

Two methods answer the same n rows, each with so many seeds. A row is answered rightly where a
latent normal variable lies below the seed's threshold: a part of it belongs to the row (both
methods see it), a part to row and method, the rest to row, method and seed. A seed's accuracy is
the method's plus a normal deviate of the sd given, so that the true difference is known exactly.
Agreement "high" is .80 + .10 of shared variance, "low" .50 + .20. Intervals and verdicts are those
of `tsugiki.score.metrics` and `tsugiki.report.finding`; the margin is 2 points, method B's true
accuracy .70.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from tsugiki.report.finding import verdict_of
from tsugiki.score.statistics import mean_over_seeds, paired_difference

MARGIN, BASE = 0.02, 0.70
ROWS, SEEDS, SPREADS, DIFFERENCES = (
    (500, 1500, 6000),
    (1, 2, 3, 5),
    (0.0, 0.01, 0.02, 0.04),
    (0.0, 0.01, 0.02, 0.04),
)
AGREEMENT = {"low": (0.50, 0.20), "high": (0.80, 0.10)}
Setting = tuple[int, int, float, str, float]


def study(random: np.random.Generator, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """Right answers, [seeds, n], of method A and of method B."""
    n, seeds, spread, agreement, difference = setting
    shared, own = AGREEMENT[agreement]
    row = math.sqrt(shared) * random.standard_normal(n)
    methods = []
    for accuracy in (BASE + difference, BASE):
        here = row + math.sqrt(own) * random.standard_normal(n)
        seed_accuracy = np.clip(accuracy + spread * random.standard_normal(seeds), 0.01, 0.99)
        thresholds = np.array([NormalDist().inv_cdf(one) for one in seed_accuracy])
        latent = here + math.sqrt(1 - shared - own) * random.standard_normal((seeds, n))
        methods.append((latent < thresholds[:, None]).astype(float))
    return methods[0], methods[1]


def measure(job: tuple[Setting, int]) -> dict[str, Any]:
    """Shares of so many studies of one setting: intervals that cover, verdicts by name, mean half
    widths."""
    setting, studies = job
    n, seeds, spread, agreement, difference = setting
    random = np.random.default_rng(
        [n, seeds, round(1000 * spread), len(agreement), round(1000 * difference)]
    )
    groups = [str(number) for number in range(n)]
    said: Counter[str] = Counter()
    covered = pooled = 0
    width = 0.0
    for _ in range(studies):
        first, second = study(random, setting)
        found = paired_difference(list(first), list(second), groups)
        covered += found.low <= difference <= found.high
        width += (found.high - found.low) / 2 / studies
        said[verdict_of(found.low, found.high, MARGIN)] += 1
        alone = mean_over_seeds(list(second), groups)
        pooled += alone.low <= BASE <= alone.high
    about = {
        "n": n,
        "seeds": seeds,
        "sd": spread,
        "agreement": agreement,
        "difference": difference,
        "studies": studies,
    }
    return {
        **about,
        "covered": covered / studies,
        "covered_one": pooled / studies,
        "half_width": width,
        **{name: said[name] / studies for name in VERDICTS},
    }


VERDICTS = ("better", "worse", "equal", "undecided")


def page(kept: dict[str, Any]) -> str:
    """The table of docs/verdicts.md: the worst setting of each line, and the mean."""
    about, rows = kept["about"], kept["settings"]
    heads = (
        "seeds",
        "sd of seeds",
        "covers (difference)",
        "covers (one method)",
        "half width",
        "false better/worse at 0",
        "false “equal” at 2",
    )
    heads += ("finds 2 points", "finds 4 points", "calls 0 equal")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for seeds, spread in itertools.product(SEEDS, SPREADS):
        here = [row for row in rows if row["seeds"] == seeds and row["sd"] == spread]
        wrong = [row["better"] + row["worse"] for row in here if row["difference"] == 0]
        equal = [row["equal"] for row in here if row["difference"] == MARGIN]
        found = [
            [row["better"] for row in here if row["difference"] == size] for size in (0.02, 0.04)
        ]
        cells = [
            seeds,
            f"{100 * spread:g}",
            *(
                f"{np.mean([row[name] for row in here]):.3f} ({min(row[name] for row in here):.3f})"
                for name in ("covered", "covered_one")
            ),
            f"±{100 * np.mean([row['half_width'] for row in here]):.1f}",
            *(f"{np.mean(some):.3f} ({max(some):.3f})" for some in (wrong, equal)),
            *(f"{np.mean(some):.2f}" for some in found),
            f"{np.mean([row['equal'] for row in here if row['difference'] == 0]):.2f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    bounded = [row for row in rows if row["seeds"] >= 3]
    worst = {
        "covers": min(min(row["covered"], row["covered_one"]) for row in bounded),
        "better/worse": max(
            row["better"] + row["worse"] for row in bounded if row["difference"] == 0
        ),
        "equal": max(row["equal"] for row in bounded if row["difference"] == MARGIN),
    }
    rows_used = ", ".join(f"{n:,}" for n in ROWS)
    return (
        "\n".join(lines)
        + f"\n\n{about['studies']:,} studies a setting, {len(rows)} settings (n of {rows_used}; of "
        f"one and two seeds up to {ROWS[1]:,}). Means "
        + f"over n, agreement and difference, in brackets the worst setting. {about['machine']}, "
        f"{about['date']}.\n\n"
        + f"From three seeds on: every setting's intervals cover at least {worst['covers']:.3f}; "
        "false “better” or “worse” at most "
        + f"{worst['better/worse']:.3f}, false “equal” at most {worst['equal']:.3f}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="*",
        default=SEEDS,
        help="measure these again, and keep the others of --out",
    )
    parser.add_argument("--page", type=Path, help="write the table between the marks of this page")
    given = parser.parse_args()
    settings = [
        one
        for one in itertools.product(ROWS, given.seeds, SPREADS, AGREEMENT, DIFFERENCES)
        if one[1] > 2 or one[0] <= ROWS[1]
    ]
    start = time.monotonic()
    kept_rows = (
        json.loads(given.out.read_text(encoding="utf-8"))["settings"] if given.out.exists() else []
    )
    found: list[dict[str, Any]] = []
    with ProcessPoolExecutor(given.jobs) as pool:
        for row in pool.map(measure, [(setting, given.studies) for setting in settings]):
            found.append(row)
            print(
                f"[{len(found)}/{len(settings)}] {time.monotonic() - start:.0f} s {row}", flush=True
            )
    machine = f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}"
    rows = [
        *found,
        *(
            row
            for row in kept_rows
            if row["seeds"] not in given.seeds and row["studies"] == given.studies
        ),
    ]
    rows.sort(
        key=lambda row: [row[name] for name in ("n", "seeds", "sd", "agreement", "difference")]
    )
    kept = {
        "about": {"studies": given.studies, "machine": machine, "date": time.strftime("%Y-%m-%d")},
        "settings": rows,
    }
    given.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    made = page(kept)
    print(made)
    if given.page is not None:
        head, begin, rest = given.page.read_text(encoding="utf-8").partition(
            "<!-- simulation -->\n"
        )
        _, end, tail = rest.partition("<!-- /simulation -->")
        given.page.write_text(head + begin + made + end + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
