"""What a searched grid says (the paper's section 3.5): how much a method depends on its
hyper-parameters, and where a better cell may lie.

No torch here.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsugiki.config.study import Range
from tsugiki.data.tasks import Task
from tsugiki.report.compare import against, values_of
from tsugiki.report.standing import floor_of
from tsugiki.report.words import Language, pick
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.score.metrics import Score
from tsugiki.score.statistics import Estimate, paired_difference
from tsugiki.study.cells import Cell, Key, StudyResult


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """The cells of one (model, task, method) that were run. `dead`: cells that failed, or whose
    score on validation cannot be told from what needs no model (the lower end of their paired
    difference to it is not above zero); `below`: those of them that failed, or score no more.
    `near`: cells whose paired difference to the best does not tell them from it. `losses`:
    (validation loss, score) where both are known."""

    key: Key
    best: Cell
    record: RunRecord
    values: tuple[float, ...]
    near: int
    dead: int
    below: int
    losses: tuple[tuple[float, float], ...]

    @property
    def num(self) -> int:
        return len(self.values)

    @property
    def main(self) -> Score:
        return self.record.scored("validation").main

    @property
    def fall(self) -> float:
        """How far the median cell lies below the best: what a user loses who takes some cell of
        the grid."""
        return self.main.value - statistics.median(self.values)


def landscapes(result: StudyResult, tasks: Mapping[str, Task]) -> list[Landscape]:
    found = []
    for key, best in result.chosen.items():
        if not method_of(best.config).trains or best.method.search.prune:
            continue  # nothing was searched, or what was pruned would be missing from the count
        records = [
            record
            for cell in result.cells
            if cell.key == key and (record := result.record(cell)) is not None
        ]
        top = result.record(best)
        if top is not None and top.scores("validation") is not None:
            ran = [one for one in records if one.status in ("done", "failed")]
            found.append(_landscape(key, best, top, ran, tasks.get(key[1])))
    return found


def _landscape(
    key: Key, best: Cell, top: RunRecord, ran: Sequence[RunRecord], task: Task | None
) -> Landscape:
    scored = [one for one in ran if one.status == "done" and one.scores("validation") is not None]
    groups, mains = (
        [one.group for one in top.answers("validation")],
        {one.folder: one.main_score("validation") or 0.0 for one in scored},
    )
    above = {one.folder: _above_floor(one, task) for one in scored}
    to_best = [
        paired_difference([values_of(one, "validation")], [values_of(top, "validation")], groups)
        for one in scored
        if _same_rows(one, top)
    ]
    return Landscape(
        key=key,
        best=best,
        record=top,
        values=tuple(mains.get(one.folder, 0.0) for one in ran),
        near=sum(one.high >= 0 for one in to_best),
        dead=len(ran)
        - len(scored)
        + sum(one is not None and one.low <= 0 for one in above.values()),
        below=len(ran)
        - len(scored)
        + sum(one is not None and one.mean <= 0 for one in above.values()),
        losses=tuple(
            (one.outcome.validation_loss, mains[one.folder])
            for one in scored
            if one.outcome.validation_loss is not None
        ),
    )


def _above_floor(record: RunRecord, task: Task | None) -> Estimate | None:
    name = record.scored("validation").main.name
    floor = (
        None
        if task is None
        else floor_of(
            task, "validation", tuple(one.id for one in record.answers("validation")), name
        )
    )
    return None if floor is None else against([record], "validation", floor.values)


def _same_rows(one: RunRecord, other: RunRecord) -> bool:
    first, second = (
        [(row.id, row.target) for row in record.answers("validation")] for record in (one, other)
    )
    return first == second


def landscape_notes(found: Sequence[Landscape], language: Language) -> list[str]:
    """LoRA against FT on one base, the larger base against the smaller under one method, LoRA's
    best rate over FT's, and loss against score."""
    notes = [note for one in found for note in loss_note(one, language)]
    for one in found:
        for other in found:
            if (
                one.key[:2] == other.key[:2]
                and method_of(one.best.method).order < method_of(other.best.method).order
            ):
                notes += [*_more_sensitive(one, other, language), *_ratio(one, other, language)]
            larger = one.record.outcome.total > other.record.outcome.total
            if (
                one.key[1:] == other.key[1:]
                and larger
                and one.record.provenance.model_sha256 != other.record.provenance.model_sha256
            ):
                notes += _more_sensitive(one, other, language)
    return notes


def _more_sensitive(one: Landscape, other: Landscape, language: Language) -> list[str]:
    if min(one.num, other.num) == 1:
        return []  # nothing was searched
    first, second = " ".join(one.key), " ".join(other.key)
    said = pick(
        language,
        f"{first} と {second}: 基準を上回らない設定は {one.dead / one.num:.0%} と "
        f"{other.dead / other.num:.0%}、最良と中央値の差は {one.fall:.3f} と "
        f"{other.fall:.3f}（探索した設定は {one.num} 個と {other.num} 個で、"
        "同じ範囲とは限りません）。",
        f"{first} against {second}: {one.dead / one.num:.0%} and {other.dead / other.num:.0%} of "
        "the cells are no better than the floor; the median cell "
        f"lies {one.fall:.3f} and {other.fall:.3f} below the best ({one.num} and {other.num} "
        "cells, not always over the same ranges).",
    )
    return [said]


