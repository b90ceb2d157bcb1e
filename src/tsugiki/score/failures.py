"""Why an answer is wrong: each gets one class, so that a score of 0.012 explains itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from tsugiki.data.text import normalise

FailureClass = Literal[
    "right",
    "right_after_normalisation",
    "another_candidate",
    "contains_candidate",
    "outside",
    "empty",
    "repetition",
    "no_eos",
    "truncated",
]
CLASSES: tuple[FailureClass, ...] = get_args(FailureClass)


def classify(
    answer: str, target: str, candidates: Sequence[str], *, ended: bool, was_cut: bool
) -> FailureClass:
    """The class of one answer of a closed task; for free text only the technical classes apply
    (`right` otherwise).

    Order of the tests: right, empty, another candidate, repetition, no EOS token, contains a
    candidate, cut, outside.
    """
    text = normalise(answer)
    if answer == target:
        return "right"
    if text == normalise(target):
        return "right_after_normalisation"
    if not text:
        return "empty"
    known = [normalise(candidate) for candidate in candidates]
    if text in known:
        return "another_candidate"
    if repeats(text) and not ended:
        return "repetition"
    if not ended:
        return "no_eos"
    if not candidates:
        return "repetition" if repeats(text) else "right"
    if any(candidate in text for candidate in known):
        return "contains_candidate"
    return "truncated" if was_cut else "outside"


def repeats(text: str, times: int = 3) -> bool:
    """Whether the text ends in one unit said `times` times or more (units of one character need
    twice as many)."""
    for length in range(1, len(text) // times + 1):
        needed = times * 2 if length == 1 else times
        if len(text) >= length * needed and text.endswith(text[-length:] * needed):
            return True
    return False


def is_candidate(failure: FailureClass) -> bool:
    """Whether the answer was one of the candidates, right or not: the candidate rate of section
    3.4 counts these."""
    return failure in ("right", "right_after_normalisation", "another_candidate")
