"""The first screen of a page: the verdict of each task, what it costs, whether the data suffice,
what does not follow, and the forest plot. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tsugiki.report.finding import (
    Finding,
    base_sentences,
    data_text,
    decimals_of,
    is_best_base,
)
from tsugiki.report.forest import Group, Row, forest
from tsugiki.report.landscape import searched_to_an_edge
from tsugiki.report.looks import Look, looks_of
from tsugiki.report.main_tables import reference_of
from tsugiki.report.material import Material
from tsugiki.report.standing import standing_text
from tsugiki.report.statements import pair_sentences, statements
from tsugiki.runs.methods import method_of
from tsugiki.study.kept_plan import PairPlan
from tsugiki.words import Language, say

MOST_PAIRS = 12  # more are a table, no screen; in the forest plot, of a task


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Lines of the first screen; `forest` is an SVG figure, empty where nothing was compared."""

    verdicts: tuple[str, ...]
    gains: tuple[str, ...]
    costs: tuple[str, ...]
    data: tuple[str, ...]
    limits: tuple[str, ...]
    forest: str


def headline(material: Material, language: Language) -> Headline:
    """What a reader must see first."""
    every, shown = _pairs(material)
    tuned = shown[:MOST_PAIRS]
    sentences = pair_sentences(tuned, language, brief=True)
    if more := len(every) - len(tuned):
        sentences.append(say(language, "headline.more", more=more))
    return Headline(
        verdicts=tuple(sentences or _alone(material, language)),
        gains=tuple(base_sentences(material.findings, language)),
        costs=tuple(cost_lines(tuned, language)),
        data=tuple(_data_lines(material, tuned, language)),
        limits=tuple(_limits(material, tuned, language)),
        forest=forest_plot(material, language),
    )


def _pairs(material: Material) -> tuple[list[Finding], list[Finding]]:
    """All pairs of tuned methods, and of every task alike those for the first screen: all where it
    has room, else those with the reference."""
    tuned = [pair for pair in material.findings if pair.second.tuned and pair.first.tuned]
    reference = reference_of(material.result)
    first = [pair for pair in tuned if reference in (pair.first.method, pair.second.method)]
    return tuned, tuned if len(tuned) <= MOST_PAIRS else (first or tuned)


def _alone(material: Material, language: Language) -> list[str]:
    """Where nothing is compared: where each method stands."""
    learned = [
        f"{own.key[0]} · {own.key[1]}: {standing_text(own, language)}."
        for own in material.standings.values()
        if own.kind == "learned" and own.tuned
    ]
    return [*learned, *statements((), material.standings, language)]


def forest_plot(material: Material, language: Language) -> str:
    """The pairs of every task, those with its best base too where there is room; empty without any
    that may be compared."""
    result, looks = material.result, looks_of(material.result)
    groups, (_, tuned) = [], _pairs(material)
    pairs_of = dict.fromkeys((pair.model, pair.task) for pair in material.findings)
    for model, task in pairs_of:
        own = [pair for pair in material.findings if (pair.model, pair.task) == (model, task)]
        with_base = [pair for pair in own if pair in tuned or is_best_base(pair, own)]
        fits = len(with_base) <= MOST_PAIRS
        some = with_base if fits else [pair for pair in own if pair in tuned] or with_base
        rows = tuple(_forest_row(pair, looks, language) for pair in some[:MOST_PAIRS])
        if any(row.value is not None for row in rows):
            groups.append(Group(name=f"{model} · {task}", rows=rows))
    if not groups:
        return ""
    axis = say(language, "headline.forest_axis", margin=f"{result.study.margin:g}")
    title = say(language, "headline.forest_title", margin=f"{result.study.margin:g}")
    return forest(groups, result.study.margin, axis, title)


def _forest_row(pair: Finding, looks: dict[str, Look], language: Language) -> Row:
    label, look = f"{pair.first.method} − {pair.second.method}", looks[pair.first.method]
    if pair.comparison is None:
        words = say(language, "label.no_verdict")
        return Row(label=label, look=look, words=words, main=pair.second.tuned)
    compared = pair.comparison
    points = [100 * each for each in (compared.difference, compared.low, compared.high)]
    return Row(
        label=label,
        look=look,
        value=points[0],
        low=points[1],
        high=points[2],
        decimals=decimals_of(compared, pair.margin),
        main=pair.second.tuned,
    )


