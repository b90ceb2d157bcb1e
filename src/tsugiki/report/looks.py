"""How a method looks in every figure of a page: one colour a method, one mark a model. No torch
here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tsugiki.study.cells import StudyResult

# Okabe & Ito 2008: told apart by colour-blind readers too; the marks differ besides.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F",
)  # fmt: skip
MARKS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True, kw_only=True)
class Look:
    """`name`: the method, which is what the colour stands for; `number`: which of the series of
    this colour in one figure, told apart by its mark and its dashes."""

    name: str
    colour: str
    number: int = 0

    @property
    def mark(self) -> str:
        return MARKS[self.number % len(MARKS)]

    def nth(self, number: int) -> Look:
        return replace(self, number=number)


def looks_of(result: StudyResult) -> dict[str, Look]:
    """By the names of the study's methods, in its order."""
    names = list(dict.fromkeys(cell.method.name for cell in result.cells))
    return {
        name: Look(name=name, colour=COLOURS[number % len(COLOURS)])
        for number, name in enumerate(names)
    }


def told_apart(methods: Mapping[str, str], looks: Mapping[str, Look]) -> dict[str, Look]:
    """The looks of a figure's series (name → method): those of one method differ in their marks."""
    met = dict[str, int]()
    own = {}
    for series, method in methods.items():
        number = met.get(method, 0)
        met[method] = number + 1
        own[series] = looks[method].nth(number)
    return own
