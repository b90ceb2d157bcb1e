"""A task file for a data file: which column is answered, from which, and all that follows from
it, written down so that its owner can read and change it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.config.task import Formatting
from tsugiki.data.formatting import READS, as_ours, formatting_of
from tsugiki.data.rows import found_encoding, read_rows
from tsugiki.data.task_file import are_labels, default_prompt, name_of, stem_of, values_of
from tsugiki.errors import DataError, did_you_mean
from tsugiki.words import Message

# What the column with the answers is called, where nobody says.
TARGETS = (
    "label", "labels", "target", "answer", "output", "class", "category", "sentiment", "summary",
    "ラベル", "正解", "答え", "回答", "出力", "分類", "カテゴリ", "カテゴリー", "評価", "要約",
)  # fmt: skip
NUMBERS = ("id", "no", "no.", "index", "番号", "通番", "連番")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a data file holds, and what a task reads of it. `labels` are empty where answers are
    free text."""

    path: Path
    rows: int
    names: tuple[str, ...]
    fields: tuple[str, ...]
    target: str
    labels: tuple[str, ...]
    formatting: Formatting | None
    notes: tuple[str, ...]


def columns_of(path: Path, fields: Sequence[str] = (), target: str | None = None) -> Columns:
    """Looks at every row of a data file.

    Raises:
        DataError: it cannot be read, has no rows, or which column is the answer's cannot be told.
    """
    if not path.exists():
        raise DataError(Message("error.no_file", path=path))
    encoding, notes = found_encoding(path)
    rows = [row for _, row in read_rows(path, encoding)]
    if not rows:
        raise DataError(Message("error.no_row", path=path))
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    for name in (*fields, *([target] if target else [])):
        if name not in names:
            hint = did_you_mean(name, names)
            raise DataError(Message("error.no_column", path=path, name=name, hint=hint))
    formatting = None if fields or target else formatting_of(names)
    if formatting is not None:
        rows = [dict(as_ours(row, formatting, str(path))) for row in rows]
        reads = READS[formatting]
        read, target = tuple(reads.get("fields", ())), reads.get("target", "")
    else:
        target = target or _target(path, names, rows, fields)
        read = tuple(fields) or _fields(names, rows, target)
    if target and not read:
        raise DataError(Message("error.no_column_left", path=path, name=target))
    answers = _texts(rows, target) if target else []
    labels = sorted(set(answers)) if are_labels(answers) and formatting is None else []
    return Columns(
        path=path,
        rows=len(rows),
        names=names,
        fields=read,
        target=target,
        labels=tuple(labels),
        formatting=formatting,
        notes=tuple(notes),
    )


def _texts(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """What is no text (an object, a list, nothing) is named by row when it is run."""
    return [text for text in values_of(rows, name) if text.strip()]


def _target(
    path: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]], fields: Sequence[str]
) -> str:
    """The column that is called so, else the only one whose values come again as labels do."""
    left = [name for name in names if name not in fields]
    called = [name for name in left if name.strip().lower() in TARGETS]
    few = [name for name in left if are_labels(_texts(rows, name))]
    for candidates in (called, few, left):
        if len(candidates) == 1:
            return candidates[0]
    raise DataError(Message("error.which_column", path=path, names=", ".join(names)))


def _fields(
    names: Sequence[str], rows: Sequence[Mapping[str, Any]], target: str
) -> tuple[str, ...]:
    """All columns but the answer's and those that only number the rows."""
    return tuple(
        name for name in names if name != target and not _numbers_rows(name, _texts(rows, name))
    )


def _numbers_rows(name: str, texts: Sequence[str]) -> bool:
    return name.strip().lower() in NUMBERS and len(set(texts)) == len(texts)


def task_text(columns: Columns, beside: Path) -> str:
    """A task file for these columns, in the folder `beside`."""
    file = _relative(columns.path, beside)
    lines = [
        f"# Made from {columns.path.name} ({columns.rows:,} rows). Change what is not meant.",
        f"name = {quoted(name_of(stem_of(columns.path)))}",
        f"title = {quoted(stem_of(columns.path))}",
        f"files = {quoted(file)}",
        "ratio = [8, 1, 1]                # train, validation and test: shares of the rows",
        "seed = 0                         # of which row goes where; equal rows stay together",
    ]
    if columns.formatting is not None:
        lines.append(f"formatting = {quoted(columns.formatting)}")
        if columns.formatting == "alpaca":
            prompt = default_prompt({"formatting": "alpaca"})
            lines.append(f"prompt = {quoted(prompt)}")
        return "\n".join([*lines, ""])
    prompt = default_prompt({"fields": columns.fields, "target": columns.target})
    lines += [
        f"fields = {quoted(list(columns.fields))}",
        f"target = {quoted(columns.target)}",
        f"prompt = {quoted(prompt)}",
    ]
    if columns.labels:
        lines += ["", "[labels]                         # value in the file -> what is answered"]
        lines += [f"{quoted(label)} = {quoted(label)}" for label in columns.labels]
    else:
        lines.append(
            'kind = "generation"              # free text; metric = "rouge" or "exact_match"'
        )
    return "\n".join([*lines, ""])


def _relative(path: Path, beside: Path) -> str:
    try:
        return path.resolve().relative_to(beside.resolve()).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def quoted(value: str | list[str]) -> str:
    """As TOML writes it, which is as JSON does but for one sign."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
