"""Looks before anything runs: rows as the model sees them, and a whole file checked with all it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsugiki.config import ModelChoice, RunConfig, TaskChoice, parse, read_toml
from tsugiki.data.prompts import Tokens, check_tokenizer, render, tokenize
from tsugiki.data.tasks import SPLITS, Task, load_task
from tsugiki.errors import ConfigError, did_you_mean
from tsugiki.model.loading import load_tokenizer, resolve
from tsugiki.study.cells import expand, parse_study


def show_task(choice: TaskChoice, part: str, num_rows: int, model: str | None) -> Iterator[str]:
    """Lines that show rows of one part; with a model, its ids and what of them is trained."""
    if part not in SPLITS:
        raise ConfigError(f'--part "{part}": no such part.{did_you_mean(part, SPLITS)}')
    task = load_task(choice)
    yield describe(task)
    examples = task.examples[part][:num_rows]
    if model is None:
        for example in examples:
            yield f"{example.id}: {render(task.template, example)}→ {example.target}"
        return
    tokenizer = load_tokenizer(resolve(ModelChoice(path=model)))
    check_tokenizer(tokenizer)
    for row in tokenize(tokenizer, task, examples, 2048):
        yield from show_tokens(tokenizer, row)


def describe(task: Task) -> str:
    counts = ", ".join(f"{part} {len(task.examples[part]):,}" for part in SPLITS)
    version = f" v{task.version}" if task.version else ""
    return f"{task.name}{version}, split {task.split}, format {task.format}: {counts}"


def show_tokens(tokenizer: Any, row: Tokens) -> Iterator[str]:
    """One row: pieces, ids, and `x` under every trained token."""
    ids = [*row.prompt_ids, *row.target_ids]
    pieces = [piece.replace("\n", "⏎") for piece in tokenizer.convert_ids_to_tokens(ids)]
    trained = ["." for _ in row.prompt_ids] + ["x" for _ in row.target_ids]
    yield f"{row.example.id}: {len(row.prompt_ids)} prompt + {len(row.target_ids)} answer tokens{', text cut to fit' if row.was_cut else ''}"
    yield "  pieces " + " ".join(pieces)
    yield "  ids    " + " ".join(map(str, ids))
    yield "  loss   " + " ".join(trained)


def check_file(path: Path) -> Iterator[str]:
    """Checks a task, run or study file and the data it names; yields what was found in order. Raises the first error."""
    given = read_toml(path)
    if "kind" in given and "fields" in given:
        yield from _check_task(TaskChoice(name=str(path)))
    elif "methods" in given:
        study = parse_study(given, str(path))
        cells = expand(study)
        yield f"study {study.name}: {len(cells)} cells"
        for choice in study.tasks:
            yield from _check_task(choice)
        for model in study.models:
            yield from _check_model(model)
    else:
        config = parse(RunConfig, given, str(path))
        yield from _check_task(config.task)
        yield from _check_model(config.model)
    yield "ok"


def _check_task(choice: TaskChoice) -> Iterator[str]:
    task = load_task(choice)
    for name in task.spec.formats:
        for part in SPLITS:
            for example in task.examples[part]:
                render(task.spec.formats[name], example)
    yield describe(task)


def _check_model(choice: ModelChoice) -> Iterator[str]:
    tokenizer = load_tokenizer(resolve(choice))
    check_tokenizer(tokenizer)
    yield f"model {choice.label}: {len(tokenizer):,} pieces, end mark {tokenizer.eos_token}"
