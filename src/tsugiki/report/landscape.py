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
from tsugiki.report.compare import against
from tsugiki.report.standing import floor_of
from tsugiki.runs.answer_values import same_rows, values_of
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.score.metrics import Score
from tsugiki.score.rules import metric_of
from tsugiki.score.statistics import Estimate, paired_difference
from tsugiki.study.cells import Cell, Key, StudyResult
from tsugiki.words import Language, say


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """The cells of one (model, task, method) that were run. `num_not_above`: cells that failed, or
    whose score on validation does not lie above what needs no model (the lower end of their paired
    difference to it is not above zero); `below`: those of them that failed, or score no more.
    `num_within_interval`: cells whose paired difference to the best does not tell them from it.
    `losses`: (validation loss, score) where both are known; whether the lowest loss belongs to one
    that the same paired difference does not tell from the best."""

    key: Key
    best: Cell
    record: RunRecord
    values: tuple[float, ...]
    num_within_interval: int
    num_not_above: int
    below: int
    losses: tuple[tuple[float, float], ...]
    lowest_is_among_the_best: bool

    @property
    def num(self) -> int:
        return len(self.values)

    @property
    def main(self) -> Score:
        return self.record.scored("validation").main

    @property
    def median_gap(self) -> float:
        """How far the median cell lies below the best: what a user loses who takes some cell of
        the grid."""
        return self.main.value - statistics.median(self.values)


def landscapes(result: StudyResult, tasks: Mapping[str, Task]) -> list[Landscape]:
    searched = list[Landscape]()
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
            ran = [record for record in records if record.status in ("done", "failed")]
            searched.append(_landscape(key, best, top, ran, tasks.get(key[1])))
    return searched


def _landscape(
    key: Key, best: Cell, top: RunRecord, ran: Sequence[RunRecord], task: Task | None
) -> Landscape:
    scored = [
        record
        for record in ran
        if record.status == "done" and record.scores("validation") is not None
    ]
    groups = [answer.group for answer in top.answers("validation")]
    mains = {record.folder: record.main_score("validation") or 0.0 for record in scored}
    scale = metric_of(top.scored("validation").main.name).scale
    above = {record.folder: _above_floor(record, task) for record in scored}
    to_best = {
        record.folder: paired_difference(
            [values_of(record, "validation")],
            [values_of(top, "validation")],
            groups,
            scale=scale,
        )
        for record in scored
        if same_rows(record, top, "validation")
    }
    with_loss = [record for record in scored if record.outcome.validation_loss is not None]
    lowest = min(with_loss, key=lambda record: record.outcome.validation_loss or 0.0, default=top)
    return Landscape(
        key=key,
        best=best,
        record=top,
        values=tuple(mains.get(record.folder, 0.0) for record in ran),
        num_within_interval=sum(difference.high >= 0 for difference in to_best.values()),
        num_not_above=len(ran)
        - len(scored)
        + sum(gain is not None and gain.low <= 0 for gain in above.values()),
        below=len(ran)
        - len(scored)
        + sum(gain is not None and gain.mean <= 0 for gain in above.values()),
        losses=tuple(
            (record.outcome.validation_loss, mains[record.folder])
            for record in with_loss
            if record.outcome.validation_loss is not None
        ),
        lowest_is_among_the_best=lowest.folder not in to_best or to_best[lowest.folder].high >= 0,
    )


def _above_floor(record: RunRecord, task: Task | None) -> Estimate | None:
    name = record.scored("validation").main.name
    floor = (
        None
        if task is None
        else floor_of(
            task, "validation", tuple(answer.id for answer in record.answers("validation")), name
        )
    )
    return None if floor is None else against([record], "validation", floor.values)


def landscape_notes(landscapes: Sequence[Landscape], language: Language) -> list[str]:
    """LoRA against FT on one base, the larger base against the smaller under one method, the ratio
    of their best rates, and loss against score."""
    notes = [note for landscape in landscapes for note in loss_note(landscape, language)]
    for first in landscapes:
        for other in landscapes:
            if (
                first.key[:2] == other.key[:2]
                and method_of(first.best.method).order < method_of(other.best.method).order
            ):
                notes += [*_more_sensitive(first, other, language), *_ratio(first, other, language)]
            larger = first.record.outcome.total > other.record.outcome.total
            if (
                first.key[1:] == other.key[1:]
                and larger
                and first.record.provenance.model_sha256 != other.record.provenance.model_sha256
            ):
                notes += _more_sensitive(first, other, language)
    return notes


