"""The finding in plain words: does LoRA match full fine-tuning here, by how much, at which share of the cost?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tsugiki.study.cells import StudyResult, task_label
from tsugiki.study.compare import Comparison, compare_methods
from tsugiki.study.store import RunRecord
from tsugiki.study.words import VERDICTS, Language, pick

Verdict = Literal["better", "worse", "equal", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One pair of methods on one task with one model."""

    model: str
    task: str
    first: str
    second: str
    verdict: Verdict
    margin: float
    comparison: Comparison
    parameter_share: float
    memory_share: float | None
    step_share: float | None


def verdict_of(low: float, high: float, margin: float) -> Verdict:
    """What a 95 % interval of a difference says: all within the margin, all on one side of zero, or neither."""
    if -margin <= low and high <= margin:
        return "equal"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "undecided"


def findings(result: StudyResult) -> list[Finding]:
    """The first method of each task against every other one, on test."""
    found = []
    for model in result.study.models:
        for choice in result.study.tasks:
            here = [(key[2], result.seeds(cell)) for key, cell in result.chosen.items() if key[:2] == (model.label, task_label(choice))]
            scored = [(name, records) for name, records in here if records]
            for name, records in scored[1:]:
                found.append(_finding(model.label, task_label(choice), scored[0], (name, records), result.study.margin / 100))
    return found


def _finding(model: str, task: str, first: tuple[str, list[RunRecord]], second: tuple[str, list[RunRecord]], margin: float) -> Finding:
    pair = compare_methods(first[1], second[1], "test")
    one, other = first[1][0].happened, second[1][0].happened
    costs = [solo_measurement(records[0]) for _, records in (first, second)]
    return Finding(
        model=model,
        task=task,
        first=first[0],
        second=second[0],
        verdict=verdict_of(pair.low, pair.high, margin),
        margin=margin,
        comparison=pair,
        parameter_share=one["trainable"] / other["trainable"],
        memory_share=_share(costs[0]["peak_allocated_bytes"], costs[1]["peak_allocated_bytes"]),
        step_share=_share(solo_step_s(first[1][0]), solo_step_s(second[1][0])),
    )


def examples_needed(pair: Comparison, margin: float) -> int:
    """About how many examples would shrink the interval's half width to the margin: it falls with the root of their number."""
    half_width = (pair.high - pair.low) / 2
    return max(pair.n + 1, 100 * round(pair.n * (half_width / margin) ** 2 / 100))


def solo_step_s(record: RunRecord) -> float | None:
    """Median seconds a step at the paper's batch of 8, the device to itself."""
    measured = (record.happened.get("solo") or {}).get("8")
    return measured["step_s_median"] if measured else None


def solo_measurement(record: RunRecord) -> Mapping[str, Any]:
    """What the run cost with the device to itself, at its own batch; what it cost among others only where that is not known."""
    solo = (record.happened.get("solo") or {}).get(str(record.config.train.batch))
    measured: Mapping[str, Any] = solo or record.happened["measurement"]
    return measured


def _share(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def sentence(finding: Finding, language: Language) -> str:
    """One finding as a sentence with its numbers."""
    pair = finding.comparison
    needed = examples_needed(pair, finding.margin)
    said = VERDICTS[finding.verdict][language].format(a=finding.first, b=finding.second, m=100 * finding.margin, needed=needed)
    numbers = f"{pair.first:.3f} / {pair.second:.3f}, {pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}], n = {pair.n}"
    seeds = pick(language, f"、シード {pair.seeds} 個", f", {pair.seeds} seed{'s' if pair.seeds > 1 else ''}")
    costs = [(finding.parameter_share, "学習対象パラメータ", "the trained parameters"), (finding.memory_share, "ピークメモリ", "the peak memory")]
    costs.append((finding.step_share, "1 ステップの時間", "the time a step"))
    if language == "ja":
        cost = "、".join(f"{name} {share:.3g} 倍" for share, name, _ in costs if share)
        return f"{finding.model} · {finding.task}: {said}（{numbers}{seeds}）。{finding.second} に対する {finding.first} のコスト: {cost}。"
    cost = ", ".join(f"{share:.3g} × {name}" for share, _, name in costs if share)
    return f"{finding.model} · {finding.task}: {said} ({numbers}{seeds}). {finding.first} takes, against {finding.second}: {cost}."
