"""Where each method of a study stands on test. Only what learned is compared: what lies above the
score that needs no model. No torch here."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tsugiki.data.tasks import Task
from tsugiki.report.compare import against
from tsugiki.report.words import Language, pick
from tsugiki.runs.reading import RunRecord
from tsugiki.score.metrics import chance_baseline, lead_baseline, majority_baseline
from tsugiki.score.statistics import Estimate
from tsugiki.study.cells import Cell, Key, StudyResult
from tsugiki.study.missing import seed_of, test_of

Kind = Literal["learned", "no better", "seeds failed", "failed", "missing"]
FLOORS = {
    "majority": ("最頻クラス", "majority class"),
    "chance": ("チャンスレベル", "chance"),
    "lead": ("冒頭文（lead）", "lead"),
}
NO_FLOOR = "its task's data cannot be read now, or has other rows: what needs no model is not known"
# of the labels' entropy: a loss above it has learned nothing but how often each label comes
NEARLY = 0.95


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What needs no model, on the rows of some answers: its name, and each row's value."""

    name: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)


def floor_of(task: Task, part: str, ids: Sequence[str], score: str) -> Floor | None:
    """The most frequent class of training (chance, where that is more), chance among a row's
    candidates, or a text's first characters, on the rows of these ids; None where the task no
    longer has them."""
    known = (id(task), part, tuple(ids), score)
    if known not in _FLOORS:
        _FLOORS[known] = (task, _floor(task, part, ids, score))
    return _FLOORS[known][1]


_FLOORS: dict[
    tuple[int, str, tuple[str, ...], str], tuple[Task, Floor | None]
] = {}  # ROUGE takes a while; a task is held, so that its id stays its own


