"""What earlier versions called settings, files and keys. They are read; nothing is written so."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from tsugiki.words import Message

# Settings of a run or study file, by table: old key → key; old value → value.
SETTINGS = {"score": {"during": "validations", "during_rows": "validation_rows"}}
VALUES = {"step": {"captured": "cuda_graph"}, "decode": {"captured": "cuda_graph"}}
# The files of a run, and the keys in them.
FILES = {
    "config.json": "asked.json",
    "provenance.json": "with_what.json",
    "outcome.json": "happened.json",
    "validations.json": "during.json",
    **{
        f"answer-modes-{part}.json": f"ways-{part}.json" for part in ("train", "validation", "test")
    },
}
KEYS = {
    "measurement": "cost",
    "solo": "exclusive_cost",
    "alone": "exclusive",
    "shared": "branch",
    "told": "search_score",
    "pruned": "pruned_score",
    "from": "source",
}
# The state of a checkpoint.
STATE_KEYS = {"moment": "group_step", "moving_steps": "steps_with_lr"}


class OldSpelling(FutureWarning):
    """A setting was given under a name of an earlier version."""


def in_new_spelling(table: str, given: Any) -> Any:
    """A table of settings under the names of today; says so for each that was renamed."""
    if not isinstance(given, Mapping):
        return given
    renamed, result = SETTINGS.get(table, {}), {}
    for key, value in given.items():
        name, values = renamed.get(key, key), VALUES.get(key, {})
        spelled = values.get(value, value) if isinstance(value, str) else value
        if name in result or (name != key and name in given):
            raise ValueError(f"{key}: is the old name of {name}, which is given too; remove it")
        if name != key:
            _warn(Message("note.renamed", old=f"{table}.{key}", new=f"{table}.{name}"))
        if spelled is not value and spelled != value:  # NaN is not equal to itself
            old, new = f'{table}.{key} = "{value}"', f'"{spelled}"'
            _warn(Message("note.renamed", old=old, new=new))
        result[name] = spelled
    return result


def in_old_spelling(table: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """A table as it was once written: what runs were named by keeps its spelling."""
    names = {new: old for old, new in SETTINGS.get(table, {}).items()}
    values = {key: {new: old for old, new in renamed.items()} for key, renamed in VALUES.items()}
    return {
        names.get(key, key): values.get(key, {}).get(value, value)
        if isinstance(value, str)
        else value
        for key, value in content.items()
    }


def text_in_old_spelling(text: str) -> str:
    """A whole study as JSON, as it was once written. Its folder is named by that very text, so it
    is changed in place: written anew, numbers and the order of keys would differ."""
    for renamed in SETTINGS.values():
        for old, new in renamed.items():
            text = text.replace(f'"{new}":', f'"{old}":')
    for values in VALUES.values():
        for old, new in values.items():
            text = text.replace(f':"{new}"', f':"{old}"')
    for later in (
        ',"model":null',
        ',"shots":0',
        ',"base":null',
        ',"power":null',
        ',"forgetting":[]',
    ):  # and is not used
        text = text.replace(later, "")
    return text


def _warn(text: str) -> None:
    """Says it; `main` of the command line shows each text once."""
    warnings.warn(text, OldSpelling, stacklevel=2)
