"""Looks before anything runs: rows as the model sees them, and a whole file checked with all it
names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tsugiki.config import ModelChoice, RunConfig, TaskChoice
from tsugiki.data.prompts import Tokens, check_tokenizer, render, tokenize
from tsugiki.data.tasks import SPLITS, Task, builtin_tasks, load_task, refuse_leak
from tsugiki.errors import ConfigError, TsugikiError, did_you_mean
from tsugiki.model.capture import why_plain
from tsugiki.model.export import import_adapter
from tsugiki.model.folder import resolve, stop_ids_of
from tsugiki.model.loading import (
    find_base,
    load_base,
    load_tokenizer,
    max_positions_of,
    num_parameters,
    pick_device,
    pick_numerics,
    read_model,
)
from tsugiki.model.look import WITHOUT_CACHE, look_of
from tsugiki.model.lora import adapted_places, detach
from tsugiki.model.tokenizers import tokenizer_notes
from tsugiki.score.metrics import check_ready
from tsugiki.study.cells import builtin_studies, expand, parse_study
from tsugiki.study.imported import adapter_checksum, other_base
from tsugiki.study.notes import leak_notes
from tsugiki.study.preflight import look_at_rows, rows_of
from tsugiki.toml import beside, is_task_file, override, parse, read_toml
from tsugiki.train.memory import refuse_no_room

Refuse = Callable[[TsugikiError, Sequence[RunConfig]], None]
"""What is done with an error and the configurations that it keeps from running."""


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


def show_tokens(tokenizer: Any, row: Tokens) -> Iterator[str]:
    """One row: pieces, ids, and `x` under every trained token."""
    ids = [*row.prompt_ids, *row.target_ids]
    pieces = [piece.replace("\n", "⏎") for piece in tokenizer.convert_ids_to_tokens(ids)]
    trained = ["." for _ in row.prompt_ids] + ["x" for _ in row.target_ids]
    yield (
        f"{row.example.id}: {len(row.prompt_ids)} prompt + {len(row.target_ids)} answer "
        f"tokens{', text cut to fit' if row.was_cut else ''}"
    )
    yield "  pieces " + " ".join(pieces)
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
        task = _check_task(TaskChoice(name=str(path)))
        yield describe(task)
        yield from overlaps(task)
        yield "ok"
        return
    if "methods" in given:
        study = parse_study(given, str(path))
        configs = [cell.config for cell in expand(study)]
        yield f"study {study.name}: {len(configs)} cells"
    else:
        configs = [parse(RunConfig, given, str(path))]
    tasks = {config.task: _check_task(config.task) for config in configs}
    for task in tasks.values():
        yield describe(task)
        yield from overlaps(task)
    for choice in {config.model: None for config in configs}:
        here = [config for config in configs if config.model == choice]
        yield from _check_model(choice, here, tasks, _raise)
        yield from tokenizer_notes(
            resolve(choice), load_tokenizer(resolve(choice)), _lines_of(tasks.values())
        )
        if load:
            yield from _load(choice, here)
    if not load:
        yield "the weights were not loaded: --load looks at what they do, too"
    yield "ok"


def _check_task(choice: TaskChoice) -> Task:
    """Loads a task and renders every prompt in every format."""
    task = load_task(choice)
    for part in ("validation", "test"):
        refuse_leak(task, task.files["train"], part)
    for template in task.spec.formats.values():
        for part in SPLITS:
            for example in task.examples[part]:
                render(template, example)
    check_ready(task.spec.metric)
    return task


def look_first(configs: Sequence[RunConfig]) -> dict[RunConfig, TsugikiError]:
    """Looks at every model, tokenizer, adapter, data file and scorer of a study before anything
    runs; what keeps which configuration from running."""
    refused: dict[RunConfig, TsugikiError] = {}

    def refuse(error: TsugikiError, affected: Sequence[RunConfig]) -> None:
        for config in affected:
            refused.setdefault(config, error)

    tasks: dict[TaskChoice, Task] = {}
    for choice in {config.task: None for config in configs}:
        with _refusing([config for config in configs if config.task == choice], refuse):
            tasks[choice] = _check_task(choice)
    for model in {config.model: None for config in configs}:
        left = [config for config in configs if config.model == model and config not in refused]
        with _refusing(left, refuse):
            for _ in _check_model(model, left, tasks, refuse):
                pass  # a run tells its notes itself
    return refused


def _raise(error: TsugikiError, affected: Sequence[RunConfig]) -> None:
    raise error


@contextmanager
def _refusing(affected: Sequence[RunConfig], refuse: Refuse) -> Iterator[None]:
    try:
        yield
    except TsugikiError as error:
        refuse(error, affected)


def _check_model(
    choice: ModelChoice,
    configs: Sequence[RunConfig],
    tasks: Mapping[TaskChoice, Task],
    refuse: Refuse,
) -> Iterator[str]:
    """Tokenizer, names and sizes of all tensors, LoRA targets, adapters, room for what is tuned in
    full, and every row as ids."""
    folder = resolve(choice)
    tokenizer = load_tokenizer(folder)
    model = read_model(folder, torch.float32, only_names=True)
    for config in {c.adapter: c for c in configs if c.adapter is not None}.values():
        with _refusing([one for one in configs if one.adapter == config.adapter], refuse):
            adapter_checksum(config)
            if (said := other_base(config)) is not None:
                yield f"  note: {said}"
            import_adapter(model, Path(str(config.adapter)))
            detach(model)
    for lora in {config.lora for config in configs if config.lora}:
        with _refusing([config for config in configs if config.lora == lora], refuse):
            adapted_places(model, lora)
    for precision in {config.train.precision for config in configs if config.method == "full"}:
        with _refusing(
            [
                config
                for config in configs
                if config.method == "full" and config.train.precision == precision
            ],
            refuse,
        ):
            refuse_no_room(
                num_parameters(model),
                pick_numerics("full", precision, pick_device()),
                pick_device(),
            )
    for config, alike in _by_rows(configs, max_positions_of(model.config)).items():
        with _refusing(alike, refuse):
            longest = min(config.train.max_length, max_positions_of(model.config))
            for note in _check_rows(
                folder,
                tokenizer,
                tasks[config.task],
                config,
                longest,
                model.get_input_embeddings().weight.shape[0],
            ):
                yield f"  note: {tasks[config.task].name}, {note}"
    yield (
        f"model {choice.label}: {len(tokenizer):,} pieces, {_ends_of(folder, tokenizer)}, "
        f"{num_parameters(model) / 1e6:,.1f} M parameters"
    )


def _by_rows(configs: Sequence[RunConfig], positions: int) -> dict[RunConfig, list[RunConfig]]:
    """One configuration of each kind of rows, with all that make the same ids."""
    found: dict[tuple[Any, ...], list[RunConfig]] = {}
    for config in configs:
        key = (
            config.task,
            min(config.train.max_length, positions),
            config.score.max_new_tokens,
            config.train.long_rows,
        )
        found.setdefault(key, []).append(config)
    return {alike[0]: alike for alike in found.values()}


def _load(choice: ModelChoice, configs: Sequence[RunConfig]) -> Iterator[str]:
    for method, precision in {(config.method, config.train.precision): None for config in configs}:
        source = find_base(choice, method, precision)
        base = load_base(source)
        yield (
            f"model {choice.label} for {method}: loaded, its weights in {source.numerics.base}, "
            f"products in {source.numerics.compute}, {source.device}"
        )
        if not look_of(base.model).cached:
            yield f"  note: {WITHOUT_CACHE}"
        if (said := why_plain(base.model, base.device, base.numerics, "auto")) is not None:
            yield f"  note: {said}"


def _ends_of(folder: Path, tokenizer: Any) -> str:
    ids = sorted({tokenizer.eos_token_id, *stop_ids_of(folder)})
    return (
        f"answers end at {' '.join(str(piece) for piece in tokenizer.convert_ids_to_tokens(ids))}"
    )


def _check_rows(
    folder: Path, tokenizer: Any, task: Task, config: RunConfig, longest: int, vocab_rows: int
) -> list[str]:
    left_out: list[str] = []
    rows = {
        part: rows_of(
            tokenizer,
            task,
            config,
            part,
            longest=longest,
            vocab_rows=vocab_rows,
            stops=stop_ids_of(folder),
            left_out=left_out,
        )
        for part in SPLITS
    }
    notes = look_at_rows(folder, tokenizer, task, rows, config, vocab_rows=vocab_rows)
    return (
        [*notes, f"train: {len(left_out)} rows do not fit into {longest} tokens and are left out"]
        if left_out
        else notes
    )


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