def _more_sensitive(first: Landscape, other: Landscape, language: Language) -> list[str]:
    if min(first.num, other.num) == 1:
        return []  # nothing was searched
    name, other_name = " ".join(first.key), " ".join(other.key)
    said = say(
        language,
        "landscape.more_sensitive",
        failed=first.num_not_above / first.num,
        gap=first.median_gap,
        name=name,
        num=first.num,
        other_failed=other.num_not_above / other.num,
        other_gap=other.median_gap,
        other_name=other_name,
        other_num=other.num,
    )
    return [said]


def _ratio(first: Landscape, other: Landscape, language: Language) -> list[str]:
    """The ratio of the best rates, where it can mean something: of one base, both tried three or
    more, and neither best lies at an edge."""
    if not (_rate_lies_inside(first.best) and _rate_lies_inside(other.best)):
        return []
    if first.record.provenance.model_sha256 != other.record.provenance.model_sha256:
        return []
    rate, other_rate = (each.best.config.train.learning_rate for each in (first, other))
    said = say(
        language,
        "landscape.ratio",
        where=" ".join(first.key[:2]),
        first=first.key[2],
        second=other.key[2],
        rate=rate,
        other_rate=other_rate,
        ratio=rate / other_rate,
    )
    return [said]


def _rate_lies_inside(cell: Cell) -> bool:
    tried = cell.method.grid.get("learning_rate", ())
    if isinstance(tried, Range):
        return False
    rates = sorted({rate for rate in tried if isinstance(rate, (int, float))})
    return len(rates) >= 3 and rates[0] < cell.config.train.learning_rate < rates[-1]


def loss_note(landscape: Landscape, language: Language) -> list[str]:
    """How well validation loss orders the cells; a lowest loss that is not among the best scores
    is named."""
    if len(landscape.losses) < 5:
        return []
    agreement = -rank_correlation(
        [loss for loss, _ in landscape.losses], [score for _, score in landscape.losses]
    )
    lowest = min(landscape.losses)[1]
    best = landscape.main.value
    where, num = " ".join(landscape.key), len(landscape.losses)
    tail = ""
    if not landscape.lowest_is_among_the_best:
        tail = say(language, "landscape.loss_is_not_the_score")
    elif lowest < best:
        tail = say(language, "landscape.loss_chooses_another")
    return [
        say(
            language,
            "landscape.loss_note",
            agreement=agreement,
            best=best,
            lowest=lowest,
            num=num,
            where=where,
            tail=tail,
        )
    ]


def rank_correlation(first: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, ties at their mean rank; 0 where one of them is constant."""
    first, second = _ranks(first), _ranks(other)
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
                lowest = say(language, "landscape.lowest")
                end = lowest if wider[0] < chosen else say(language, "landscape.highest")
                offer = ", ".join(f"{value:g}" for value in wider)
                notes.append(
                    say(
                        language,
                        "landscape.edge",
                        chosen=chosen,
                        name=name,
                        offer=offer,
                        where=" ".join(cell.key),
                        end=end,
                    )
                )
    return notes


def searched_to_an_edge(result: StudyResult) -> list[str]:
    """Methods whose chosen learning rate is the lowest or the highest (or the only one) that was
    tried, with the rate and where: `LoRA 0.002 (27M · jnli, 27M · jcommonsenseqa)`."""
    at_edge: dict[str, list[str]] = {}
    for cell in result.chosen.values():
        tried = cell.method.grid.get("learning_rate", ())
        if isinstance(tried, Range):
            continue
        rates = {rate for rate in tried if isinstance(rate, (int, float))}
        if rates and cell.config.train.learning_rate in (min(rates), max(rates)):
            name = f"{cell.method.name} {cell.config.train.learning_rate:g}"
            at_edge.setdefault(name, []).append(" · ".join(cell.key[:2]))
    return [f"{name} ({', '.join(where)})" for name, where in at_edge.items()]


def _one_rate(cell: Cell, language: Language) -> str:
    rate, where = cell.config.train.learning_rate, " ".join(cell.key)
    offer = ", ".join(f"{rate * step:.2g}" for step in (1 / 3, 3))
    return say(language, "landscape.one_rate", offer=offer, where=where, rate=rate)


def _wider(tried: Sequence[float], chosen: float) -> list[float]:
    """Two more values beyond the edge that the choice lies on: the last ratio again, the last
    distance for whole numbers below 8."""
    if len(tried) < 2 or chosen not in (tried[0], tried[-1]):
        return []
    down = chosen == tried[0]
    edge, inner = (tried[0], tried[1]) if down else (tried[-1], tried[-2])
    if not edge or not inner:
        return []  # nought has no ratio: the grid does not say what lies beyond
    if all(isinstance(value, int) or float(value).is_integer() for value in tried):
        step = edge - inner
        values = [edge * 2, edge * 4] if edge >= 8 and not down else [edge + step, edge + 2 * step]
        return [value for value in values if value >= 1]
    return [float(f"{edge * (edge / inner) ** power:.2g}") for power in (1, 2)]
