"""What each kept answer is worth by the score that chooses, read once. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tsugiki.runs.reading import RunRecord, read_answers
from tsugiki.runs.record import Answer, Scores
from tsugiki.score.rules import metric_of


def values_of(record: RunRecord, part: str) -> list[float]:
    """Each answer's worth, in the order of the answers."""
    return values_in(record.folder, record.scored(part))


def values_in(folder: Path, scores: Scores) -> list[float]:
    """The same of any scores that a run keeps."""
    path = folder / scores.file
    return _values_at(path, scores.main.name, path.stat().st_mtime_ns)


@lru_cache(maxsize=512)
def _values_at(path: Path, name: str, stamp: int) -> list[float]:
    """ROUGE of every answer takes a while, and a report asks for it several times."""
    return main_values(name, read_answers(path))


def main_values(name: str, answers: Sequence[Answer]) -> list[float]:
    """Per-example values of the score that chooses, from kept answers."""
    texts, targets = [row.answer for row in answers], [row.target for row in answers]
    return metric_of(name).score(texts, targets)[name]


def same_rows(ours: RunRecord, theirs: RunRecord, part: str) -> bool:
    """Whether two runs answered the same rows of a part, so that their answers can be paired."""
    first, second = (
        [(row.id, row.target) for row in each.answers(part)] for each in (ours, theirs)
    )
    return first == second
