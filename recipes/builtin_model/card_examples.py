"""Prints the model card's table of unseen prompts, answered by the demo's chosen runs at fixed
places of the test files.

tsugiki demo --out RUNS && python recipes/builtin_model/card_examples.py RUNS
"""

from __future__ import annotations

import sys
from pathlib import Path

from tsugiki.data.tasks import load_task
from tsugiki.runs.store import Store
from tsugiki.study.cells import collect, find_study, parse_study, task_label

PLACES = (3, 10, 17)


def main() -> None:
    study = parse_study(find_study("demo"), "demo")
    result = collect(study, Store(Path(sys.argv[1])))
    print("| prompt | right | LoRA | FT |\n|---|---|---|---|")
    for choice in study.tasks:
        task = load_task(choice)
        answers = {}
        for method in ("LoRA", "FT"):
            record = result.record(result.chosen["mame", task_label(choice), method])
            assert record is not None
            answers[method] = record.answers("test")
        for place in PLACES:
            example = task.examples["test"][place]
            prompt = task.template.format_map(dict(example.fields))
            print(
                f"| {prompt} | {example.target} | {answers['LoRA'][place]['answer']} | "
                f"{answers['FT'][place]['answer']} |"
            )


if __name__ == "__main__":
    main()