def _floor(task: Task, part: str, ids: Sequence[str], score: str) -> Floor | None:
    rows = {one.id: one for one in task.examples[part]}
    if not set(ids) <= set(rows):
        return None
    here = [rows[one] for one in ids]
    if task.spec.kind == "generation":
        field = task.spec.cut or task.spec.fields[0]
        lead = lead_baseline(
            task.spec.metric, [one.fields[field] for one in here], [one.target for one in here]
        )
        return Floor(name="lead", values=tuple(lead[score]))
    chance = Floor(name="chance", values=tuple(chance_baseline([one.candidates for one in here])))
    if task.spec.kind == "choice":
        return chance
    majority = majority_baseline(
        [one.target for one in task.examples["train"]], [one.target for one in here]
    )
    return max(Floor(name="majority", values=tuple(majority)), chance, key=lambda one: one.mean)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One method on one task with one model. `above`: its difference to the floor, where both are
    known; `why`: in one line, for those that have no result; `lost`: what became of seeds that
    have none; `alarm`: see `loss_alarm`."""

    key: Key
    kind: Kind
    runs: Sequence[RunRecord] = ()
    cells: int = 0
    rates: int = 0
    score: float | None = None
    floor: Floor | None = None
    above: Estimate | None = None
    alarm: tuple[float, float] | None = None
    why: str = ""
    lost: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        return self.key[2]


def standings(result: StudyResult, tasks: Mapping[str, Task]) -> dict[Key, Standing]:
    """Every (model, task, method) of the study."""
    return {
        key: _standing(result, key, tasks.get(key[1]))
        for key in dict.fromkeys(cell.key for cell in result.cells)
    }


def _standing(result: StudyResult, key: Key, task: Task | None) -> Standing:
    cells = [cell for cell in result.cells if cell.key == key]
    rates = len({cell.config.train.learning_rate for cell in cells})
    start = Standing(key=key, kind="missing", cells=len(cells), rates=rates)
    chosen = result.chosen.get(key)
    if chosen is None:
        kind, why = why_nothing(result, cells)
        return replace(start, kind=kind, why=why)
    runs, lost = result.seeds(chosen), lost_seeds(result, chosen)
    if not runs:
        why = result.missing.get(test_of(chosen.label), "not scored on test yet")
        return replace(start, why=why)
    main = [run.scored("test").main for run in runs]
    scored = replace(start, runs=runs, score=statistics.fmean(one.value for one in main))
    if lost:
        return replace(scored, kind="seeds failed", why=lost[0], lost=tuple(lost))
    ids = [one.id for one in runs[0].answers("test")]
    floor = None if task is None else floor_of(task, "test", ids, main[0].name)
    if task is None or floor is None:
        return replace(scored, why=NO_FLOOR)
    above = against(runs, "test", floor.values)
    return replace(
        scored,
        kind="learned" if above.low > 0 else "no better",
        floor=floor,
        above=above,
        alarm=loss_alarm(runs[0], task),
    )


def why_nothing(result: StudyResult, cells: Sequence[Cell]) -> tuple[Kind, str]:
    """Why none of these cells has a score to choose by."""
    missing = [result.missing[cell.label] for cell in cells if cell.label in result.missing]
    failed = [
        record.outcome.reason
        for cell in cells
        if (record := result.record(cell)) is not None and record.status == "failed"
    ]
    if missing:
        return "missing", missing[0]
    if failed and len(failed) == len(cells):
        return "failed", failed[0]
    return "missing", failed[0] if failed else "not run"


def lost_seeds(result: StudyResult, cell: Cell) -> list[str]:
    """What became of the seeds of a chosen cell that were tried and have no test score: `seed 2:
    the loss is nan …`."""
    lost = []
    for number in range(1, cell.seeds(result.study.seeds)):
        failed = [
            run
            for run in result.repeats.get(cell.key, [])
            if run.config.train.seed == cell.config.train.seed + number and run.status == "failed"
        ]
        reason = (
            failed[0].outcome.reason
            if failed
            else result.missing.get(seed_of(cell.label, number + 1))
        )
        if reason is not None:
            lost.append(f"seed {number + 1}: {reason}")
    return lost


def standing_text(one: Standing, language: Language) -> str:
    """What is to be said of a method that cannot be compared; of one that learned, its score."""
    name = one.method
    if one.kind == "learned":
        assert one.floor is not None
        return pick(
            language,
            f"{name} は {one.score:.3f} で、{_floor_name(one, language)}（{one.floor.mean:.3f}）"
            "を上回ります",
            f"{name}: {one.score:.3f}, above {_floor_name(one, language)} ({one.floor.mean:.3f})",
        ) + _alarmed(one, language)
    if one.kind == "no better":
        return _no_better(one, language)
    if one.kind == "seeds failed":
        total, scores = (
            len(one.runs) + len(one.lost),
            ", ".join(f"{run.scored('test').main.value:.3f}" for run in one.runs),
        )
        return pick(
            language,
            f"{name} は {total} 個のシードのうち {len(one.lost)} 個が失敗しました（{one.why}）。"
            f"残り（{scores}）だけの平均は示しません",
            f"{len(one.lost)} of {total} seeds of {name} failed ({one.why}); no mean over the rest "
            f"({scores})",
        )
    if one.kind == "failed":
        return pick(
            language,
            f"{name} は {one.cells} 設定すべてが失敗し、結果がありません（{one.why}）",
            f"{name} has no result: "
            f"{'its only configuration' if one.cells == 1 else f'all {one.cells} configurations'} "
            f"failed ({one.why})",
        )
    return pick(
        language,
        f"{name} には結果がありません（{reason_text(one.why, language)}）",
        f"{name} has no result: {one.why}",
    )


def _no_better(one: Standing, language: Language) -> str:
    assert one.floor is not None
    assert one.above is not None
    assert one.score is not None
    floor = f"{_floor_name(one, language)} {one.floor.mean:.3f}"
    rates = pick(
        language,
        f"試した学習率 {one.rates} 個",
        "one learning rate tried" if one.rates == 1 else f"{one.rates} learning rates tried",
    )
    runs = pick(
        language,
        "この実行では" if len(one.runs) == 1 else f" {len(one.runs)} 個のシードで",
        "in this run" if len(one.runs) == 1 else f"over {len(one.runs)} seeds",
    )
    if one.above.mean <= 0:
        return pick(
            language,
            f"{one.method} は{runs}学習できていません（{one.score:.3f}、{floor}、{rates}）",
            f"{one.method} did not learn {runs} ({one.score:.3f}; {floor}; {rates})",
        ) + _alarmed(one, language)
    difference = f"{one.above.mean:+.3f} [{one.above.low:+.3f}, {one.above.high:+.3f}]"
    if len(one.runs) > 1:
        scores = ", ".join(f"{run.scored('test').main.value:.3f}" for run in one.runs)
        rates += pick(language, f"、シードごとの値 {scores}", f"; by seed {scores}")
    return pick(
        language,
        f"{one.method} は{runs}{_floor_name(one, language)}と区別できません（{one.score:.3f}、"
        f"{floor}、差 {difference}、{rates}）",
        f"{one.method} cannot be told from {_floor_name(one, language)} {runs} ({one.score:.3f}; "
        f"{floor}; difference {difference}; {rates})",
    ) + _alarmed(one, language)


def _alarmed(one: Standing, language: Language) -> str:
    if one.alarm is None:
        return ""
    loss, entropy = one.alarm
    return pick(
        language,
        f"（学習の終わりの損失は 1 解答あたり {loss:.2f} nat で、頻度だけで当てる場合の "
        f"{entropy:.2f} nat とほぼ同じかそれ以上です）",
        f" (its loss at the end of training, {loss:.2f} nats an answer, is that of guessing: "
        f"{entropy:.2f})",
    )


def _floor_name(one: Standing, language: Language) -> str:
    assert one.floor is not None
    japanese, english = FLOORS[one.floor.name]
    return pick(language, japanese, english if one.floor.name == "chance" else f"the {english}")


REASONS = {
    "not run": "未実行",
    "not scored on test yet": "テストは未評価",
    "another process is working on it": "別のプロセスが実行中",
    NO_FLOOR: "タスクのデータを読めないか行が変わったため、モデルなしの基準値が不明",
}


def reason_text(why: str, language: Language) -> str:
    """A reason of ours in the page's language; what errors say stays English."""
    return REASONS.get(why, why) if language == "ja" else why


def loss_alarm(record: RunRecord, task: Task) -> tuple[float, float] | None:
    """(loss a row at the end of training, entropy of the answers), in nats, where the first is no
    lower than guessing by frequency; None where it is, for free text, and for runs that kept too
    little to tell."""
    tokens, losses = record.outcome.target_tokens, record.losses
    if task.spec.kind == "generation" or tokens is None or not losses:
        return None
    loss = statistics.fmean(losses[-max(1, len(losses) // 10) :]) * tokens
    if task.spec.kind == "choice":
        entropy = statistics.fmean(math.log(len(one.candidates)) for one in task.examples["train"])
    else:
        counts = Counter(one.target for one in task.examples["train"])
        total = sum(counts.values())
        entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    return (loss, entropy) if loss >= NEARLY * entropy else None
