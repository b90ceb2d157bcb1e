"""Which form of the prompt serves the default LoRA: from the runs of `run.sh prompts`, paired.

python -m benchmarks.lora_vs_ft.forms RUNS… > benchmarks/lora_vs_ft/forms.md
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from tsugiki.report.compare import compare_methods
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import Store

Forms = dict[str, list[RunRecord]]

HEAD = """\
# Forms of the prompt

`python -m benchmarks.lora_vs_ft.forms`, from the runs of `run.sh prompts`: the default LoRA with
the paper's form (parts joined by `[SEP]`) and with an instruction in plain words; neither model has
a chat template. Mean ± sd of the seeds; paired, joint 95 % intervals.

| model | task | scored on (n) | seeds | paper | plain | plain − paper, points |
|---|---|---|---|---|---|---|"""


def read(folders: list[str]) -> dict[tuple[str, str], Forms]:
    """Runs by (model, task) and form; of a form, those in the order of their seeds."""
    found: dict[tuple[str, str], Forms] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        for record in Store(Path(folder)).records():
            if record.status == "done":
                config = record.config
                key = config.model.label, Path(config.task.name).stem
                found[key][config.task.format or "paper"].append(record)
    for forms in found.values():
        for records in forms.values():
            records.sort(key=lambda record: record.config.train.seed)
    return dict(sorted(found.items()))


def row(model: str, task: str, forms: Forms, part: str) -> str:
    both = [forms["plain"], forms["paper"]]
    seeds = [[record.config.train.seed for record in records] for records in both]
    assert seeds[0] == seeds[1], f"{model}, {task}: other seeds of one form than of the other"
    scores = [[record.scored(part).main.value for record in records] for records in both]
    pair = compare_methods(*both, part)
    points = [100 * value for value in (pair.difference, pair.low, pair.high)]
    said = [f"{statistics.fmean(each):.3f} ± {statistics.stdev(each):.3f}" for each in scores]
    return (
        f"| {model} | {task} | {part} ({pair.n:,}) | {len(both[0])} | {said[1]} | {said[0]} "
        f"| {points[0]:+.1f} [{points[1]:+.1f}, {points[2]:+.1f}] |"
    )


def main() -> None:
    print(HEAD)
    for (model, task), forms in read(sys.argv[1:]).items():
        whole = all(r.scores("test") is not None for records in forms.values() for r in records)
        print(row(model, task, forms, "test" if whole else "validation"))


if __name__ == "__main__":
    main()
