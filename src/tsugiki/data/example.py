"""One row of a task. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tsugiki.data.text import normalise


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row: its fields as text, the right answer, the answers that are allowed (empty for free
    text).

    `turns` are the (role, content) of a conversation before the answer.
    `group` names what rows of one origin share (an image, say): intervals resample groups, not
    rows.
    """

    id: str
    fields: Mapping[str, str]
    target: str
    candidates: tuple[str, ...] = ()
    group: str = ""
    turns: tuple[tuple[str, str], ...] = ()


def equal_candidates(example: Example) -> tuple[str, str] | None:
    """Two unlike candidates of a row that are one after NFKC and strip, the right one first if it
    is among them; None where there are none."""
    known: dict[str, str] = {}
    for each in sorted(example.candidates, key=lambda candidate: candidate != example.target):
        if (first := known.setdefault(normalise(each), each)) != each:
            return first, each
    return None
