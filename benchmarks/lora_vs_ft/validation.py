"""Validation scores of every trained configuration, from the runs of `run.sh study`: for a study
that ended before its test was read.

    python -m benchmarks.lora_vs_ft.validation RUNS… > benchmarks/lora_vs_ft/validation.md

What has five seeds was chosen by its first seed's validation (but for the default), so its scores
are too high by what the choice was worth.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import Store


def setting(record: RunRecord) -> str:
    lora, train = record.config.lora, record.config.train
    kind = "FT" if lora is None else f"LoRA {lora.targets} r{lora.rank} α/r {lora.scale:g}"
    return f"{kind}, {train.learning_rate:g}, {train.schedule}"


def main() -> None:
    groups: dict[tuple[str, str, str], list[RunRecord]] = defaultdict(list)
    for root in sys.argv[1:]:
        for record in Store(Path(root)).records():
            if record.status == "done" and record.config.method in ("lora", "full"):
                key = (record.config.model.label, record.config.task.label, setting(record))
                groups[key].append(record)
    print("# Validation, five seeds\n")
    print(
        "`python -m benchmarks.lora_vs_ft.validation`: of each method the configurations that were"
    )
    print("trained with five seeds, chosen by the first seed's validation but for the default.\n")
    print("| model | task | setting | validation, mean ± sd of five seeds | loss |")
    print("|---|---|---|---|---|")
    for (model, task, kind), records in sorted(groups.items()):
        scores = [record.main_score("validation") or 0.0 for record in records]
        losses = [record.outcome.validation_loss or 0.0 for record in records]
        said = f"{statistics.fmean(scores):.3f}"
        if len(scores) > 1:
            said += f" ± {statistics.stdev(scores):.3f}"
        loss = f"{statistics.fmean(losses):.3f}"
        print(f"| {model} | {task} | {kind} | {len(scores)} | {said} | {loss} |")


if __name__ == "__main__":
    main()
