"""Every run under a root as one row of a CSV: what was asked, its validation score, how it was
trained.

python benchmarks/grid/cells.py ROOT > cells.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from tsugiki.runs.store import Store
from tsugiki.score.metrics import Score

HEADER = (
    "model", "task", "method", "learning_rate", "epochs", "batch", "targets", "rank", "seed",
    "status", "validation", "low", "high", "n",
    "candidate_rate", "test", "steps", "lanes", "first_steps_from_a_longer_run", "step_s_median",
    "step",
)  # fmt: skip


def _of(score: Score | None) -> tuple[float | int | None, ...]:
    """Value, interval, number of examples."""
    return (None,) * 4 if score is None else (score.value, score.low, score.high, score.n)


def main() -> None:
    rows = []
    for record in Store(Path(sys.argv[1])).records():
        config, outcome = record.config, record.outcome
        validation, test = record.scores("validation"), record.scores("test")
        main_score, lora = validation.main if validation else None, config.lora
        rows.append(
            (
                config.model.label, Path(config.task.name).stem, config.method,
                config.train.learning_rate, config.train.epochs, config.train.batch,
                lora.targets if lora else "", lora.rank if lora else "", config.train.seed,
                record.status, *_of(main_score), validation.candidate_rate if validation else None,
                test.main.value if test else "", outcome.steps, outcome.lanes,
                outcome.branch.steps if outcome.branch else 0, record.cost().step_s_median,
                outcome.step,
            )
        )  # fmt: skip
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(sorted(rows, key=str))


if __name__ == "__main__":
    main()
