"""Scores and settings in a line of text. No torch here."""

from __future__ import annotations

from collections.abc import Mapping

from tsugiki.runs.record import Scores
from tsugiki.score.rules import metric_of
from tsugiki.study.cells import Cell
from tsugiki.words import Language, say


def score_text(scores: Scores) -> str:
    """`0.378 [0.341, 0.417]`; ROUGE as 1/2/L with the interval of L."""
    main = scores.main
    return values_text(scores.values, main.name, main.low, main.high)


def best_text(scores: Scores, num_cells: int, language: Language) -> str:
    """A chosen cell's score on validation: of many cells the best, which is too high for an
    interval of its own."""
    if num_cells == 1:
        return score_text(scores)
    best = say(language, "texts.best_text", num_cells=num_cells)
    return f"{values_text(scores.values, scores.main.name)} ({best})"


def values_text(
    values: Mapping[str, float], main: str, low: float | None = None, high: float | None = None
) -> str:
    """Scores by name as `score_text` writes them."""
    shown = metric_of(main).shown or (main,)
    bounds = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return "/".join(f"{values[name]:.3f}" for name in shown) + bounds


def chosen_text(cell: Cell, language: Language) -> str:
    """The searched settings of a cell: `learning_rate 0.001, epochs 3`."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in cell.settings.items()
    ) or say(language, "texts.only_configuration")
