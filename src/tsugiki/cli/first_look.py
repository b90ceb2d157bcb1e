"""What a command looks at and says before it loads torch: names and files that are not there are
refused at once, and whoever waits knows what for. No torch here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tsugiki.config.run import RunConfig, TaskChoice
from tsugiki.config.study import StudySpec
from tsugiki.data.sources import locate
from tsugiki.data.tasks import all_at_hand, builtin_tasks, files_of_split
from tsugiki.errors import ConfigError, TsugikiError, did_you_mean
from tsugiki.model.folder import local_folder
from tsugiki.model.width import known_width
from tsugiki.runs.request import run_config
from tsugiki.runs.store import Store
from tsugiki.study.cells import builtin_studies, expand, parse_study
from tsugiki.toml import Given, beside, is_task_file, override, read_toml
from tsugiki.words import Language, Message, say


def opening(what: str, language: Language) -> None:
    """The first line of a command that has to load torch or to compute, which takes seconds: on
    standard error, so that what it prints stays what it is."""
    print(say(language, "progress.starting", what=what), file=sys.stderr, flush=True)


def named_file(path: Path) -> Path:
    """The file itself, or that of the built-in task or study of this name."""
    known = {**builtin_studies(), **builtin_tasks()}
    if str(path) not in known and not path.exists() and path.suffix != ".toml":
        hint = did_you_mean(str(path), known)
        raise ConfigError(Message("error.neither_file_nor_name", path=path, hint=hint))
    return known.get(str(path), path)


def look_at_file(path: Path, changes: Sequence[str] = ()) -> None:
    """Raises what is wrong with a task, run or study file by its words alone: its keys and values,
    and tasks, data files and models that are not there."""
    path = named_file(path)
    given = beside(override(read_toml(path), changes), path.parent)
    if is_task_file(given):
        look_at_task(TaskChoice(name=str(path)))
    else:
        look_at_names(_configs(given, str(path)))


def _configs(given: Given, where: str) -> list[RunConfig]:
    if "methods" in given:
        return [cell.config for cell in expand(parse_study(given, where))]
    return [run_config(given, where, known_width)]


def look_at_names(configs: Iterable[RunConfig]) -> None:
    """Raises where the task, its data files or the model of one of these is not there."""
    configs = list(configs)
    for task in dict.fromkeys(config.task for config in configs):
        look_at_task(task)
    for model in dict.fromkeys(config.model for config in configs):
        local_folder(model)


def look_at_task(choice: TaskChoice) -> None:
    """Raises where a task, a version, split or format of it, or a data file that only this machine
    could have is not there."""
    files, folder = files_of_split(choice)
    root = Path(choice.data_dir) if choice.data_dir else None
    for file in files.values():
        if file is None or not file.path or file.url or file.hub:
            continue
        if not ((root or folder) / file.path).exists():
            locate(file, folder, root)  # which says what is missing


def not_here(configs: Iterable[RunConfig]) -> str | None:
    """The first model or data file that would have to be fetched, or is nowhere; None where all is
    on this machine."""
    for model in dict.fromkeys(config.model for config in configs):
        if local_folder(model) is None:
            return model.path
    for choice in dict.fromkeys(config.task for config in configs):
        try:
            look_at_task(choice)
        except TsugikiError as broken:
            return broken.message
        if not all_at_hand(choice):
            return choice.label
    return None


def look_at_study(study: StudySpec, store: Store) -> None:
    """Raises the first reason where nothing of a study can run, as `run_study` would after loading
    torch. What keeps some of it from running is a row of its report; and so is all of it where runs
    of an earlier day are there to report."""
    configs = list({(cell.task, cell.model): cell.config for cell in expand(study)}.values())
    refused = list[TsugikiError]()
    for config in configs:
        try:
            look_at_names([config])
        except TsugikiError as broken:
            refused.append(broken)
        else:
            return
    kept = {(record.config.task.name, record.known_as.path) for record in store.records()}
    if refused and not any((each.task.name, each.model.path) in kept for each in configs):
        raise refused[0]
