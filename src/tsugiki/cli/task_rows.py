"""Rows of a task as the model sees them. Torch is loaded for a model's tokens alone."""

from __future__ import annotations

from collections.abc import Iterator

from tsugiki.config.run import ModelChoice, TaskChoice
from tsugiki.data.prompts import Tokens, check_tokenizer, render, tokenize
from tsugiki.data.tasks import SPLITS, Task, called_part, load_task
from tsugiki.data.tokenizer import Tokenizer
from tsugiki.errors import ConfigError, did_you_mean
from tsugiki.model.folder import resolve, stop_ids_of
from tsugiki.words import Message, joined


def show_task(choice: TaskChoice, part: str, num_rows: int, model: str | None) -> Iterator[str]:
    """Lines that show rows of one part; with a model, its ids and what of them is trained."""
    if part not in SPLITS:
        hint = did_you_mean(part, SPLITS)
        raise ConfigError(Message("error.no_part", name=part, hint=hint))
    task = load_task(choice)
    yield describe(task)
    examples = task.examples[part][:num_rows]
    if model is None:
        for example in examples:
            yield f"{example.id}: {render(task.template, example)}→ {example.target}"
        return
    from tsugiki.model.loading import load_tokenizer  # the only thing that needs torch

    folder = resolve(ModelChoice(path=model))
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer)
    for row in tokenize(tokenizer, task, examples, 2048, stops=stop_ids_of(folder)):
        yield from show_tokens(tokenizer, row)


def describe(task: Task) -> str:
    counts = joined(
        "list.comma",
        (
            Message("check.part", part=called_part(part), count=len(task.examples[part]))
            for part in SPLITS
        ),
    )
    version = f" v{task.version}" if task.version else ""
    chosen = {"split": task.split, "format": task.format}
    return Message("check.task", name=f"{task.name}{version}", counts=counts, **chosen)


def show_tokens(tokenizer: Tokenizer, row: Tokens) -> Iterator[str]:
    """One row: tokens, ids, and `x` under every trained token."""
    ids = [*row.prompt_ids, *row.target_ids]
    shown = [token.replace("\n", "⏎") for token in tokenizer.convert_ids_to_tokens(ids)]
    trained = ["." for _ in row.prompt_ids] + ["x" for _ in row.target_ids]
    key = "terminal.row_tokens_cut" if row.was_cut else "terminal.row_tokens"
    counts = {"prompt": len(row.prompt_ids), "answer": len(row.target_ids)}
    yield Message(key, id=row.example.id, **counts)
    yield "  tokens " + " ".join(shown)
    yield "  ids    " + " ".join(map(str, ids))
    yield "  loss   " + " ".join(trained)
