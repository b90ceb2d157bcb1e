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
from tsugiki.report.standing import Standing, standing_text
from tsugiki.report.words import BY_SEEDS, VERDICTS, Language, pick
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.study.cells import Key, StudyResult, task_label
from tsugiki.train.cost import Cost

Verdict = Literal["better", "worse", "equal", "undecided"]
# How much more than the examples that shrink the interval's half width to the margin: (z₀.₉₇₅ +
# z₀.₈₀)² / z₀.₉₇₅² finds a difference of one margin in 80 % of studies; (z₀.₉₇₅ + z₀.₉₀)² /
# z₀.₉₇₅² calls equal methods equal in 80 % (two one-sided tests of 2.5 %, as the verdict makes).
PAPER_BATCH = 8
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
        told: dict[str, object] = {
            "model": self.model, "task": self.task, "verdict": self.verdict,
        }  # fmt: skip
        if self.comparison is not None:
            names = ("difference", "low", "high", "n", "seeds")
            told |= {name: getattr(self.comparison, name) for name in names}
        standing = {one.method: one.kind for one in (self.first, self.second)}
        return {**told, "margin": self.margin, "standing": standing}


def verdict_of(low: float, high: float, margin: float) -> Verdict:
    """What a 95 % interval of a difference says: all within the margin, all on one side of zero,
    or neither."""
    if -margin <= low and high <= margin:
        return "equal"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def findings(result: StudyResult, found: Mapping[Key, Standing]) -> list[Finding]:
    """Every pair of methods of a task with one model, on test; LoRA against full fine-tuning
    first."""
    orders = {method.name: method_of(method).order for method in result.study.methods}
    pairs = []
    for model, choice in itertools.product(result.study.models, result.study.tasks):
        here = [one for key, one in found.items() if key[:2] == (model.label, task_label(choice))]
        both = [_in_order(one, other, orders) for one, other in itertools.combinations(here, 2)]
        both.sort(key=lambda pair: orders[pair[0].method] == orders[pair[1].method])
        pairs += [
            _finding(model.label, task_label(choice), *pair, result.study.margin / 100)
            for pair in both
        ]
    return pairs


def _in_order(
    one: Standing, other: Standing, orders: Mapping[str, int]
) -> tuple[Standing, Standing]:
    return (other, one) if orders[one.method] > orders[other.method] else (one, other)


def _finding(model: str, task: str, first: Standing, second: Standing, margin: float) -> Finding:
    silent = Finding(model=model, task=task, first=first, second=second, margin=margin)
    if not (first.kind == second.kind == "learned"):
        return silent
    try:
        pair = compare_methods(first.runs, second.runs, "test")
    except RunError as differ:
        return replace(silent, why=str(differ))
    one, other = first.runs[0].outcome, second.runs[0].outcome
    costs = [exclusive_cost(standing.runs[0]) for standing in (first, second)]
    return replace(
        silent,
        verdict=verdict_of(pair.low, pair.high, margin),
        comparison=pair,
        parameter_share=one.trainable / other.trainable,
        memory_share=_share(costs[0].peak_allocated_bytes, costs[1].peak_allocated_bytes),
        step_share=_share(exclusive_step_s(first.runs[0]), exclusive_step_s(second.runs[0])),
    )


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


def exclusive_step_s(record: RunRecord) -> float | None:
    """Median seconds a step at the paper's batch of 8, on an otherwise idle device."""
    cost = (record.outcome.exclusive_cost or {}).get(PAPER_BATCH)
    return cost.step_s_median if cost else None


def exclusive_cost(record: RunRecord) -> Cost:
    """What the run cost on an otherwise idle device, at its own batch; what it cost among others
    only where that is not known."""
    measured = record.outcome.exclusive_cost or {}
    return measured.get(record.config.train.batch) or record.cost()


