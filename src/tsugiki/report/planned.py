"""What was planned before test was read, beside what was found. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tsugiki.report.compare import Comparison
from tsugiki.report.finding import Finding, decimals_of
from tsugiki.report.table import Content, Number, Said, Table, column, lines, phrase, said
from tsugiki.study.cells import StudyResult
from tsugiki.study.kept_plan import PairPlan, Promise
from tsugiki.words import Language, say

COLUMNS = (
    column("place", "text", "label.model_task"),
    column("pair", "text", "label.pair"),
    column("aim", "text", "label.aim"),
    column("n", "number", "label.n"),
    column("seeds", "number", "label.seeds"),
    column("power", "number", "label.power"),
    column("needed", "text", "label.needed"),
    column("found", "text", "label.found"),
)


def planned_table(result: StudyResult, findings: Sequence[Finding]) -> Table | None:
    """None where nothing was planned and none was asked for."""
    plan = result.plan
    if plan is None and result.study.power is None:
        return None
    rows = [
        row
        for pair in (plan.pairs if plan else ())
        for row in _rows(pair, _found_of(pair, findings))
    ]

    def notes(language: Language) -> list[str]:
        alpha = plan.alpha if plan else 0.025
        rule = say(language, "planned.rule", alpha=f"{alpha:g}")
        late = [] if rows else [say(language, "planned.none")]
        return [rule, *late, *(basis_text(pair, language) for pair in (plan.pairs if plan else ()))]

    title = phrase("planned.title")
    return Table(name="planned", title=title, columns=COLUMNS, rows=tuple(rows), notes=lines(notes))


def _rows(pair: PairPlan, comparison: Comparison | None) -> list[tuple[Content, ...]]:
    """What was planned of a pair: to call equal methods equal, and to detect one margin."""
    values = {"margin": pair.margin, "power": pair.power}
    equal = (phrase("planned.aim_equal", **values), pair.equal)
    detect = (phrase("planned.aim_detect", **values), pair.detect)
    outcomes = (
        said(lambda language: found_text(pair, comparison, language)),
        said(lambda language: _detected_text(comparison, language)),
    )
    return [
        (
            f"{pair.model} · {pair.task}",
            f"{pair.first} - {pair.second}",
            aim,
            Number(value=pair.test_rows, form=","),
            pair.seeds,
            Number(value=promise.power, form=".2f"),
            _needed_cell(promise),
            words,
        )
        for (aim, promise), words in zip((equal, detect), outcomes, strict=True)
    ]


def _detected_text(comparison: Comparison | None, language: Language) -> str:
    if comparison is None:
        return say(language, "planned.no_verdict")
    holds = comparison.low <= 0 <= comparison.high
    return say(language, "planned.not_detected" if holds else "planned.detected")


def _needed_cell(promise: Promise) -> Said:
    return said(lambda language: needed_text(promise, language))


def needed_text(promise: Promise, language: Language) -> str:
    """`2,310 rows or 8 seeds`; what no number of reaches is said."""
    rows = (
        say(language, "planned.no_rows")
        if promise.rows is None
        else say(language, "planned.rows", rows=promise.rows)
    )
    seeds = (
        say(language, "planned.no_seeds")
        if promise.seeds is None
        else say(language, "planned.seeds", seeds=promise.seeds)
    )
    return say(language, "planned.either", rows=rows, seeds=seeds)


def _found_of(pair: PairPlan, findings: Sequence[Finding]) -> Comparison | None:
    for finding in findings:
        names = (finding.model, finding.task, finding.first.method, finding.second.method)
        if names == (pair.model, pair.task, pair.first, pair.second):
            return finding.comparison
    return None


def found_text(pair: PairPlan, comparison: Comparison | None, language: Language) -> str:
    """The difference with its interval, and both one-sided tests against the margin that was
    planned."""
    if comparison is None:
        return say(language, "planned.no_verdict")
    above, below = 100 * comparison.low >= -pair.margin, 100 * comparison.high <= pair.margin
    tests = {
        (True, True): "planned.tests_both",
        (True, False): "planned.tests_lower",
        (False, True): "planned.tests_upper",
        (False, False): "planned.tests_neither",
    }
    decimals = decimals_of(comparison, pair.margin / 100)
    return say(
        language,
        "planned.found",
        difference=100 * comparison.difference,
        low=f"{100 * comparison.low:+.{decimals}f}",
        high=f"{100 * comparison.high:+.{decimals}f}",
        tests=say(language, tests[above, below]),
    )


def basis_text(pair: PairPlan, language: Language) -> str:
    """From what it was planned."""
    where = f"{pair.model} · {pair.task}, {pair.first} - {pair.second}"
    if not pair.pilot_seeds:
        return say(language, "planned.assumed", where=where, made=pair.made[:10])
    few = "" if pair.pilot_seeds > 1 else say(language, "planned.one_seed")
    unequal = (
        ""
        if pair.disagreement is None
        else say(language, "planned.disagreement", share=pair.disagreement)
    )
    return say(
        language,
        "planned.basis",
        where=where,
        made=pair.made[:10],
        rows=pair.pilot_rows,
        seeds=pair.pilot_seeds,
        spread=100 * pair.seed_spread,
        more=unequal + few,
    )


def planned_statements(
    result: StudyResult, findings: Sequence[Finding], language: Language
) -> list[str]:
    """A sentence for each pair: what was planned, and what was found."""
    plan = result.plan
    if plan is None:
        return []
    return [
        say(
            language,
            "planned.sentence",
            plan=plan_text(pair, plan.alpha, language),
            comparison=found_text(pair, _found_of(pair, findings), language),
        )
        for pair in plan.pairs
    ]


def plan_text(pair: PairPlan, alpha: float, language: Language) -> str:
    """What a pair's comparison can find, in a sentence."""
    key = "finding.one_seed" if pair.seeds == 1 else "finding.seeds"
    seeds = say(language, key, seeds=pair.seeds)
    values: Mapping[str, object] = {
        "alpha": f"{alpha:g}",
        "detect": pair.detect.power,
        "equal": pair.equal.power,
        "first": pair.first,
        "margin": pair.margin,
        "n": pair.test_rows,
        "second": pair.second,
        "seeds": seeds,
        "where": f"{pair.model} · {pair.task}",
    }
    return say(language, "planned.plan", **values)
