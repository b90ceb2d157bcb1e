"""The finding in plain words: does LoRA match full fine-tuning here, by how much, at which share
of the cost? What may be said follows from what was measured: methods that did not learn are not
compared, and one seed speaks of one run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tsugiki.errors import RunError
from tsugiki.report.compare import Comparison, compare_methods
from tsugiki.report.exclusive import exclusive_step_s, peak_of_one
from tsugiki.report.standing import Standing, standing_text
from tsugiki.runs.methods import method_of
from tsugiki.score.rules import metric_of
from tsugiki.study.cells import Key, StudyResult
from tsugiki.words import Language, Message, called, say

Verdict = Literal["better", "worse", "equal", "undecided"]
# How much more than the examples that shrink the interval's half width to the margin: (z₀.₉₇₅ +
# z₀.₈₀)² / z₀.₉₇₅² finds a difference of one margin in 80 % of studies; (z₀.₉₇₅ + z₀.₉₀)² /
# z₀.₉₇₅² calls equal methods equal in 80 % (two one-sided tests of 2.5 %, as the verdict makes).
DETECT, EQUAL = 2.043, 2.735
FEW_RATES = 3


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One pair of methods on one task with one model; without a verdict where they may not be
    compared (`why`, where their standings do not say)."""

    model: str
    task: str
    first: Standing
    second: Standing
    margin: float
    verdict: Verdict | None = None
    comparison: Comparison | None = None
    why: str = ""
    parameter_share: float | None = None
    memory_share: float | None = None
    step_share: float | None = None

    def to_json(self) -> dict[str, object]:
        content: dict[str, object] = {
            "model": self.model, "task": self.task, "verdict": self.verdict,
        }  # fmt: skip
        if self.comparison is not None:
            names = ("difference", "low", "high", "n", "seeds")
            content |= {name: getattr(self.comparison, name) for name in names}
        standing = {standing.method: standing.kind for standing in (self.first, self.second)}
        return {**content, "margin": self.margin, "standing": standing}


def verdict_of(low: float, high: float, margin: float) -> Verdict:
    """What a 95 % interval of a difference says: all within the margin, all on one side of zero,
    or neither."""
    if -margin <= low and high <= margin:
        return "equal"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def decimals_of(pair: Comparison, margin: float) -> int:
    """How many decimals of points show what the interval says: −1.9 to +2.0 seems to lie within a
    margin of 2 that 2.02 lies outside of."""
    says = verdict_of(pair.low, pair.high, margin)
    for decimals in (1, 2, 3):
        low, high = (round(100 * bound, decimals) for bound in (pair.low, pair.high))
        if verdict_of(low, high, 100 * margin) == says:
            return decimals
    return 4


def findings(result: StudyResult, standings: Mapping[Key, Standing]) -> list[Finding]:
    """Every pair of methods of a task with one model, on test; LoRA against full fine-tuning
    first."""
    orders = {method.name: method_of(method).order for method in result.study.methods}
    pairs = []
    for model, choice in itertools.product(result.study.models, result.study.tasks):
        of_task = [
            standing
            for key, standing in standings.items()
            if key[:2] == (model.label, choice.label)
        ]
        both = [
            _in_order(first, second, orders)
            for first, second in itertools.combinations(of_task, 2)
            if first.tuned or second.tuned  # how two prompts of one base differ is not asked
        ]
        both.sort(key=lambda pair: orders[pair[0].method] == orders[pair[1].method])
        pairs += [
            _finding(model.label, choice.label, *pair, result.study.margin / 100) for pair in both
        ]
    return pairs


def _in_order(
    standing: Standing, other: Standing, orders: Mapping[str, int]
) -> tuple[Standing, Standing]:
    return (
        (other, standing) if orders[standing.method] > orders[other.method] else (standing, other)
    )


def _finding(model: str, task: str, first: Standing, second: Standing, margin: float) -> Finding:
    silent = Finding(model=model, task=task, first=first, second=second, margin=margin)
    # The untouched base may lie anywhere: what tuning did is the question.
    if first.kind != "learned" or (second.kind != "learned" and not _untouched(second)):
        return silent
    if {run.folder for run in first.runs} == {run.folder for run in second.runs}:
        return replace(silent, why=Message("finding.same_runs"))
    try:
        # What nobody trained has no seeds of its own: it stands against each of the other's.
        others = second.runs if second.tuned else [*second.runs] * len(first.runs)
        pair = compare_methods(first.runs, others, "test")
    except RunError as differ:
        return replace(silent, why=str(differ))
    ours, theirs = first.runs[0].outcome, second.runs[0].outcome
    return replace(
        silent,
        verdict=verdict_of(pair.low, pair.high, margin),
        comparison=pair,
        parameter_share=_share(ours.trainable, theirs.trainable),
        memory_share=_share(peak_of_one(first.runs[0]), peak_of_one(second.runs[0])),
        step_share=_share(exclusive_step_s(first.runs[0]), exclusive_step_s(second.runs[0])),
    )


