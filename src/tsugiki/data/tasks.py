"""Tasks: a data file in TOML becomes `Example`s, split by name. Built-in tasks and the user's
share one format.

The pieces: `find_task` reads the task file, `load_task` brings its data files and cuts the splits.
A split never mixes: validation and test halves of one file are disjoint, and the files a run
trained on are on record so that it can refuse to be scored on them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import regex

from tsugiki.config.run import TaskChoice
from tsugiki.config.task import FileSpec, PartSpec, TaskSpec
from tsugiki.data.conversations import conversation, open_turn
from tsugiki.data.example import Example, equal_candidates
from tsugiki.data.formatting import as_ours
from tsugiki.data.rows import found_encoding, read_rows
from tsugiki.data.sources import at_hand, git_blob_of, locate
from tsugiki.data.splits import rows_of_part, stretch_of
from tsugiki.data.task_file import read_task
from tsugiki.data.text import as_text
from tsugiki.errors import DataError, did_you_mean
from tsugiki.words import Message

PRESETS = Path(__file__).parent.parent / "presets" / "tasks"
CHAT = "chat"  # the format of every task that says its text through the model's chat template
SPLITS = ("train", "validation", "test")
DRAWN_WITH = 20230313  # the seed of every sample of rows: train_rows, eval_rows, what is watched
PATTERN_S = 1.0  # a pattern that takes longer for one row runs away


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task with its data: the examples of every split, and the git blob id of every file they
    came from."""

    spec: TaskSpec
    version: str | None
    split: str
    format: str
    examples: Mapping[str, Sequence[Example]]
    files: Mapping[str, Mapping[str, str]]
    notes: Sequence[str] = ()  # of how its files were read

    @property
    def template(self) -> str:
        formats = self.spec.formats  # `chat` says a plain format's text as the user's message
        return formats.get(self.format) or formats.get("plain") or formats[self.spec.default_format]

    @property
    def name(self) -> str:
        return self.spec.name


def called_part(name: str) -> str:
    """A part of a task as a reader calls it."""
    return Message(f"progress.{name}_part")


def builtin_tasks() -> dict[str, Path]:
    return {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}


def find_task(name: str, data_dir: str | None = None) -> tuple[TaskSpec, Path]:
    """The task file of a built-in name or a path, and the folder its data paths start from."""
    known = builtin_tasks()
    if name in known:
        return read_task(known[name]), known[name].parent
    path = Path(name)
    if path.suffix == ".toml":
        return read_task(path, Path(data_dir) if data_dir else None), path.parent
    raise DataError(Message("error.no_task", name=name, hint=did_you_mean(name, known)))


def version_at_hand(choice: TaskChoice, version: str) -> bool:
    """Whether every file of a version of the data is on this machine, so that nothing would be
    fetched."""
    return all_at_hand(choice.model_copy(update={"version": version}))


def all_at_hand(choice: TaskChoice) -> bool:
    """The same of the version that is chosen."""
    files, folder = files_of_split(choice)
    data_dir = Path(choice.data_dir) if choice.data_dir else None
    return all(file is not None and at_hand(file, folder, data_dir) for file in files.values())


def files_of_split(choice: TaskChoice) -> tuple[dict[str, FileSpec | None], Path]:
    """The data files that the chosen split is cut from, by name (None for one that the task file
    does not have), and the folder that their paths start from. Raises as `task_without_data`."""
    task, folder = _chosen_task(choice)
    parts, files = task.spec.splits[task.split], _files(task)
    names = [name for part in SPLITS for name in getattr(parts, part).files]
    return {name: files.get(name) for name in names}, folder


def _files(task: Task) -> dict[str, FileSpec]:
    """Those of the chosen version."""
    return {**task.spec.files, **(task.spec.versions[task.version] if task.version else {})}


def _pick(given: str | None, default: str, known: Mapping[str, Any], what: str, task: str) -> str:
    name = given or default
    if name not in known:
        hint = did_you_mean(name, known)
        raise DataError(Message(f"error.no_{what}", task=task, name=name, hint=hint))
    return name


def task_without_data(choice: TaskChoice) -> Task:
    """The task as it is chosen: version, split and format, and no examples. Raises `DataError` for
    a name that the task file does not have."""
    return _chosen_task(choice)[0]


def _chosen_task(choice: TaskChoice) -> tuple[Task, Path]:
    """With the folder that its data paths start from."""
    spec, folder = find_task(choice.name, choice.data_dir)
    split = _pick(choice.split, spec.default_split, spec.splits, "split", spec.name)
    format_name = _pick(
        choice.format, spec.default_format, {CHAT: "", **spec.formats}, "format", spec.name
    )
    version = None
    if spec.versions:
        version = _pick(
            choice.version, spec.default_version or "", spec.versions, "version", spec.name
        )
    elif choice.version:
        raise DataError(f'task "{spec.name}": has no versions; remove version = "{choice.version}"')
    task = Task(spec=spec, version=version, split=split, format=format_name, examples={}, files={})
    return task, folder


