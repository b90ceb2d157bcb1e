"""The runs behind the demo's recipe: counts of those that learned, from the kept results; or the same runs again.

    python recipes/sample_tasks/demo_recipe.py                     counts by setting, from log/2026-11-28-demo-recipe.jsonl
    python recipes/sample_tasks/demo_recipe.py --run OUT.jsonl     trains every kept line over the package's own data anew (hours on a CPU)

The kept lines were made on one H100 in six calls of 14 processes, with the plain step. `data` names a draft of the inference task: `now` is
the one that the package holds, `choice` the five-candidate task; the other drafts were not kept.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

KEPT = Path(__file__).parents[2] / "log" / "2026-11-28-demo-recipe.jsonl"
LEARNED = {
    "choice": 0.3
}  # validation above; 0.6 for the inference task: far from the majority's .333


def counts(rows: list[dict]) -> None:
    groups: dict[tuple, list[bool]] = defaultdict(list)
    for row in rows:
        key = (
            row["data"],
            row["rows"],
            row["batch"],
            row["epochs"],
            row["warmup"],
            row["schedule"],
            row["method"],
            row["precision"],
        )
        groups[key].append(row["validation"] > LEARNED.get(row["data"], 0.6))
    for (data, size, batch, epochs, warmup, schedule, method, precision), learned in sorted(
        groups.items()
    ):
        print(
            f"{data:10} {size:5} rows, batch {batch:2}, {epochs:g} epochs, warm-up {warmup:.0%} {schedule}, {method} {precision}: {sum(learned)} of {len(learned)}"
        )


def run_again(rows: list[dict], out: Path) -> None:
    import tsugiki

    for row in rows:
        if row["data"] not in ("now", "choice"):
            continue
        names = ("learning_rate", "epochs", "batch", "schedule", "warmup", "seed", "precision")
        config = {
            "model": {"path": "builtin"},
            "task": {
                "name": "sample_choice" if row["data"] == "choice" else "sample_nli",
                "train_rows": row["rows"],
            },
            "method": row["method"],
            "train": {**{name: row[name] for name in names}, "max_length": 512, "step": "eager"},
            "score": {"decode": "eager"},
        }
        if row["method"] == "lora":
            config["lora"] = {"targets": "all-linear", "rank": 16, "alpha": 32}
        found = tsugiki.run(config, out=out.parent / "runs").main_score("validation")
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "validation": found, "test": None}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path)
    given = parser.parse_args()
    rows = [json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines()]
    if given.run is None:
        counts(rows)
    else:
        run_again(rows, given.run)


if __name__ == "__main__":
    main()