def _untouched(standing: Standing) -> bool:
    return standing.kind == "no better" and not standing.tuned


def examples_needed(pair: Comparison, margin: float, power: float) -> int | None:
    """About how many examples would give 80 % power (`power`: `DETECT` or `EQUAL`), rounded up to
    two digits; None where the seeds' share of the interval alone is too wide for that, however
    many there are. What one seed does not show of the spread between seeds is not in it."""
    wanted = margin**2 / power - pair.seeds_half**2
    if wanted <= 0:
        return None
    number = pair.n * pair.rows_half**2 / wanted
    unit = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return max(1, unit * math.ceil(number / unit))


def _share(first: float | None, second: float | None) -> float | None:
    return first / second if first and second else None


def base_sentences(pairs: Sequence[Finding], language: Language) -> list[str]:
    """What tuning gained: a sentence for each model and task, against the untouched base (of
    several rows the one that scores most)."""
    said = []
    for model_task in dict.fromkeys((pair.model, pair.task) for pair in pairs):
        own = [pair for pair in pairs if (pair.model, pair.task) == model_task]
        shown = [
            (pair, pair.comparison)
            for pair in own
            if pair.comparison is not None and is_best_base(pair, own)
        ]
        if not shown:
            continue
        first, compared = shown[0]
        name = first.first.runs[0].scored("test").main.name
        parts = [
            say(
                language,
                "finding.base_part",
                method=pair.first.method,
                difference=100 * each.difference,
                low=100 * each.low,
                high=100 * each.high,
            )
            for pair, each in shown
        ]
        said.append(
            say(
                language,
                "finding.base",
                where=" · ".join(model_task),
                base=first.second.method,
                value=_value(compared.second, name) + _valid_text(first.second, language),
                parts=("、" if language == "ja" else ", ").join(parts),
                more=_seeds_text(compared, language),
            )
        )
    return said


def _valid_text(base: Standing, language: Language) -> str:
    """How many of its answers are any of the candidates: why a base may score nothing."""
    rate = base.runs[0].scored("test").candidate_rate
    return "" if rate is None else say(language, "finding.base_valid", rate=f"{100 * rate:.0f} %")


def is_best_base(pair: Finding, of_task: Sequence[Finding]) -> bool:
    """Whether a pair's second is the untouched base, in the row of it that scores most."""
    rows = [
        own
        for own in of_task
        if not own.second.tuned and own.second.score is not None and own.comparison is not None
    ]
    if pair not in rows:
        return False
    best = max(rows, key=lambda own: own.second.score or 0.0)
    return pair.second.key == best.second.key


def _seeds_text(pair: Comparison, language: Language) -> str:
    if pair.seeds == 1:
        return say(language, "finding.one_seed")
    return say(language, "finding.seeds", seeds=pair.seeds)


def data_text(finding: Finding, language: Language) -> str:
    """Whether examples and seeds suffice for the verdict, and what would."""
    pair = finding.comparison
    assert pair is not None, "a pair that was compared"
    where, more = f"{finding.model} · {finding.task}", _seeds_text(pair, language)
    undecided = finding.verdict == "undecided"
    key = "finding.not_enough" if undecided else "finding.enough"
    needed = _needed(pair, finding.margin, language) if undecided else ""
    text = say(language, key, where=where, n=pair.n, more=more, needed=needed)
    return text + (say(language, "finding.few_seeds") if pair.seeds < 3 else "")


def sentence(finding: Finding, language: Language, *, brief: bool = False) -> str:
    """One finding as a sentence with its numbers; `brief`: without costs, and what more data would
    show."""
    pair, first, second = finding.comparison, finding.first.method, finding.second.method
    where = f"{finding.model} · {finding.task}"
    if pair is None or finding.verdict is None:
        short = _below_the_floor(finding, language) if brief else ""
        return f"{where}: {short or _no_verdict(finding, language)}"
    seeds = {1: "one_seed", 2: "two_seeds"}.get(pair.seeds, "seeds")
    num_seeds = _seeds_text(pair, language)
    undecided = finding.verdict == "undecided" and not brief
    needed = _needed(pair, finding.margin, language) if undecided else ""
    name = finding.first.runs[0].scored("test").main.name
    decimals = decimals_of(pair, finding.margin)
    verdict = say(
        language,
        f"verdict.{seeds}.{finding.verdict}",
        a=first,
        b=second,
        score=called(language, "label", name),
        margin=100 * finding.margin,
        points=100 * abs(pair.difference),
        first=_value(pair.first, name),
        second=_value(pair.second, name),
        low=f"{100 * pair.low:+.{decimals}f}",
        high=f"{100 * pair.high:+.{decimals}f}",
        n=f"{pair.n:,}",
        more=num_seeds + _rates_tried(finding, language),
        needed=needed,
    )
    costs = "" if brief else _costs(finding, language)
    return f"{where}: {verdict}{'。' if language == 'ja' else '.'}{costs}"