def load_task(choice: TaskChoice) -> Task:
    """Brings the data and cuts the chosen split.

    Raises:
        DataError: naming file and row of the first mistake: a missing field, an unknown label, an
            empty split.
    """
    task, folder = _chosen_task(choice)
    spec, split = task.spec, task.split
    files = _files(task)
    data_dir = Path(choice.data_dir) if choice.data_dir else None
    loaded: dict[str, tuple[list[Example], str]] = {}
    notes = list[str]()

    def load(name: str) -> tuple[list[Example], str]:
        if name not in loaded:
            loaded[name] = _load_file(spec, _file(files, name, spec.name), folder, data_dir, notes)
        return loaded[name]

    parts = spec.splits[split]
    examples: dict[str, Sequence[Example]] = {}
    origins: dict[str, dict[str, str]] = {}
    for part_name in SPLITS:
        part: PartSpec = getattr(parts, part_name)
        rows = [row for name in part.files for row in load(name)[0]]
        rows = rows_of_part(rows, part, spec)
        limit = choice.train_rows if part_name == "train" else choice.eval_rows
        if limit and limit < len(rows):
            rows = drawn(rows, limit)  # never the first ones: files are often sorted
        if not rows:
            paths = ", ".join(
                str(files[name].path or files[name].url or files[name].hub_file)
                for name in part.files
            )
            named = {"task": spec.name, "split": split, "part": part_name, "files": paths}
            raise DataError(Message("error.empty_part", **named))
        if part_name != "train":
            _refuse_equal_candidates(spec, part_name, rows)
        examples[part_name] = rows
        origins[part_name] = {name: f"{load(name)[1]}{stretch_of(part)}" for name in part.files}
    return replace(task, examples=examples, files=origins, notes=tuple(notes))


def drawn(rows: Sequence[Any], limit: int) -> list[Any]:
    """`limit` of the rows, by a fixed seed."""
    return random.Random(DRAWN_WITH).sample(rows, limit)


def few_shots(task: Task, count: int, seed: int) -> list[Example]:
    """So many training rows, drawn by the seed: worked examples before a prompt. The first ones of
    a larger number are those of a smaller one."""
    rows = list(task.examples["train"])
    random.Random(f"shots:{seed}").shuffle(rows)
    if count > len(rows):
        raise DataError(
            f'task "{task.name}": shots = {count}, but it has {len(rows)} training rows'
        )
    return rows[:count]


def _file(files: Mapping[str, FileSpec], name: str, task: str) -> FileSpec:
    if name not in files:
        raise DataError(
            f'task "{task}": a split names the file "{name}", which is not under '
            f"[files].{did_you_mean(name, files)}"
        )
    return files[name]


def _load_file(
    spec: TaskSpec, file: FileSpec, folder: Path, data_dir: Path | None, notes: list[str]
) -> tuple[list[Example], str]:
    path = locate(file, folder, data_dir)
    encoding = file.encoding
    if encoding is None:
        encoding, said = found_encoding(path)
        notes += said
    build = _builder(spec, spec.group if file.has_group else None)
    rows = [
        (number, as_ours(row, spec.formatting, f"{path} row {number}"))
        for number, row in read_rows(path, encoding)
    ]
    if file.rows and len(rows) != file.rows:
        raise DataError(Message("error.row_count", path=path, wanted=file.rows, rows=len(rows)))
    if spec.messages is not None:
        examples = [
            turn
            for number, row in rows
            for turn in conversation(f"{path} row {number}", f"{path.stem}:{number}", row, spec)
        ]
    else:
        examples = [
            build(f"{path} row {number}", f"{path.stem}:{number}", row) for number, row in rows
        ]
    return examples, git_blob_of(path)


def unanswered(
    spec: TaskSpec, rows: Iterable[tuple[int, Mapping[str, Any]]], source: str
) -> list[Example]:
    """Rows that are to be answered, named by their numbers: neither a target, an id nor a group is
    asked for. A target that stands there is read; else it is empty.

    Raises:
        DataError: naming the row, as `load_task` does.
    """
    rows = [
        (number, as_ours(row, spec.formatting, f"{source} row {number}")) for number, row in rows
    ]
    if spec.messages is not None:
        return [open_turn(f"{source} row {number}", str(number), row, spec) for number, row in rows]
    build = _builder(spec.model_copy(update={"id": None}), None, answered=False)
    return [build(f"{source} row {number}", str(number), row) for number, row in rows]


