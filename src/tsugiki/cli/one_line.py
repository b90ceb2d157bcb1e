"""`tsugiki study --model MODEL --task rows.csv`: the task and study files that it stands for,
written into the current folder so that they can be read, changed and run again. No torch here."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tsugiki.config.run import ModelChoice
from tsugiki.data.new_task import Columns, columns_of, quoted, task_text
from tsugiki.data.rows import is_data
from tsugiki.data.task_file import PARTS, RATIO, read_task, stem_of
from tsugiki.data.tasks import builtin_tasks, find_task
from tsugiki.errors import ConfigError, DataError, did_you_mean
from tsugiki.files import write_atomically
from tsugiki.model.folder import resolve
from tsugiki.score.power import least_detected, rows_needed
from tsugiki.study.cells import builtin_studies
from tsugiki.study.plan import assumed_pilot
from tsugiki.words import Message

MARGIN, POWER = 2.0, 0.8  # of the study that is written
LIKE = "recommended"  # the built-in study whose training and methods it takes


def new_task_file(
    data: Path,
    to: Path | None = None,
    fields: Sequence[str] = (),
    target: str | None = None,
) -> tuple[Path, list[str]]:
    """Writes the task file of a data file; (where, lines of what was found).

    Raises:
        ConfigError: a file of this name is there.
        DataError: the data cannot be read, or their columns do not say what is asked.
    """
    path = to or Path(f"{stem_of(data)}.toml")
    if path.suffix != ".toml":
        raise ConfigError(f"{path}: a task file ends in .toml")
    if path.exists():
        raise ConfigError(Message("error.is_there", path=path))
    columns = columns_of(data, fields, target)
    write_atomically(path, task_text(columns, path.parent).encode())
    read_task(path)  # what was written is a task, or it is our fault
    return path, list(said_of(columns))


def said_of(columns: Columns) -> Iterator[str]:
    """What was found in a data file, in lines."""
    names = ", ".join(columns.names)
    yield Message("terminal.columns", path=columns.path, rows=columns.rows, names=names)
    for note in columns.notes:
        yield Message("check.note", note=note)
    if columns.formatting is not None:
        yield Message("terminal.formatted", formatting=columns.formatting)
        return
    answer = {"target": columns.target, "fields": ", ".join(columns.fields)}
    if columns.labels:
        labels = ", ".join(columns.labels)
        count = len(columns.labels)
        yield Message("terminal.answer_labels", labels=labels, count=count, **answer)
    else:
        yield Message("terminal.answer_text", **answer)
    yield Message("terminal.other_columns")


def enough_of(columns: Columns) -> Iterator[str]:
    """Whether so many rows can be split, and which differences of two methods the test part will
    show; before anything was answered."""
    ends = [0, *(round(share / sum(RATIO) * columns.rows) for share in itertools.accumulate(RATIO))]
    parts = dict(zip(PARTS, (end - start for start, end in itertools.pairwise(ends)), strict=True))
    if not all(parts.values()):
        yield Message("data_file.too_few", rows=columns.rows)
        return
    yield Message("data_file.split", **parts)
    pilot = assumed_pilot(bool(columns.labels))
    least = least_detected(pilot, parts["test"], 1, POWER)
    needed = rows_needed(pilot, 1, MARGIN / 100, POWER, "detect")
    assert needed is not None, "between two runs some number of rows suffices"
    key = "data_file.enough" if least <= MARGIN / 100 else "data_file.not_enough"
    assumed = "data_file.assumed_labels" if columns.labels else "data_file.assumed_scores"
    yield Message(
        key,
        test=parts["test"],
        points=100 * least,
        margin=MARGIN,
        needed=round(needed, -2),
        power=POWER,
        assumed=Message(assumed),
    )


def write_study(models: Sequence[str], tasks: Sequence[str]) -> tuple[Path, list[str]]:
    """Writes the study of these models on these tasks (names, task files or data files), and a task
    file for each data file; (the study file, lines of what was written).

    Raises:
        ConfigError: another study of this name is there, or there is no such task.
    """
    if not models or not tasks:
        raise ConfigError(Message("error.model_and_task"))
    lines, named = list[str](), list[str]()
    for task in tasks:
        named.append(_task_of(task, lines))
    path = Path(f"{Path(named[0]).stem}-study.toml")
    text = study_text(models, named)
    if not path.exists():
        write_atomically(path, text.encode())
        lines.append(Message("terminal.study_written", path=path))
    elif path.read_text(encoding="utf-8") == text:
        lines.append(Message("terminal.there_same", path=path))
    else:
        raise ConfigError(Message("error.other_study", path=path))
    return path, lines


def _task_of(task: str, lines: list[str]) -> str:
    """The name of a task for a study file; of a data file its task file is made."""
    if task in builtin_tasks() or Path(task).suffix == ".toml":
        find_task(task)
        return task
    if not is_data(Path(task)):
        hint = did_you_mean(task, builtin_tasks())
        raise ConfigError(Message("error.no_task_or_data", name=task, hint=hint))
    path = Path(f"{stem_of(Path(task))}.toml")
    if path.exists():
        read_task(path)
        lines.append(Message("terminal.there_used", path=path))
        return str(path)
    if not Path(task).exists():
        raise DataError(Message("error.no_file", path=task))
    path, said = new_task_file(Path(task))
    lines += [*said, Message("terminal.task_written", path=path)]
    return str(path)


def study_text(models: Sequence[str], tasks: Sequence[str]) -> str:
    """A study file: these models and tasks under the built-in study's training and methods."""
    like = builtin_studies()[LIKE].read_text(encoding="utf-8")
    training, rest = like[like.index("[train]") :].split("\n[[models]]", 1)
    methods = rest[rest.index("[[methods]]") :]
    folders = [resolve(ModelChoice(path=model)) for model in models]
    name = Path(tasks[0]).stem
    head = [
        "# Written by tsugiki study --model … --task …; change what is not meant, and run it with",
        f"#   tsugiki study {name}-study.toml",
        f"name = {quoted(name)}",
        f"title = {quoted(name)}",
        "seeds = 3                        # the chosen configurations are trained so many times",
        f"margin = {MARGIN:g}                       # points within which methods count as equal",
        f"power = {POWER}                      # how many rows and seeds that takes is said first",
        "",
    ]
    named = [f"[[models]]\npath = {quoted(model)}\n" for model in models]
    chat = all(_has_template(folder) for folder in folders)
    form = '\nformat = "chat"                  # the model\'s own template' if chat else ""
    listed = [f"[[tasks]]\nname = {quoted(task)}{form}\n" for task in tasks]
    return "\n".join([*head, training, *named, *listed, methods])


def _has_template(folder: Path) -> bool:
    """Whether a model says itself how it is spoken to."""
    if (folder / "chat_template.jinja").exists():
        return True
    settings = folder / "tokenizer_config.json"
    try:
        return bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False  # what is wrong with it is said when it is loaded