def cost_lines(tuned: Sequence[Finding], language: Language) -> list[str]:
    """One line for each model and pair of methods, over all tasks."""
    pairs = dict.fromkeys((pair.model, pair.first.method, pair.second.method) for pair in tuned)
    lines = []
    for model, first, second in pairs:
        own = [
            pair
            for pair in tuned
            if (pair.model, pair.first.method, pair.second.method) == (model, first, second)
            and pair.comparison is not None
        ]
        parts = [
            *_parameters([pair.parameter_share for pair in own if pair.parameter_share], language),
            *_change("time", [pair.step_share for pair in own if pair.step_share], language),
            *_change("memory", [pair.memory_share for pair in own if pair.memory_share], language),
        ]
        if parts:
            joined = ("、" if language == "ja" else ", ").join(parts)
            lines.append(
                say(language, "headline.costs", model=model, a=first, b=second, parts=joined)
            )
    return lines


def _parameters(shares: Sequence[float], language: Language) -> list[str]:
    if not shares:
        return []
    if all(0.99 < share < 1.01 for share in shares):
        return [say(language, "headline.parameters_same")]
    key = "fewer" if max(shares) <= 1 else "more"
    times = [1 / share if key == "fewer" else share for share in shares]
    return [say(language, f"headline.parameters_{key}", times=_range(times, _times, language))]


def _times(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _change(name: str, shares: Sequence[float], language: Language) -> list[str]:
    """`41 to 42 % less time per step`, or `12 to 21 times the time per step`."""
    if shares and max(shares) >= 2:
        times = _range(shares, _times, language)
        return [say(language, f"headline.{name}_times", times=times)]
    changes = [100 * (share - 1) for share in shares]
    if not changes:
        return []
    if all(abs(change) < 0.5 for change in changes):
        return [say(language, f"headline.{name}_same")]
    if max(changes) < 0.5 or min(changes) > -0.5:
        key = "less" if max(changes) < 0.5 else "more"
        amount = _range([abs(change) for change in changes], lambda value: f"{value:.0f}", language)
        return [say(language, f"headline.{name}_{key}", share=amount)]
    return [say(language, f"headline.{name}_both", less=-min(changes), more=max(changes))]


def _range(values: Sequence[float], text: Callable[[float], str], language: Language) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else say(language, "headline.range", low=low, high=high)


def _data_lines(material: Material, tuned: Sequence[Finding], language: Language) -> list[str]:
    """Of the first pair of each task, whether examples and seeds suffice for a verdict."""
    first = {(pair.model, pair.task): pair for pair in reversed(tuned) if pair.comparison}
    order = dict.fromkeys((pair.model, pair.task) for pair in tuned)
    lines = []
    for model_task in (each for each in order if each in first):
        pair = first[model_task]
        planned = _planned(material, pair)
        text = data_text(pair, language)
        if planned is not None:
            text += say(
                language,
                "headline.planned",
                equal=planned.equal.power,
                detect=planned.detect.power,
                margin=planned.margin,
            )
        lines.append(text)
    return lines


def _planned(material: Material, pair: Finding) -> PairPlan | None:
    plan, names = (
        material.result.plan,
        (pair.model, pair.task, pair.first.method, pair.second.method),
    )
    for own in plan.pairs if plan else ():
        if (own.model, own.task, own.first, own.second) == names:
            return own
    return None


def _limits(material: Material, tuned: Sequence[Finding], language: Language) -> list[str]:
    """What does not follow from the verdicts above."""
    result, lines = material.result, list[str]()
    open_pairs: dict[tuple[str, str, str, str], list[str]] = {}
    for pair in tuned:
        if pair.comparison is None or pair.verdict is None:
            continue  # the verdict says it
        names, where = (pair.first.method, pair.second.method), f"{pair.model} · {pair.task}"
        margin = f"{100 * pair.margin:g}"
        if pair.verdict in ("undecided", "equal"):
            open_pairs.setdefault((pair.verdict, *names, margin), []).append(where)
        if pair.comparison.seeds < 3:
            open_pairs.setdefault(("seeds", "", "", ""), []).append(where)
    for (kind, first, second, margin), of_pair in open_pairs.items():
        where = ("、" if language == "ja" else ", ").join(dict.fromkeys(of_pair))
        values = {"a": first, "b": second, "margin": margin, "where": where}
        lines.append(say(language, f"headline.limit_{kind}", **values))
    if at_edge := searched_to_an_edge(result):
        lines.append(say(language, "headline.limit_edge", cells="; ".join(at_edge)))
    devices = {
        record.provenance.device
        for cell in result.chosen.values()
        if method_of(cell.config).trains and (record := result.record(cell)) is not None
        if record.provenance.device_type == "cpu"
    }
    if devices:
        lines.append(say(language, "headline.limit_cpu"))
    models, tasks = (
        ", ".join(dict.fromkeys(key[index] for key in result.chosen)) for index in (0, 1)
    )
    if result.chosen:
        lines.append(say(language, "headline.limit_scope", models=models, tasks=tasks))
    return lines
