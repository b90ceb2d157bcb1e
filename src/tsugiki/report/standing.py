"""Where each method of a study stands on test. Only what learned is compared: what lies above the
score that needs no model. No torch here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tsugiki.data.tasks import Task
from tsugiki.report.compare import against
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.score.baselines import baselines, guessing_nats
from tsugiki.score.statistics import Estimate
from tsugiki.study.cells import Cell, Key, StudyResult
from tsugiki.study.missing import seed_of, test_of
from tsugiki.words import Language, Message, in_language, recognised, say

Kind = Literal["learned", "no better", "seeds failed", "failed", "missing"]
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
    rows = {example.id: example for example in task.examples[part]}
    if not set(ids) <= set(rows):
        return None
    own_rows = [rows[number] for number in ids]
    floors = [
        Floor(name=baseline.name, values=tuple(values))
        for baseline in baselines(task.spec, task.examples["train"], own_rows)
        if (values := baseline.of(score)) is not None
    ]
    return max(floors, key=lambda floor: floor.mean) if floors else None


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

    @property
    def tuned(self) -> bool:
        """Whether it is the result of training; the untouched base is none."""
        return not self.runs or method_of(self.runs[0].config).tuned


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
    scored = replace(start, runs=runs, score=statistics.fmean(score.value for score in main))
    if lost:
        return replace(scored, kind="seeds failed", why=lost[0], lost=tuple(lost))
    ids = [answer.id for answer in runs[0].answers("test")]
    floor = None if task is None else floor_of(task, "test", ids, main[0].name)
    if task is None or floor is None:
        return replace(scored, why=Message("reason.no_floor"))
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
    lost = list[str]()
    for number in range(1, cell.seeds(result.study.num_seeds)):
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
            said = recognised(reason)
            lost.append(Message("standing.lost_seed", number=number + 1, reason=said))
    return lost


def standing_text(standing: Standing, language: Language) -> str:
    """What is to be said of a method that cannot be compared; of one that learned, its score."""
    name, why = standing.method, reason_text(standing.why, language)
    if standing.kind == "learned":
        assert standing.floor is not None
        return say(
            language,
            "standing.learned",
            floor_mean=standing.floor.mean,
            floor_name=_floor_name(standing, language),
            name=name,
            score=standing.score,
        ) + _alarmed(standing, language)
    if standing.kind == "no better":
        return _no_better(standing, language)
    if standing.kind == "seeds failed":
        scores = ", ".join(f"{run.scored('test').main.value:.3f}" for run in standing.runs)
        num_lost = len(standing.lost)
        total = len(standing.runs) + num_lost
        return say(
            language,
            "standing.seeds_failed",
            name=name,
            num_lost=num_lost,
            scores=scores,
            total=total,
            why=why,
        )
    if standing.kind == "failed":
        only = say(language, "standing.only_failed", name=name, why=why)
        every = say(language, "standing.all_failed", cells=standing.cells, name=name, why=why)
        return only if standing.cells == 1 else every
    return say(language, "standing.no_result", name=name, reason=why)


def _no_better(standing: Standing, language: Language) -> str:
    assert standing.floor is not None
    if not standing.tuned:
        return say(
            language,
            "standing.untouched",
            name=standing.method,
            score=standing.score,
            floor_name=_floor_name(standing, language),
            floor_mean=standing.floor.mean,
        )
    assert standing.above is not None
    assert standing.score is not None
    floor = f"{_floor_name(standing, language)} {standing.floor.mean:.3f}"
    one_rate = say(language, "standing.one_rate")
    several = say(language, "standing.rates", rates=standing.rates)
    rates, num_runs = one_rate if standing.rates == 1 else several, len(standing.runs)
    this_run = say(language, "standing.this_run")
    over = say(language, "standing.over_seeds", num_runs=num_runs)
    runs = this_run if num_runs == 1 else over
    if standing.above.mean <= 0:
        return say(
            language,
            "standing.did_not_learn",
            floor=floor,
            method=standing.method,
            rates=rates,
            runs=runs,
            score=standing.score,
        ) + _alarmed(standing, language)
    difference = (
        f"{standing.above.mean:+.3f} [{standing.above.low:+.3f}, {standing.above.high:+.3f}]"
    )
    if len(standing.runs) > 1:
        scores = ", ".join(f"{run.scored('test').main.value:.3f}" for run in standing.runs)
        rates += say(language, "standing.by_seed", scores=scores)
    return say(
        language,
        "standing.no_better",
        difference=difference,
        floor=floor,
        floor_name=_floor_name(standing, language),
        method=standing.method,
        rates=rates,
        runs=runs,
        score=standing.score,
    ) + _alarmed(standing, language)


def _alarmed(standing: Standing, language: Language) -> str:
    if standing.alarm is None:
        return ""
    loss, entropy = standing.alarm
    return say(language, "standing.alarm", entropy=entropy, loss=loss)


def _floor_name(standing: Standing, language: Language) -> str:
    assert standing.floor is not None
    return say(language, f"floor.{standing.floor.name}")


def reason_text(why: str, language: Language) -> str:
    """A reason in the page's language, as far as the catalogue has its sentence: records keep it in
    English."""
    return in_language(language, recognised(why))


def loss_alarm(record: RunRecord, task: Task) -> tuple[float, float] | None:
    """(loss a row at the end of training, entropy of the answers), in nats, where the first is no
    lower than guessing by frequency; None where it is, for free text, and for runs that kept too
    little to tell."""
    tokens, losses = record.outcome.target_tokens, record.losses
    entropy = guessing_nats(task.spec, task.examples["train"])
    if entropy is None or tokens is None or not losses:
        return None
    loss = statistics.fmean(losses[-max(1, len(losses) // 10) :]) * tokens
    return (loss, entropy) if loss >= NEARLY * entropy else None