def _ratio(one: Landscape, other: Landscape, language: Language) -> list[str]:
    """The ratio of the best rates, where it can mean something: both tried three or more, and
    neither best lies at an edge."""
    if not (_rate_lies_inside(one.best) and _rate_lies_inside(other.best)):
        return []
    lora, full = one.best.config.train.learning_rate, other.best.config.train.learning_rate
    place, names = " ".join(one.key[:2]), f"{one.key[2]} / {other.key[2]}"
    return [
        pick(
            language,
            f"{place}: 最良の学習率は LoRA が FT の {lora / full:.3g} 倍（{names}: {lora:g} と "
            f"{full:g}、どちらも 3 個以上の中から、端ではない値）。",
            f"{place}: LoRA's best learning rate is {lora / full:.3g} times FT's ({names}: "
            f"{lora:g} against {full:g}, each of three or more, at no edge).",
        )
    ]


def _rate_lies_inside(cell: Cell) -> bool:
    tried = cell.method.grid.get("learning_rate", ())
    if isinstance(tried, Range):
        return False
    rates = sorted({rate for rate in tried if isinstance(rate, (int, float))})
    return len(rates) >= 3 and rates[0] < cell.config.train.learning_rate < rates[-1]


def loss_note(one: Landscape, language: Language) -> list[str]:
    """How well validation loss orders the cells; a lowest loss that is not among the best scores
    is named."""
    if len(one.losses) < 5:
        return []
    agreement = -rank_correlation(
        [loss for loss, _ in one.losses], [score for _, score in one.losses]
    )
    lowest = min(one.losses)[1]
    best = one.main.value
    place = " ".join(one.key)
    return [
        pick(
            language,
            f"{place}: 検証データでの損失の低さと評価値の順位相関は "
            f"{agreement:+.2f}（{len(one.losses)} 設定）。損失が最小の設定の評価値は {lowest:.3f}、"
            f"最良は {best:.3f} "
            f"です{'。損失の低さで選ぶと別の設定になります' if lowest < best else ''}。",
            f"{place}: low loss on validation and score are rank-correlated by {agreement:+.2f} "
            f"({len(one.losses)} cells). The cell with the lowest loss "
            f"scores {lowest:.3f}, the best "
            f"{best:.3f}{': loss would choose another cell' if lowest < best else ''}.",
        )
    ]


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, ties at their mean rank; 0 where one of them is constant."""
    first, second = _ranks(one), _ranks(other)
    try:
        return statistics.correlation(first, second)
    except statistics.StatisticsError:
        return 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def edges(result: StudyResult, language: Language) -> list[str]:
    """Chosen cells that lie on the edge of what was tried, and a wider grid for each: a better
    cell may lie outside."""
    notes = []
    for cell in result.chosen.values():
        for name, tried in cell.method.grid.items():
            if isinstance(tried, Range):
                continue
            if name == "learning_rate" and len(set(tried)) == 1:
                notes.append(_one_rate(cell, language))
            chosen = cell.settings[name]
            numbers = sorted({value for value in tried if isinstance(value, (int, float))})
            if not isinstance(chosen, (int, float)):
                continue
            wider = _wider(numbers, chosen)
            if wider:
                where = pick(
                    language,
                    "最小" if wider[0] < chosen else "最大",
                    "lowest" if wider[0] < chosen else "highest",
                )
                offer = ", ".join(f"{value:g}" for value in wider)
                notes.append(
                    pick(
                        language,
                        f"最良の設定が探索範囲の端にあります: {' '.join(cell.key)} の {name} "
                        f"{chosen:g}（試した中の{where}）。範囲を "
                        f"{offer} まで広げると、さらに良い設定があるかもしれません。",
                        f"Best cell on the edge of the grid: {' '.join(cell.key)}, {name} "
                        f"{chosen:g} (the {where} tried). A better one may "
                        f"lie outside: add {offer}.",
                    )
                )
    return notes


def _one_rate(cell: Cell, language: Language) -> str:
    rate, place = cell.config.train.learning_rate, " ".join(cell.key)
    offer = ", ".join(f"{rate * step:.2g}" for step in (1 / 3, 3))
    return pick(
        language,
        f"{place} は学習率を 1 つ（{rate:g}）しか試していません。"
        f"どちらの側にもさらに良い値があるかもしれません（{offer} など）。",
        f"{place} tried one learning rate ({rate:g}), which is both edges of its grid: a better "
        f"one may lie on either side (try {offer} too).",
    )


def _wider(tried: Sequence[float], chosen: float) -> list[float]:
    """Two more values beyond the edge that the choice lies on: the last ratio again, the last
    distance for whole numbers below 8."""
    if len(tried) < 2 or chosen not in (tried[0], tried[-1]):
        return []
    down = chosen == tried[0]
    edge, inner = (tried[0], tried[1]) if down else (tried[-1], tried[-2])
    if not edge or not inner:
        return []  # nought has no ratio: what lies beyond is not told by the grid
    if all(isinstance(value, int) or float(value).is_integer() for value in tried):
        step = edge - inner
        values = [edge * 2, edge * 4] if edge >= 8 and not down else [edge + step, edge + 2 * step]
        return [value for value in values if value >= 1]
    return [float(f"{edge * (edge / inner) ** power:.2g}") for power in (1, 2)]
