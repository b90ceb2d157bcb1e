"""Kept runs made up for the tests of what a report says: real folders with answers of our choice,
no model, nothing trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.build import PARTS
from tsugiki.config.run import RunConfig, TaskChoice
from tsugiki.config.study import StudySpec
from tsugiki.data.tasks import Task, load_task, task_digest
from tsugiki.runs.identity import SEMANTICS, key_of, recipe_of
from tsugiki.runs.record import Outcome, Provenance, StoredNumerics
from tsugiki.runs.scoring import unkeyed
from tsugiki.runs.store import Run, Store
from tsugiki.score.evaluate import summarise
from tsugiki.score.predict import Prediction
from tsugiki.study.cells import parse_study

LABELS = ("含意", "中立", "矛盾")
TASK = (
    """
name = "made"
title = "made"
kind = "classification"
metric = "accuracy"
licence = "CC0"
citation = "none"
fields = ["text"]
target = "label"
max_new_tokens = 6
default_split = "standard"
[labels]
e = "含意"
n = "中立"
c = "矛盾"
[formats]
paper = "{text}[SEP]"
"""
    + PARTS
)
COST = {
    "device": "made up", "num_steps": 9, "step_s_median": 0.1, "step_s_mean": 0.1,
    "tokens_per_s": 10.0,
    "peak_allocated_bytes": 2**30, "peak_reserved_bytes": 2**30, "peak_process_bytes": None,
    "lanes": 1,
}  # fmt: skip


def save_made(folder: Path, rows: int = 300) -> Path:
    """A task of three labels, each a third of every part."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made.toml").write_text(TASK, encoding="utf-8")
    for part in ("train", "validation", "test"):
        lines = (
            json.dumps(
                {"text": f"{part}の文{number}", "label": "enc"[number % 3]}, ensure_ascii=False
            )
            for number in range(rows)
        )
        (folder / f"{part}.jsonl").write_text(
            "".join(line + "\n" for line in lines), encoding="utf-8"
        )
    return folder / "made.toml"


def study_of(task: Path, rates: Mapping[str, Sequence[float]], **changes: Any) -> StudySpec:
    """LoRA, FT and the untouched base on the task, with these learning rates by name of the
    method."""
    methods = []
    for name, some in rates.items():
        if name == "base":
            methods.append({"name": name, "kind": "base"})
            continue
        grid = {"learning_rate": list(some)} | ({} if name == "FT" else {"rank": [2]})
        methods.append({"name": name, "kind": "full" if name == "FT" else "lora", "grid": grid})
    given = {
        "name": "made",
        "models": [{"path": "builtin", "name": "m"}],
        "tasks": [{"name": str(task)}],
        "methods": methods,
        **changes,
    }
    return parse_study(given, "made")


def answers_of(task: Task, part: str, right: Sequence[bool]) -> list[Prediction]:
    """Right where told, the next label elsewhere."""
    rows = task.examples[part]
    assert len(rows) == len(right)
    made = []
    for row, good in zip(rows, right, strict=True):
        answer = row.target if good else LABELS[(LABELS.index(row.target) + 1) % 3]
        made.append(
            Prediction(
                id=row.id,
                group=row.group,
                target=row.target,
                answer=answer,
                ended=True,
                failure="right" if good else "other_candidate",
            )
        )
    return made


def keep(
    store: Store,
    config: RunConfig,
    right: Mapping[str, Sequence[bool]],
    *,
    reason: str = "",
    **outcome: Any,
) -> Run:
    """Writes a run's folder: its answers by part, or the reason why it failed."""
    task = load_task(config.task)
    provenance = Provenance(
        semantics=SEMANTICS, recipe_sha256=recipe_of(config, task), model_sha256="m" * 64,
        settings_sha256="s" * 64, task_sha256=task_digest(task),
        data={part: dict(files) for part, files in task.files.items()},
        device_type="cuda", device="made up",
        numerics=StoredNumerics(compute="bf16", base="bf16", trained="fp32"),
        versions={"torch": "2", "transformers": "5", "tsugiki": "0"},
    )  # fmt: skip
    run = store.open(config, provenance)
    run.start(config, provenance, Outcome())
    scores = []
    for part, some in right.items():
        made = answers_of(task, part, some)
        evaluation = summarise(task.spec, part, made, 0.01)
        key = key_of(config, task, part)
        scores.append(unkeyed(evaluation).model_copy(update={"key": key}))
        run.add_scores(scores[-1], made)
    made_up = {
        "status": "failed" if reason else "done", "reason": reason, "trainable": 10, "total": 100,
        "steps": 9, "max_length": 128, "cost": COST, "weights_bytes": 40, "lanes": 1,
    }  # fmt: skip
    run.change(**{**made_up, **outcome})
    return run


def part_right(n: int, share: float, shift: int = 0) -> list[bool]:
    """The first share of n rows right, rotated by `shift`."""
    plain = [number < round(n * share) for number in range(n)]
    return plain[shift:] + plain[:shift]


def choice_of(task: Path) -> TaskChoice:
    return TaskChoice(name=str(task))
