"""Scores, costs and settings as cells of tables. No torch here."""

from __future__ import annotations

from tsugiki.report.compare import pooled
from tsugiki.report.standing import lost_seeds
from tsugiki.report.table import Content, Estimated, Number, Said, Two, phrase, said
from tsugiki.report.texts import best_text, chosen_text, score_text, values_text
from tsugiki.runs.record import Scores
from tsugiki.study.cells import Cell, StudyResult
from tsugiki.study.missing import test_of
from tsugiki.train.cost import Cost
from tsugiki.words import say


def number(value: float | None, form: str = ".3f") -> Content:
    return None if value is None else Number(value=value, form=form)


def setting_cell(cell: Cell) -> Said:
    """The searched settings of a cell."""
    return said(lambda language: chosen_text(cell, language))


def score_cell(scores: Scores) -> Estimated:
    """A score with its interval."""
    words = said(lambda language: score_text(scores))
    return Estimated(
        value=scores.main.value, low=scores.main.low, high=scores.main.high, words=words
    )


def best_cell(scores: Scores, num_cells: int) -> Estimated:
    """The score of the best of so many, which has no interval of its own."""
    if num_cells == 1:
        return score_cell(scores)
    words = said(lambda language: best_text(scores, num_cells, language))
    return Estimated(value=scores.main.value, words=words)


def test_cell(result: StudyResult, cell: Cell) -> Content:
    """`0.401 [0.360, 0.440]`; over several seeds their mean, with their standard deviation;
    each seed's score where another failed."""
    records, lost = result.seeds(cell), lost_seeds(result, cell)
    if not records:
        why = result.missing.get(test_of(cell.label))
        tail = f": {why}" if why else ""
        return said(lambda language: say(language, "label.not_scored_yet") + tail)
    if lost:
        tests = [record.scored("test") for record in records]
        scores = " · ".join(values_text(test.values, test.main.name) for test in tests)
        total = len(records) + len(lost)
        return phrase("cells.seeds_failed", failed=len(lost), scores=scores, total=total)
    over, count = pooled(records), len(records)
    text = values_text(over.means, over.main, over.low, over.high)

    words = text if count == 1 else f"{text} ± {over.spread:.3f}"
    value = over.means[over.main]
    return Estimated(value=value, low=over.low, high=over.high, words=Said(en=words, ja=words))


def seconds_cell(cost: Cost | None, tail: str = "") -> Content:
    """Median seconds per step; with the mean in CSV."""
    if cost is None or cost.step_s_median is None or cost.step_s_mean is None:
        return f"-{tail}" if tail else None
    text = f"{cost.step_s_median:.4f}{tail}"
    return Two(first=cost.step_s_median, second=cost.step_s_mean, words=Said(en=text, ja=text))


def memory_cell(cost: Cost) -> Content:
    """Peak memory in MiB: `allocated / reserved` on CUDA, resident size of the process on a CPU."""
    if cost.peak_allocated_bytes is not None:
        first, second = cost.peak_allocated_bytes / 2**20, (cost.peak_reserved_bytes or 0) / 2**20
        text = f"{first:,.0f} / {second:,.0f}"
        return Two(first=first, second=second, words=Said(en=text, ja=text))
    if cost.peak_process_bytes is None:
        return None
    size = cost.peak_process_bytes / 2**20
    words = phrase("cells.process", size=size)
    return Two(first=size, second=None, words=words)
