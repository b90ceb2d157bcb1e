"""What a comparison can find, said before test is read and kept with the study.

`tsugiki check STUDY --margin … --power …` says it of what validation answers there are;
`power = 0.8` in the study file makes the study say it itself, after the seeds were trained and
before the first answer to test. No torch here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tsugiki.data.tasks import load_task
from tsugiki.runs.answer_values import same_rows, values_of
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import now
from tsugiki.score.power import (
    Aim,
    Pilot,
    pilot_of,
    power,
    rows_needed,
    seed_variances,
    seeds_needed,
)
from tsugiki.score.rules import METRICS
from tsugiki.study.cells import Cell, StudyResult
from tsugiki.study.kept_plan import (
    PairPlan,
    Plan,
    Promise,
    keep_plan,
    pair_key,
    plan_path,
    read_plan,
)

# A row's variance in the difference where nothing was answered yet: of two methods that disagree on
# 3 of 10 rows; of scores between 0 and 1 a standard deviation of 0.2.
ASSUMED_DISAGREEMENT, ASSUMED_VARIANCE = 0.3, 0.04
Pair = tuple[Cell, Cell]


def plan_place(result: StudyResult, root: Path, model_task: tuple[str, str]) -> bool:
    """Plans the comparisons of one model and task, and keeps what is new; nothing where the study
    names no power, where a plan from answers is kept, where a method has no answers to plan from,
    or where test was read before.

    Raises:
        RunError: a kept plan is damaged.
    """
    study = result.study
    if study.power is None:
        return False
    open_pairs = [
        pair
        for pair in _pairs_of(result, [model_task])
        if all(_pilot_runs(result, cell) for cell in pair)
        and not was_read(result, pair)
        and not _is_settled(result, pair, study.margin, study.power)
    ]
    pairs = [_pair(result, *pair, study.margin / 100, study.power) for pair in open_pairs]
    return keep_new(result, root, Plan(pairs=tuple(pairs))) is not None


def _is_settled(result: StudyResult, pair: Pair, margin: float, wanted: float) -> bool:
    """Whether a plan of it is kept that was made of as many seeds, for the same."""
    seeds = min(len(_pilot_runs(result, cell)) for cell in pair)
    return any(
        pair_key(plan) == (*pair[0].key, pair[1].key[2])
        and plan.pilot_seeds >= seeds > 0
        and (plan.margin, plan.power) == (margin, wanted)
        for plan in (result.plan.pairs if result.plan else ())
    )


def keep_new(result: StudyResult, root: Path, plan: Plan) -> Path | None:
    """Keeps what of a plan is of pairs whose test was not read; where, or None where nothing is.

    Raises:
        RunError: the kept plan is damaged.
    """
    before = read_plan(root, result.study)
    known = () if before is None else before.pairs
    cells = {cell.key: cell for cell in result.cells}
    new = []
    for pair in plan.pairs:
        keys = [(pair.model, pair.task, name) for name in (pair.first, pair.second)]
        if not was_read(result, (cells[keys[0]], cells[keys[1]])):
            new.append(pair)
    if not new:
        return None
    ours = {pair_key(pair) for pair in new}
    others = (pair for pair in known if pair_key(pair) not in ours)
    whole = Plan(pairs=(*others, *new))
    keep_plan(root, result.study, whole)
    result.plan = whole
    return plan_path(root, result.study)


def plan_of(result: StudyResult, margin: float, wanted: float) -> Plan:
    """The plan of every pair of tuned methods, from what validation answers there are."""
    model_tasks = list(dict.fromkeys(cell.key[:2] for cell in result.cells))
    pairs = _pairs_of(result, model_tasks)
    return Plan(pairs=tuple(_pair(result, *pair, margin / 100, wanted) for pair in pairs))


def was_read(result: StudyResult, pair: Pair) -> bool:
    """Whether a configuration of either method was scored on test already, chosen now or before:
    what is said then is no plan."""
    keys = {cell.key for cell in pair}
    records = [result.record(cell) for cell in result.cells if cell.key in keys]
    records += [run for key in keys for run in result.repeats.get(key, [])]
    return any(record is not None and record.scores("test") is not None for record in records)


def _pairs_of(result: StudyResult, model_tasks: Sequence[tuple[str, str]]) -> Iterator[Pair]:
    """Every pair of tuned methods that have as many seeds, LoRA before full fine-tuning."""
    for model_task in model_tasks:
        cells = [cell for cell in result.cells if cell.key[:2] == model_task]
        tuned = {cell.key: cell for cell in cells if method_of(cell.config).tuned}
        ordered = sorted(tuned.values(), key=lambda cell: method_of(cell.config).order)
        for first, second in itertools.combinations(ordered, 2):
            wanted = result.study.num_seeds
            if first.seeds(wanted) == second.seeds(wanted):
                yield first, second


def _pair(result: StudyResult, first: Cell, second: Cell, margin: float, wanted: float) -> PairPlan:
    task = load_task(first.task)
    runs = [_pilot_runs(result, cell) for cell in (first, second)]
    seeds = first.seeds(result.study.num_seeds)  # those of the second are as many
    test_rows, disagreement = len(task.examples["test"]), None
    if all(runs) and same_rows(runs[0][0], runs[1][0], "validation"):
        values = [[values_of(run, "validation") for run in some] for some in runs]
        groups = [answer.group for answer in runs[0][0].answers("validation")]
        pilot, pilot_seeds = pilot_of(values[0], values[1], groups), min(map(len, runs))
        disagreement = _disagreement(values[0], values[1])
    else:
        pilot, pilot_seeds = assumed_pilot(task.spec.closed), 0

    def promise(aim: Aim) -> Promise:
        return Promise(
            power=power(pilot, test_rows, seeds, margin, aim),
            rows=rows_needed(pilot, seeds, margin, wanted, aim),
            seeds=seeds_needed(pilot, test_rows, margin, wanted, aim),
        )

    return PairPlan(
        made=now(),
        margin=100 * margin,
        power=wanted,
        model=first.key[0],
        task=first.key[1],
        first=first.key[2],
        second=second.key[2],
        score=METRICS[task.spec.metric].main,
        test_rows=test_rows,
        seeds=seeds,
        pilot_rows=pilot.n if pilot_seeds else 0,
        pilot_seeds=pilot_seeds,
        disagreement=disagreement,
        row_variance=pilot.rows + sum(pilot.residual) / seeds,
        seed_spread=float(np.sqrt(np.median(seed_variances(pilot)))),
        equal=promise("equal"),
        detect=promise("detect"),
    )


def assumed_pilot(closed: bool) -> Pilot:
    """Where nothing was answered yet: of a task whose answers are right or wrong, or of scores."""
    variance = ASSUMED_DISAGREEMENT if closed else ASSUMED_VARIANCE
    return Pilot(rows=variance, residual=(0.0, 0.0), runs=(0.0, 0.0), n=1, freedom=0)


def _pilot_runs(result: StudyResult, cell: Cell) -> list[RunRecord]:
    """The runs of the chosen configuration of a cell's method that were scored on validation, one
    a seed."""
    chosen = result.chosen.get(cell.key)
    return [] if chosen is None else result.seeds(chosen, "validation")


def _disagreement(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]
) -> float | None:
    """Share of rows that one method gets right and the other wrong, over all pairs of their seeds;
    None for scores that are not right or wrong."""
    both = [np.asarray(values) for values in (first, second)]
    if not all(np.isin(values, (0.0, 1.0)).all() for values in both):
        return None
    right = [values.mean(axis=0) for values in both]
    return float((right[0] * (1 - right[1]) + right[1] * (1 - right[0])).mean())
