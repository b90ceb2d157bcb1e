"""Every run under a root as one row of a CSV: what was asked, its validation score, how it was
trained.

python benchmarks/grid/cells.py ROOT > cells.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from tsugiki.runs.store import Store

HEADER = (
    "model", "task", "method", "learning_rate", "epochs", "batch", "targets", "rank", "seed",
    "status", "validation", "low", "high", "n",
    "candidate_rate", "test", "steps", "lanes", "first_steps_from_a_longer_run", "step_s_median",
    "step",
)  # fmt: skip


def main() -> None:
    rows = []
    for one in Store(Path(sys.argv[1])).records():
        config, happened = one.config, one.happened
        validation, test = one.evaluation("validation") or {}, one.evaluation("test")
        main_score, lora = validation.get("main", {}), config.lora
        seconds = (happened.get("measurement") or {}).get("step_s_median")
        rows.append(
            (
                config.model.label, Path(config.task.name).stem, config.method,
                config.train.learning_rate, config.train.epochs, config.train.batch,
                lora.targets if lora else "", lora.rank if lora else "", config.train.seed,
                one.status, main_score.get("value"), main_score.get("low"),
                main_score.get("high"), main_score.get("n"), validation.get("candidate_rate"),
                test["main"]["value"] if test else "", happened.get("steps"),
                happened.get("lanes"), happened.get("shared", {}).get("steps", 0), seconds,
                happened.get("step"),
            )
        )  # fmt: skip
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(sorted(rows, key=str))


if __name__ == "__main__":
    main()