def _value(value: float, name: str) -> str:
    """A score in a sentence: a share of right answers in per cent."""
    return f"{100 * value:.1f} %" if metric_of(name).percent else f"{value:.3f}"


def _costs(finding: Finding, language: Language) -> str:
    """What the first method costs, set against the second; nothing where nothing was measured."""
    a, b = finding.first.method, finding.second.method
    if not finding.second.tuned:
        return ""  # nothing was trained there
    parts = []
    if finding.parameter_share and finding.parameter_share >= 2:
        times = f"{finding.parameter_share:.1f}"
        parts.append(say(language, "finding.parameters_times", times=times, b=b))
    elif finding.parameter_share:
        share = 100 * finding.parameter_share
        text = f"{share:.1f} %" if share >= 1 else f"{share:.2g} %"
        parts.append(say(language, "finding.parameters", share=text, b=b))
    for name, ratio in (("time", finding.step_share), ("memory", finding.memory_share)):
        if ratio and ratio >= 2:
            parts.append(say(language, f"finding.{name}_times", times=f"{ratio:.1f}"))
        elif ratio:
            change = 100 * (ratio - 1)
            kind = "same" if abs(change) < 0.5 else "less" if change < 0 else "more"
            parts.append(say(language, f"finding.{name}_{kind}", share=f"{abs(change):.0f} %"))
    if not parts:
        return ""
    if language == "en" and len(parts) > 1:
        parts = [", ".join(parts[:-1]) + f" and {parts[-1]}"]
    return say(language, "finding.costs", a=a, costs="、".join(parts))


def _rates_tried(finding: Finding, language: Language) -> str:
    """How many learning rates stand behind each score, where they are few: another rate might say
    otherwise."""
    tried = [standing.rates for standing in (finding.first, finding.second)]
    if min(tried) >= FEW_RATES or not finding.second.tuned:
        return ""
    return say(language, "finding.rates_tried", first=tried[0], second=tried[1])


def _no_verdict(finding: Finding, language: Language) -> str:
    both = (finding.first, finding.second)
    if finding.why:
        return say(language, "finding.no_verdict", why=finding.why)
    nothing = [standing.method for standing in both if standing.kind != "learned"]
    texts = [
        standing_text(standing, language)
        for standing in sorted(both, key=lambda standing: standing.kind == "learned")
    ]
    ja = language == "ja"
    return say(
        language,
        "finding.not_compared",
        a=both[0].method,
        b=both[1].method,
        texts=("。" if ja else ". ").join(texts),
        nothing=(" と " if ja else " or ").join(nothing),
    )


def _below_the_floor(finding: Finding, language: Language) -> str:
    """Which of both are not above what needs no model, in a few words; empty where one has another
    reason for no verdict."""
    poor = [own for own in (finding.first, finding.second) if own.kind != "learned"]
    if finding.why or not poor or any(own.kind != "no better" for own in poor):
        return ""
    floor = poor[0].floor
    assert floor is not None, "what is compared with a floor has one"
    names = [f"{own.method} ({own.score:.3f})" for own in poor]
    return say(
        language,
        "finding.below_the_floor",
        a=finding.first.method,
        b=finding.second.method,
        names=(" と " if language == "ja" else " and ").join(names),
        floor_name=say(language, f"floor.{floor.name}"),
        floor_mean=floor.mean,
    )


def _needed(pair: Comparison, margin: float, language: Language) -> str:
    """What an undecided comparison would need, for 80 % power."""
    points = f"{100 * margin:g}"
    detect, equal = (examples_needed(pair, margin, power) for power in (DETECT, EQUAL))
    if detect is None or equal is None:
        seeds = f"{100 * pair.seeds_half:.1f}"
        return say(language, "finding.seeds_too_wide", points=points, seeds=seeds)
    if equal <= pair.n:
        return say(language, "finding.enough_but_between", points=points)
    if detect <= pair.n:
        return say(language, "finding.enough_to_detect", equal=equal, points=points)
    return say(language, "finding.needed", detect=detect, equal=equal, points=points)
