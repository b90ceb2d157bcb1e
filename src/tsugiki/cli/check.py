"""Looks before anything runs: rows as the model sees them, and a whole file checked with all it
names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tsugiki.config.run import ModelChoice, RunConfig, TaskChoice
from tsugiki.data.prompts import Tokens, check_tokenizer, render, tokenize
from tsugiki.data.tasks import SPLITS, Task, builtin_tasks, load_task
from tsugiki.data.tokenizer import Tokenizer
from tsugiki.errors import ConfigError, did_you_mean
from tsugiki.fast.cuda_graphs import why_eager
from tsugiki.model.folder import resolve, stop_ids_of
from tsugiki.model.loading import find_base, load_base, load_tokenizer
from tsugiki.model.look import WITHOUT_CACHE, look_of
from tsugiki.model.tokenizers import tokenizer_notes
from tsugiki.report.notes import leak_notes
from tsugiki.study.cells import builtin_studies, expand, parse_study
from tsugiki.study.preflight import check_model, check_task, raise_it
from tsugiki.toml import beside, is_task_file, override, parse, read_toml


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
    folder = resolve(ModelChoice(path=model))
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer)
    for row in tokenize(tokenizer, task, examples, 2048, stops=stop_ids_of(folder)):
        yield from show_tokens(tokenizer, row)


def overlaps(task: Task) -> Iterator[str]:
    """A line for each part that shares rows with another one."""
    for said in leak_notes(task, "en"):
        yield f"  note: {said}"


def describe(task: Task) -> str:
    counts = ", ".join(f"{part} {len(task.examples[part]):,}" for part in SPLITS)
    version = f" v{task.version}" if task.version else ""
    return f"{task.name}{version}, split {task.split}, format {task.format}: {counts}"


def show_tokens(tokenizer: Tokenizer, row: Tokens) -> Iterator[str]:
    """One row: tokens, ids, and `x` under every trained token."""
    ids = [*row.prompt_ids, *row.target_ids]
    shown = [token.replace("\n", "⏎") for token in tokenizer.convert_ids_to_tokens(ids)]
    trained = ["." for _ in row.prompt_ids] + ["x" for _ in row.target_ids]
    yield (
        f"{row.example.id}: {len(row.prompt_ids)} prompt + {len(row.target_ids)} answer "
        f"tokens{', text cut to fit' if row.was_cut else ''}"
    )
    yield "  tokens " + " ".join(shown)
    yield "  ids    " + " ".join(map(str, ids))
    yield "  loss   " + " ".join(trained)


def _named(path: Path) -> Path:
    """The file itself, or that of the built-in task or study of this name."""
    known = {**builtin_studies(), **builtin_tasks()}
    if str(path) not in known and not path.exists() and path.suffix != ".toml":
        raise ConfigError(
            f"{path}: no such file, and no built-in task or study.{did_you_mean(str(path), known)}"
        )
    return known.get(str(path), path)


def check_file(path: Path, changes: Sequence[str] = (), *, load: bool = False) -> Iterator[str]:
    """Checks a task, run or study file and all it names; yields what was found in order. Raises
    the first error.

    Without weights all is looked at that does not need them; with `load` the models are loaded
    too, and all is refused that a run refuses.
    """
    path = _named(path)
    given = beside(override(read_toml(path), changes), path.parent)
    if is_task_file(given):
        task = check_task(TaskChoice(name=str(path)))
        yield describe(task)
        yield from overlaps(task)
        yield "ok"
        return
    if "methods" in given:
        study = parse_study(given, str(path))
        configs = [cell.config for cell in expand(study)]
        yield f"study {study.name}: {len(configs)} configurations"
    else:
        configs = [parse(RunConfig, given, str(path))]
    tasks = {config.task: check_task(config.task) for config in configs}
    for task in tasks.values():
        yield describe(task)
        yield from overlaps(task)
    for choice in {config.model: None for config in configs}:
        own_configs = [config for config in configs if config.model == choice]
        yield from check_model(choice, own_configs, tasks, raise_it)
        yield from tokenizer_notes(
            resolve(choice), load_tokenizer(resolve(choice)), _lines_of(tasks.values())
        )
        if load:
            yield from _load(choice, own_configs)
    if not load:
        yield "the weights were not loaded: --load looks at what they do, too"
    yield "ok"


def _load(choice: ModelChoice, configs: Sequence[RunConfig]) -> Iterator[str]:
    for method, precision in {(config.method, config.train.precision): None for config in configs}:
        source = find_base(choice, method, precision)
        base = load_base(source)
        yield (
            f"model {choice.label} for {method}: loaded, its weights in {source.numerics.base}, "
            f"matmuls in {source.numerics.compute}, {source.device}"
        )
        if not look_of(base.model).cached:
            yield f"  note: {WITHOUT_CACHE}"
        if (said := why_eager(base.model, base.device, base.numerics, "auto")) is not None:
            yield f"  note: {said}"


def _lines_of(tasks: Iterable[Task], most: int = 1000) -> list[str]:
    """Prompts and answers of the tasks, at most so many."""
    lines = []
    for task in tasks:
        for example in task.examples["validation"][:most]:
            lines += [render(task.template, example), example.target]
    return list(dict.fromkeys(lines))[:most]


def next_command(path: Path) -> str:
    """What one does with a file that was found right."""
    given = read_toml(_named(path))
    if is_task_file(given):
        return (
            "name it under [[tasks]] in a study file (docs/tutorial.md), then: tsugiki study "
            "STUDY.toml"
        )
    return f"tsugiki study {path}" if "methods" in given else f"tsugiki run {path}"
