"""Writes the golden files anew: run it only when a change of behaviour is meant, and say so in the
CHANGELOG.

python -m tests.golden.make_golden
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from tests import build
from tests.parity.test_training import CPU, FP32, config, lane_of, rows
from tsugiki.config.run import TaskChoice
from tsugiki.data.prompts import render, tokenize
from tsugiki.data.tasks import builtin_tasks, load_task
from tsugiki.train.engine import fit
from tsugiki.train.step import EagerStep

FOLDER = Path(__file__).parent


def loss_curves() -> dict[str, list[float]]:
    """Eight steps of each layout and method."""
    curves = {}
    for kind in ("llama", "gpt2"):
        for method in ("lora", "full"):
            torch.manual_seed(0)
            model = build.MODELS[kind]()
            lane = lane_of(model, config(epochs=8 / 3, schedule="cosine", warmup=0.25), method, 10)
            curves[f"{kind}-{method}"] = fit(
                EagerStep(model, rows(), 3, CPU, FP32), [lane], CPU, folders=[None]
            )[0].history.loss
    return curves


def prompts() -> dict[str, dict]:
    """Every format of every sample task, and the tiny task's first row as ids with its mask."""
    rendered: dict[str, dict] = {}
    for name in builtin_tasks():
        if name.startswith("sample_"):
            for form in ("paper", "plain"):
                task = load_task(TaskChoice(name=name, format=form))
                rendered[f"{name}-{form}"] = {
                    "prompt": render(task.template, task.examples["test"][0]),
                    "answer": task.examples["test"][0].target,
                }
    with tempfile.TemporaryDirectory() as folder:
        task = load_task(TaskChoice(name=str(build.save_task(Path(folder)))))
        row = tokenize(build.tokenizer(), task, task.examples["train"][:1], 128)[0]
    rendered["tiny-ids"] = {
        "ids": [*row.prompt_ids, *row.target_ids],
        "trained": [0] * len(row.prompt_ids) + [1] * len(row.target_ids),
    }
    return rendered


def main() -> None:
    for name, content in (("loss_curves", loss_curves()), ("prompts", prompts())):
        (FOLDER / f"{name}.json").write_text(
            json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
