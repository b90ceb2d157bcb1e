"""Which rows of its files make a part of a task: a half in file order, or a share drawn by a
seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from tsugiki.config.task import PartSpec, TaskSpec
from tsugiki.data.example import Example
from tsugiki.data.text import without_spaces


def rows_of_part(rows: Sequence[Example], part: PartSpec, spec: TaskSpec) -> list[Example]:
    """Those of the rows of its files that make the part, in file order."""
    left = _half(list(rows), part, whole_groups=spec.messages is not None)
    return _share(left, part, by_group=bool(spec.group or spec.messages))


def _half(rows: list[Example], part: PartSpec, whole_groups: bool = False) -> list[Example]:
    """First or second half in file order; by group, whole groups in the order of their hash until
    half the rows are taken.

    A conversation is never torn: its later turns hold the earlier answers.
    """
    if part.half is None:
        return rows
    cut = (len(rows) + 1) // 2
    if part.by == "row" and not whole_groups:
        return rows[:cut] if part.half == "first" else rows[cut:]
    sizes = Counter(row.group for row in rows)
    first: set[str] = set()
    taken = 0
    for group in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if taken >= cut:
            break
        first.add(group)
        taken += sizes[group]
    return [row for row in rows if (row.group in first) == (part.half == "first")]


def _share(rows: list[Example], part: PartSpec, *, by_group: bool) -> list[Example]:
    """The part's share of the rows, in file order. Equal rows (also with their fields swapped), or
    rows of one group, are one piece: it goes where its first row would, in an order drawn by the
    seed."""
    if part.share is None:
        return rows
    names = [row.group if by_group else _text_of(row) for row in rows]
    sizes = Counter(names)
    start, end = (round(share * len(rows)) for share in part.share)
    taken, before = set[str](), 0
    for name in sorted(sizes, key=lambda name: _drawn_key(part.seed, name)):
        if start <= before < end:
            taken.add(name)
        before += sizes[name]
    return [row for row, name in zip(rows, names, strict=True) if name in taken]


def _text_of(row: Example) -> str:
    return "\0".join(sorted(map(without_spaces, row.fields.values())))


def _drawn_key(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def stretch_of(part: PartSpec) -> str:
    """What follows a file's id where a part is a share of it; for `may_overlap`."""
    return "" if part.share is None else " share {}-{} seed {}".format(*part.share, part.seed)


def may_overlap(first: str, other: str) -> bool:
    """Whether two stretches of files (a git blob id, and of which share) may hold a row in
    common."""
    (file, share, seed), (other_file, other_share, other_seed) = _stretch(first), _stretch(other)
    if file != other_file:
        return False
    if seed != other_seed or None in (seed, other_seed):
        return True
    return share[0] < other_share[1] and other_share[0] < share[1]


def _stretch(said: str) -> tuple[str, tuple[float, float], str | None]:
    """(file id, share, seed) of `ID share 0.8-0.9 seed 0` or of `ID`."""
    file, _, rest = said.partition(" share ")
    if not rest:
        return file, (0.0, 1.0), None
    share, _, seed = rest.partition(" seed ")
    start, end = map(float, share.split("-"))
    return file, (start, end), seed
