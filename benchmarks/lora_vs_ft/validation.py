"""Validation scores of every trained configuration, from the runs of `run.sh study` and `run.sh
variants`, and what has several seeds against plain LoRA of rank 16, paired.

    python -m benchmarks.lora_vs_ft.validation RUNS… > benchmarks/lora_vs_ft/validation.md

What has five seeds was chosen by its first seed's validation (but for the default and what has one
setting), so its scores are too high by what the choice was worth.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tsugiki.report.compare import compare_methods
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import Store

PLAIN = "LoRA all-linear r16 α/r 2,"
Key = tuple[str, str, str]


def setting(record: RunRecord) -> str:
    lora, train = record.config.lora, record.config.train
    if record.config.method == "lora" and lora is not None:
        kind = f"LoRA {lora.targets} r{lora.rank} "
        kind += f"α/√r {lora.scale:g}" if lora.rslora else f"α/r {lora.scale:g}"
        kind += f" LoRA+ {lora.loraplus:g}" if lora.loraplus != 1 else ""
    elif record.config.method == "encoder":
        kind = f"encoder of {(record.outcome.total or 0) / 1e6:.1f} M"
    else:
        kind = {"full": "FT"}.get(record.config.method, record.config.method)
    return f"{kind}, {train.learning_rate:g}, {train.schedule}"


def scores_of(records: Sequence[RunRecord]) -> list[float]:
    return [record.main_score("validation") or 0.0 for record in records]


def table(groups: dict[Key, list[RunRecord]]) -> None:
    print("| model | task | setting | seeds | validation, mean ± sd of the seeds | loss |")
    print("|---|---|---|---|---|---|")
    for (model, task, kind), records in sorted(groups.items()):
        scores = scores_of(records)
        losses = [record.outcome.validation_loss or 0.0 for record in records]
        said = f"{statistics.fmean(scores):.3f}"
        if len(scores) > 1:
            said += f" ± {statistics.stdev(scores):.3f}"
        loss = f"{statistics.fmean(losses):.3f}"
        print(f"| {model} | {task} | {kind} | {len(scores)} | {said} | {loss} |")


def against_plain(groups: dict[Key, list[RunRecord]]) -> None:
    """Every other setting of three seeds or more against the plain one of the highest mean."""
    print(f"\n## Against “{PLAIN.rstrip(',')}” with its best rate\n")
    print("Paired, joint intervals over rows and seeds. Both were chosen on these rows.\n")
    print("| model | task | setting | against its rate | seeds | difference in points |")
    print("|---|---|---|---|---|---|")
    for model, task in sorted({key[:2] for key in groups}):
        several = {
            kind: records
            for (*where, kind), records in groups.items()
            if where == [model, task] and len(records) > 2
        }
        plain = {kind: each for kind, each in several.items() if kind.startswith(PLAIN)}
        if not plain:
            continue
        best = max(plain, key=lambda kind: statistics.fmean(scores_of(plain[kind])))
        for kind, records in sorted(several.items()):
            if kind in plain:
                continue
            found = compare_methods(records, plain[best], "validation")
            low, mean, high = (100 * each for each in (found.low, found.difference, found.high))
            print(
                f"| {model} | {task} | {kind} | {best.split(', ')[1]} | {len(records)} "
                f"| {mean:+.1f} [{low:+.1f}, {high:+.1f}] |"
            )


def main() -> None:
    by_seed: dict[Key, dict[int, RunRecord]] = defaultdict(dict)
    for root in sys.argv[1:]:
        for record in Store(Path(root)).records():
            config = record.config
            if config.method in ("lora", "full", "encoder") and record.status == "done":
                key = (config.model.label, config.task.label, setting(record))
                by_seed[key].setdefault(config.train.seed, record)
    groups = {key: list(records.values()) for key, records in by_seed.items()}
    print("# Validation\n")
    print(
        "`python -m benchmarks.lora_vs_ft.validation`: every configuration that was trained; what"
    )
    print("has several seeds was chosen by the first one's validation, but for the default and for")
    print("rows of one setting.\n")
    table(groups)
    against_plain(groups)


if __name__ == "__main__":
    main()