def _share(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def statements(
    pairs: Sequence[Finding], found: Mapping[Key, Standing], language: Language
) -> list[str]:
    """All that the finding says: every pair, and what became of a method that has no other to be
    compared with."""
    told = {standing.key for pair in pairs for standing in (pair.first, pair.second)}
    alone = [one for key, one in found.items() if key not in told and one.kind != "learned"]
    return [sentence(pair, language) for pair in pairs] + [
        f"{one.key[0]} · {one.key[1]}: {standing_text(one, language)}." for one in alone
    ]


def sentence(finding: Finding, language: Language) -> str:
    """One finding as a sentence with its numbers."""
    pair, first, second = finding.comparison, finding.first.method, finding.second.method
    place = f"{finding.model} · {finding.task}"
    if pair is None or finding.verdict is None:
        return f"{place}: {_no_verdict(finding, language)}"
    said = BY_SEEDS.get(pair.seeds, VERDICTS)[finding.verdict][language].format(
        a=first, b=second, m=100 * finding.margin
    )
    if finding.verdict == "undecided":
        said += _would_tell(pair, finding.margin, language)
    numbers = (
        f"{pair.first:.3f} / {pair.second:.3f}, {pair.difference:+.3f} [{pair.low:+.3f}, "
        f"{pair.high:+.3f}], n = {pair.n}"
    )
    seeds = pick(
        language, f"、シード {pair.seeds} 個", f", {pair.seeds} seed{'s' if pair.seeds > 1 else ''}"
    ) + _rates_tried(finding, language)
    costs = [
        (finding.parameter_share, "学習対象パラメータ", "the trained parameters"),
        (finding.memory_share, "ピークメモリ", "the peak memory"),
    ]
    costs.append((finding.step_share, "1 ステップの時間", "the time a step"))
    if language == "ja":
        cost = "、".join(f"{name} {share:.3g} 倍" for share, name, _ in costs if share)
        return f"{place}: {said}（{numbers}{seeds}）。{second} に対する {first} のコスト: {cost}。"
    cost = ", ".join(f"{share:.3g} × {name}" for share, _, name in costs if share)
    return f"{place}: {said} ({numbers}{seeds}). {first} takes, against {second}: {cost}."


def _rates_tried(finding: Finding, language: Language) -> str:
    """How many learning rates stand behind each score, where they are few: another rate might say
    otherwise."""
    tried = [one.rates for one in (finding.first, finding.second)]
    if min(tried) >= FEW_RATES:
        return ""
    return pick(
        language,
        f"、試した学習率 {tried[0]} / {tried[1]} 個",
        f", learning rates tried: {tried[0]} / {tried[1]}",
    )


def _no_verdict(finding: Finding, language: Language) -> str:
    both = (finding.first, finding.second)
    if finding.why:
        return pick(language, f"判定なし（{finding.why}）。", f"no verdict ({finding.why}).")
    nothing = [one.method for one in both if one.kind != "learned"]
    texts = [
        standing_text(one, language) for one in sorted(both, key=lambda one: one.kind == "learned")
    ]
    if language == "ja":
        return (
            f"{both[0].method} と {both[1].method} は比べられません。{'。'.join(texts)}。"
            f"{' と '.join(nothing)} については何も言えません。"
        )
    return (
        f"no verdict between {both[0].method} and {both[1].method}. {'. '.join(texts)}. Nothing "
        f"follows about {' or '.join(nothing)}."
    )


def _would_tell(pair: Comparison, margin: float, language: Language) -> str:
    """What an undecided comparison would need, for 80 % power."""
    points = f"{100 * margin:g}"
    detect, equal = (examples_needed(pair, margin, power) for power in (DETECT, EQUAL))
    if detect is None or equal is None:
        seeds = f"{100 * pair.seeds_half:.1f}"
        return pick(
            language,
            f"（シードによるばらつきだけで区間は ±{seeds} ポイントあり、件数を増やすだけでは "
            f"±{points} ポイントを見分けられません。シードを増やしてください）",
            f": the seeds alone make ±{seeds} points of the interval, so more examples alone "
            f"cannot tell ±{points}; more seeds can",
        )
    if equal <= pair.n:
        return pick(
            language,
            f"（±{points} ポイントの差を検出力 80 % で見分けられる件数はあります。差は 0 と "
            f"{points} ポイントの間かもしれません）",
            f", though they have 80 % power for ±{points} points: the difference may lie between "
            f"none and {points}",
        )
    if detect <= pair.n:
        return pick(
            language,
            f"（検出力 80 % で、{points} ポイントの差を見分けるには足りていますが、"
            f"同等と言うには約 {equal:,} 件が必要）",
            f": enough to find a difference of {points} points with 80 % power; to call equal "
            f"methods equal takes about {equal:,}",
        )
    return pick(
        language,
        f"（検出力 80 % で、{points} ポイントの差を見分けるには約 {detect:,} 件、同等と言うには約 "
        f"{equal:,} 件が必要）",
        f" (with 80 % power, about {detect:,} would find a difference of {points} points, about "
        f"{equal:,} would call equal methods equal)",
    )
