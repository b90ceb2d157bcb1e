"""Looks at every model, tokenizer, adapter, data file and scorer before anything runs: for a
study, and for `tsugiki check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tsugiki.config.run import ModelChoice, RunConfig, TaskChoice
from tsugiki.data.leaks import refuse_leak
from tsugiki.data.prompts import Tokens, render
from tsugiki.data.tasks import SPLITS, Task, load_task
from tsugiki.data.tokenizer import Tokenizer
from tsugiki.errors import TsugikiError
from tsugiki.model.folder import resolve, stop_ids_of
from tsugiki.model.loading import check_base, load_tokenizer, max_positions_of, num_parameters
from tsugiki.runs.answering import Answering
from tsugiki.runs.methods import method_of
from tsugiki.runs.preflight import longest_of
from tsugiki.score.metrics import check_ready
from tsugiki.study.fitting import Device, device_for, fits_of, fits_text
from tsugiki.study.fitting import refuse as refuse_what_does_not_fit
from tsugiki.words import Message

Refuse = Callable[[TsugikiError, Sequence[RunConfig]], None]
"""What is done with an error and the configurations that it keeps from running."""


def check_task(choice: TaskChoice) -> Task:
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
            tasks[choice] = check_task(choice)
    for of_model in by_model(configs):
        left = [config for config in of_model if config not in refused]
        with _refusing(left, refuse):
            for _ in check_model(left, tasks, refuse) if left else ():
                pass  # a run tells its notes itself
    return refused


def by_model(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Configurations by their model and how it is read."""
    kinds: dict[tuple[ModelChoice, Answering], list[RunConfig]] = {}
    for config in configs:
        kinds.setdefault((config.model, method_of(config).answering), []).append(config)
    return list(kinds.values())


def raise_it(error: TsugikiError, affected: Sequence[RunConfig]) -> None:
    raise error


@contextmanager
def _refusing(affected: Sequence[RunConfig], refuse: Refuse) -> Iterator[None]:
    try:
        yield
    except TsugikiError as error:
        refuse(error, affected)


def check_model(
    configs: Sequence[RunConfig],
    tasks: Mapping[TaskChoice, Task],
    refuse: Refuse,
    device: Device | None = None,
) -> Iterator[str]:
    """Of configurations that read one model alike: tokenizer, names and sizes of all tensors, LoRA
    targets, adapters, every row as ids, and what training holds on a device (default: this
    machine's)."""
    choice, answering = configs[0].model, method_of(configs[0]).answering
    folder, device = resolve(choice), device or device_for(None)
    check_base(choice, folder)
    tokenizer = load_tokenizer(folder)
    model = answering.read(folder)
    passed: list[RunConfig] = []
    for config, alike in _by_look(configs).items():
        with _refusing(alike, refuse):
            for note in method_of(config).look(model, config):
                yield Message("check.note", note=note)
            passed += alike
    positions = max_positions_of(model.config)
    for config, alike in _by_rows(configs, positions).items():
        with _refusing(alike, refuse):
            longest, task = longest_of(config, positions), tasks[config.task]
            room = model.get_input_embeddings().weight.shape[0]
            rows, notes = _check_rows(folder, tokenizer, task, config, longest, room)
            for note in notes:
                yield Message("check.note_of", task=task.name, note=note)
            counted = [each for each in alike if each in passed]
            for fits in fits_of(model, counted, rows["train"], device):
                with _refusing(fits.configs, refuse):
                    refuse_what_does_not_fit(fits, device)
                    yield Message("check.of_task", task=task.name, line=fits_text(fits, device))
    size = num_parameters(model)
    each = 4 if any(method_of(config).moves_base for config in configs) else 2
    yield Message(
        "check.model",
        model=choice.label,
        tokens=len(tokenizer),
        ends=answering.ends(tokenizer, stop_ids_of(folder)),
        millions=size / 1e6,
        gib=each * size / 2**30,
    )


def _by_look(configs: Sequence[RunConfig]) -> dict[RunConfig, list[RunConfig]]:
    """One configuration of each kind that a method looks at, with all that agree in it."""
    alike: dict[tuple[str, object], list[RunConfig]] = {}
    for config in configs:
        method = method_of(config)
        alike.setdefault((type(method).__name__, method.looks_at(config)), []).append(config)
    return {group[0]: group for group in alike.values()}


def _by_rows(configs: Sequence[RunConfig], positions: int) -> dict[RunConfig, list[RunConfig]]:
    """One configuration of each kind of rows, with all that make the same ids."""
    alike: dict[tuple[object, ...], list[RunConfig]] = {}
    for config in configs:
        key = (
            config.task,
            longest_of(config, positions),
            config.score.max_new_tokens,
            config.train.long_rows,
        )
        alike.setdefault(key, []).append(config)
    return {group[0]: group for group in alike.values()}


def _check_rows(
    folder: Path, tokenizer: Tokenizer, task: Task, config: RunConfig, longest: int, vocab_rows: int
) -> tuple[dict[str, list[Tokens]], list[str]]:
    """The rows of every part, and what is to be said of them."""
    left_out: list[str] = []
    answering = method_of(config).answering
    rows = {
        part: answering.rows(
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
    notes = answering.look_at_rows(folder, tokenizer, task, rows, config, vocab_rows=vocab_rows)
    if left_out:
        notes.append(Message("note.left_out_count", count=len(left_out), longest=longest))
    return rows, notes
