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
from tsugiki.report.words import Language, say
from tsugiki.score.power import least_detected, rows_needed
from tsugiki.study.cells import builtin_studies
from tsugiki.study.plan import assumed_pilot

MARGIN, POWER = 2.0, 0.8  # of the study that is written
LIKE = "recommended"  # the built-in study whose training and methods it takes
# Its rates are those of models of 1B and more; small ones want larger ones (docs/results.md).
SMALL_BYTES = 400e6
RATES = {
    "[2e-4, 5e-4, 1e-3]": "[5e-4, 1e-3, 2e-3]",
    "[1e-5, 2e-5, 5e-5]": "[5e-5, 1e-4, 2e-4]",
}


def new_task_file(
    data: Path,
    to: Path | None = None,
    fields: Sequence[str] = (),
    target: str | None = None,
    language: Language = "en",
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
        raise ConfigError(f"{path}: is there already. Name another file with --to, or move it away")
    columns = columns_of(data, fields, target)
    write_atomically(path, task_text(columns, path.parent).encode())
    read_task(path)  # what was written is a task, or it is our fault
    return path, list(said_of(columns, language))


def said_of(columns: Columns, language: Language = "en") -> Iterator[str]:
    """What was found in a data file, in lines."""
    names = ", ".join(columns.names)
    yield say(language, "data_file.rows", path=columns.path, rows=columns.rows, columns=names)
    for note in columns.notes:
        yield say(language, "check.note", note=note)
    if columns.formatting is not None:
        yield say(language, "data_file.formatting", formatting=columns.formatting)
        return
    labels = {"count": len(columns.labels), "labels": ", ".join(columns.labels)}
    answer = say(language, "data_file.labels", **labels) if columns.labels else None
    yield say(
        language,
        "data_file.answer",
        target=columns.target,
        answer=answer or say(language, "data_file.free_text"),
        fields=", ".join(columns.fields),
    )
    yield say(language, "data_file.others")


def enough_of(columns: Columns, language: Language) -> Iterator[str]:
    """Whether so many rows can be split, and which differences of two methods the test part will
    show; before anything was answered."""
    ends = [0, *(round(share / sum(RATIO) * columns.rows) for share in itertools.accumulate(RATIO))]
    parts = dict(zip(PARTS, (end - start for start, end in itertools.pairwise(ends)), strict=True))
    if not all(parts.values()):
        yield say(language, "data_file.too_few", rows=columns.rows)
        return
    yield say(language, "data_file.split", **parts)
    pilot = assumed_pilot(bool(columns.labels))
    least = least_detected(pilot, parts["test"], 1, POWER)
    needed = rows_needed(pilot, 1, MARGIN / 100, POWER, "detect")
    assert needed is not None, "between two runs some number of rows suffices"
    key = "data_file.enough" if least <= MARGIN / 100 else "data_file.not_enough"
    assumed = "data_file.assumed_labels" if columns.labels else "data_file.assumed_scores"
    yield say(
        language,
        key,
        test=parts["test"],
        points=100 * least,
        margin=MARGIN,
        needed=round(needed, -2),
        power=POWER,
        assumed=say(language, assumed),
    )


def write_study(
    models: Sequence[str], tasks: Sequence[str], language: Language = "en"
) -> tuple[Path, list[str]]:
    """Writes the study of these models on these tasks (names, task files or data files), and a task
    file for each data file; (the study file, lines of what was written).

    Raises:
        ConfigError: another study of this name is there, or there is no such task.
    """
    if not models or not tasks:
        raise ConfigError(
            "study: name a study file, or both --model MODEL and --task TASK (a data file, a task "
            "file, or a built-in task)"
        )
    lines, named = list[str](), list[str]()
    for task in tasks:
        named.append(_task_of(task, lines, language))
    path = Path(f"{Path(named[0]).stem}-study.toml")
    text = study_text(models, named)
    if not path.exists():
        write_atomically(path, text.encode())
        lines.append(f"{path}: written: what is compared, how it is trained")
    elif path.read_text(encoding="utf-8") == text:
        lines.append(f"{path}: is there already, the same")
    else:
        raise ConfigError(
            f"{path}: is there already, and says something else. Run it with: tsugiki study "
            f"{path}; or move it away"
        )
    return path, lines


def _task_of(task: str, lines: list[str], language: Language) -> str:
    """The name of a task for a study file; of a data file its task file is made."""
    if task in builtin_tasks() or Path(task).suffix == ".toml":
        find_task(task)
        return task
    if not is_data(Path(task)):
        raise ConfigError(
            f'task "{task}": no such task, and no data file.{did_you_mean(task, builtin_tasks())}'
        )
    path = Path(f"{stem_of(Path(task))}.toml")
    if path.exists():
        read_task(path)
        lines.append(f"{path}: is there already, used as it is")
        return str(path)
    if not Path(task).exists():
        raise DataError(f"{task}: no such file")
    path, said = new_task_file(Path(task), language=language)
    lines += [*said, f"{path}: written: which column is the answer, how rows are split"]
    return str(path)


def study_text(models: Sequence[str], tasks: Sequence[str]) -> str:
    """A study file: these models and tasks under the built-in study's training and methods."""
    like = builtin_studies()[LIKE].read_text(encoding="utf-8")
    training, rest = like[like.index("[train]") :].split("\n[[models]]", 1)
    methods = rest[rest.index("[[methods]]") :]
    folders = [resolve(ModelChoice(path=model)) for model in models]
    if all(_weight_bytes(folder) < SMALL_BYTES for folder in folders):
        for large, small in RATES.items():
            methods = methods.replace(large, small)
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


def _weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _has_template(folder: Path) -> bool:
    """Whether a model says itself how it is spoken to."""
    if (folder / "chat_template.jinja").exists():
        return True
    settings = folder / "tokenizer_config.json"
    try:
        return bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False  # what is wrong with it is said when it is loaded
