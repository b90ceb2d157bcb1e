"""Rows of one part of a task that stand in another: refused where the files are the same, counted
elsewhere. No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tsugiki.data.example import Example
from tsugiki.data.splits import may_overlap
from tsugiki.data.tasks import Task
from tsugiki.data.text import without_spaces
from tsugiki.errors import DataError
from tsugiki.words import Message


@dataclass(frozen=True, kw_only=True)
class Shared:
    """How many rows of a part stand in another one: the same, with two fields swapped, of the same
    group (an image, say)."""

    same: int
    mirrored: int
    grouped: int


def shared_rows(task: Task, part: str, other: str = "train") -> Shared:
    """Rows of `part` that stand in `other`; each counts once, under the first that holds. Texts
    are compared after NFKC and without white space."""

    def key(example: Example) -> tuple[str, ...]:
        return tuple(map(without_spaces, example.fields.values()))

    trained = {key(example) for example in task.examples[other]}
    groups = {example.group for example in task.examples[other]} if task.spec.group else set()
    counts = {"same": 0, "mirrored": 0, "grouped": 0}
    for example in task.examples[part]:
        mine = key(example)
        if mine in trained:
            counts["same"] += 1
        elif len(mine) == 2 and mine[::-1] in trained:
            counts["mirrored"] += 1
        elif example.group in groups:
            counts["grouped"] += 1
    return Shared(**counts)


def refuse_leak(task: Task, trained_on: Mapping[str, str], part: str) -> None:
    """Raises when one of the files that `part` is cut from was trained on (`trained_on`: file name
    -> git blob id)."""
    for name, rows in task.files[part].items():
        if any(may_overlap(rows, trained) for trained in trained_on.values()):
            raise DataError(Message("error.same_rows", task=task.name, part=part, file=name))