def _builder(
    spec: TaskSpec, group_field: str | None, *, answered: bool = True
) -> Callable[[str, str, Mapping[str, Any]], Example]:
    pattern = regex.compile(spec.group_pattern)

    def build(where: str, number: str, row: Mapping[str, Any]) -> Example:
        def take(name: str, *, label: bool = False) -> str:
            if name not in row or row[name] is None:
                hint = did_you_mean(name, row)
                raise DataError(Message("error.no_field", where=where, name=name, hint=hint))
            try:
                return as_text(row[name], label=label)
            except ValueError as said:
                bad = {"name": name, "reason": said.args[0]}
                raise DataError(Message("error.bad_field", where=where, **bad)) from None

        fields = {name: take(name) for name in spec.fields}
        if not any(value.strip() for value in fields.values()):
            names = ", ".join(fields)
            raise DataError(Message("error.empty_fields", where=where, fields=names))
        if spec.cut and spec.cut_chars:
            fields[spec.cut] = fields[spec.cut][: spec.cut_chars]
        candidates: tuple[str, ...] = ()
        known = answered or row.get(spec.target) not in (None, "")
        target = take(spec.target, label=bool(spec.labels)) if known else ""
        if spec.kind == "classification":
            candidates = spec.fixed_answers
            if known and target not in spec.labels:
                hint = did_you_mean(target, spec.labels)
                raise DataError(
                    Message("error.unknown_label", where=where, label=target, hint=hint)
                )
            target = spec.labels[target] if known else ""
        elif spec.kind == "choice":
            candidates = tuple(take(name) for name in spec.choices)
            target = _chosen(where, target, candidates) if known else ""
        if answered and not target.strip():
            raise DataError(Message("error.empty_answer", where=where, field=spec.target))
        group = take(group_field) if group_field else number
        match = _matched(pattern, group, where) if group_field else None
        name = take(spec.id) if spec.id else number
        return Example(
            id=name,
            fields=fields,
            target=target,
            candidates=candidates,
            group=match.group(1) if match else group,
        )

    return build


def _matched(pattern: Any, text: str, where: str) -> Any:
    try:
        return pattern.match(text, timeout=PATTERN_S)
    except TimeoutError:
        raise DataError(
            f"{where}: group_pattern “{pattern.pattern}” ran for more than {PATTERN_S:g} s on "
            f"“{text[:40]}”. Write one without nested repeats"
        ) from None


def _refuse_equal_candidates(spec: TaskSpec, part: str, rows: Sequence[Example]) -> None:
    """Raises `DataError` where a wrong answer would count as the right one. (In training it does
    no harm: `runs/preflight` counts it.)"""
    for row in rows if spec.closed else ():
        pair = equal_candidates(row)
        if pair is not None and pair[0] == row.target:
            raise DataError(
                f'task "{spec.name}" {part} row {row.id}: the candidates “{pair[0]}” and '
                f"“{pair[1]}” are the same after normalisation (NFKC, spaces), "
                "so the wrong one would count as right. Change one of them"
            )


def _chosen(where: str, target: str, candidates: tuple[str, ...]) -> str:
    """The right candidate, given as an index from 0 or as its text."""
    by_index = (
        candidates[int(target)]
        if target.isdecimal() and len(target) < 5 and int(target) < len(candidates)
        else None
    )
    if target in candidates:
        if by_index is not None and by_index != target:
            both = {"label": target, "other": by_index}
            raise DataError(Message("error.candidate_or_index", where=where, **both))
        return target
    if by_index is not None:
        return by_index
    known = ", ".join(candidates)
    raise DataError(Message("error.no_candidate", where=where, label=target, candidates=known))


# Fields of a task file that came after the first runs were kept: unset, they are left out of the
# digest, so that runs keep their names. A new field belongs here.
ADDED_LATER = ("messages", "formatting")
ADDED_TO_PARTS = ("share", "seed")


def task_digest(task: Task) -> str:
    """sha256 of everything in the task file that decides prompts, answers or scores (not titles,
    citations or paths)."""
    words = {
        "title",
        "citation",
        "licence",
        "files",
        "versions",
        "default_version",
        "default_split",
        "default_format",
    }
    content = task.spec.model_dump(mode="json", exclude=words) | {
        "split": task.split,
        "format": task.format,
        "version": task.version,
    }
    for name in ADDED_LATER:
        if content[name] == TaskSpec.model_fields[name].default:
            del content[name]
    for split in content["splits"].values():
        for part in SPLITS:
            if split[part]["share"] is None:
                split[part] = {k: v for k, v in split[part].items() if k not in ADDED_TO_PARTS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
