"""How long a study will take, and how much disk: from what earlier runs on this device took, else
from a matmul that is timed now (said which)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypedDict

import torch

from tsugiki.config.run import ADAPTED, RunConfig
from tsugiki.data.batch import num_steps
from tsugiki.data.tasks import Task
from tsugiki.errors import TsugikiError
from tsugiki.model.folder import resolve, stop_ids_of
from tsugiki.model.loading import load_tokenizer, max_positions_of, num_parameters
from tsugiki.model.numerics import Numerics, pick_device, pick_numerics
from tsugiki.runs.branching import find_branches
from tsugiki.runs.elsewhere import read_all
from tsugiki.runs.methods import method_of
from tsugiki.runs.preflight import longest_of
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import Store
from tsugiki.study.cells import Cell, Key, StudyResult, is_scored_elsewhere
from tsugiki.train.meter import device_name, matmul_rate

SAMPLE = 200  # rows whose length is measured
SHARE = 0.3  # of a matmul's rate that a whole step reaches, where nothing was measured
WEIGHT_BYTES, STATE_BYTES = 4, 12  # a trained parameter; its gradient (or weight) and moments
HALVED = 0.5  # of all steps, where the lower half ends at a quarter and again at the half


@dataclass(frozen=True, kw_only=True)
class Part:
    """One (model, task, method): runs still to be made, what training and scoring take, whether
    that was measured, and what stays on the disk (`passing`: only while it trains). `halved_s`:
    what training would take with successive halving over `halved_runs` configurations, where the
    search can do that and does not."""

    key: Key
    runs: int
    steps: int
    train_s: float
    score_s: float
    measured: bool
    kept_bytes: int
    passing_bytes: int
    halved_s: float | None = None
    halved_runs: int = 0

    @property
    def seconds(self) -> float:
        return self.train_s + self.score_s


def forecast(result: StudyResult, store: Store, tasks: Mapping[str, Task]) -> list[Part]:
    """Every row of the table that has something left to run; `tasks` by their labels."""
    device, records = pick_device(), store.records()
    on_device = [record for record in records if record.provenance.device == device_name(device)]
    parts, rates, elsewhere = [], dict[torch.dtype, float](), _answers_elsewhere(result)
    reads: dict[object, list[Cell]] = {}
    for cell in result.cells:
        reads.setdefault((cell.config.model, method_of(cell.config).answering), []).append(cell)
    for own in reads.values():
        try:
            look = _Look(own, tasks, device, rates)
        except TsugikiError:
            continue  # `check` says why
        for key in dict.fromkeys(cell.key for cell in own):
            cells = [cell for cell in own if cell.key == key]
            parts.append(_part(result, cells, tasks[key[1]], look, on_device, elsewhere))
    return [part for part in parts if part.seconds]


class _Look:
    """A model without its weights: its size, and how long rows are in its tokens."""

    def __init__(
        self,
        cells: Sequence[Cell],
        tasks: Mapping[str, Task],
        device: torch.device,
        rates: dict[torch.dtype, float],
    ):
        answering, folder = method_of(cells[0].config).answering, resolve(cells[0].config.model)
        self.model = answering.read(folder)
        self.size, self.device, self.rates = num_parameters(self.model), device, rates
        positions, tokenizer = max_positions_of(self.model.config), load_tokenizer(folder)
        self.lengths: dict[str, tuple[float, float]] = {}
        for cell in {cell.key[1]: cell for cell in cells}.values():
            task, longest = tasks[cell.key[1]], longest_of(cell.config, positions)
            sample = {**task.examples, "validation": task.examples["validation"][:SAMPLE]}
            rows = answering.rows(
                tokenizer,
                replace(task, examples=sample),
                cell.config,
                "validation",
                longest=longest,
                vocab_rows=self.model.get_input_embeddings().weight.shape[0],
                stops=stop_ids_of(folder),
            )
            prompts = statistics.fmean(len(row) - len(row.target_ids) for row in rows)
            self.lengths[cell.key[1]] = (statistics.fmean(map(len, rows)), prompts)

    def step_s(self, config: RunConfig, label: str) -> float:
        tokens = self.lengths[label][0] * config.train.batch
        return method_of(config).flops * self.size * tokens / self._rate(config)

    def answer_s(self, config: RunConfig, label: str, new: int) -> float:
        """As if every token were read once; a worked example is as long as a row."""
        whole, prompt = self.lengths[label]
        return 2 * self.size * (config.shots * whole + prompt + new) / self._rate(config)

    def _rate(self, config: RunConfig) -> float:
        numerics: Numerics = pick_numerics(config.method, config.train.precision, self.device)
        dtype = torch.bfloat16 if numerics.compute == "bf16" else torch.float32
        if dtype not in self.rates:
            self.rates[dtype] = matmul_rate(self.device, dtype)
        return SHARE * self.rates[dtype]


def _part(
    result: StudyResult,
    cells: Sequence[Cell],
    task: Task,
    look: _Look,
    on_device: Sequence[RunRecord],
    elsewhere: int,
) -> Part:
    first, key = cells[0], cells[0].key
    open_cells = [cell for cell in cells if not _is_finished(result, cell)]
    wanted = first.seeds(result.study.num_seeds) - 1
    seeds = max(0, wanted - len(result.repeats.get(key, [])))
    method, rows = method_of(first.config), len(task.examples["train"])
    steps_of = {
        cell.label: num_steps(rows, cell.config.train.batch, cell.config.train.epochs)
        for cell in cells
        if method.trains
    }
    steps = _steps(open_cells, steps_of)
    steps += seeds * max(steps_of.values(), default=0)
    alike = [record for record in on_device if is_alike(record, first)]
    step_s, answer_s = _measured(alike, first.config)
    measured = answer_s is not None and (step_s is not None or not method.trains)
    step_s = step_s if step_s is not None else look.step_s(first.config, key[1])
    new = first.config.score.max_new_tokens or task.spec.max_new_tokens
    answer_s = answer_s if answer_s is not None else look.answer_s(first.config, key[1], new)
    runs = len(open_cells) + seeds
    chosen = result.chosen.get(key)
    untested = 0 if chosen is not None and result.seeds(chosen) else 1
    # What was measured from start to end has validation in it.
    validated = 0 if measured and method.trains else runs
    answers = validated * len(task.examples["validation"]) + (seeds + untested) * (
        len(task.examples["test"])
    )
    lacking = seeds + untested + _not_scored_elsewhere(result, chosen)
    other = lacking * (elsewhere_s(alike) or elsewhere * answer_s)
    size = max((method.num_trained(look.model, cell.config) for cell in cells), default=0)
    kept = 1 + seeds if method.moves_base else runs
    return Part(
        key=key,
        runs=runs,
        steps=steps,
        train_s=steps * step_s,
        score_s=answers * answer_s + other,
        measured=measured,
        kept_bytes=kept * size * WEIGHT_BYTES,
        passing_bytes=size * STATE_BYTES if runs else 0,
        **_halved(open_cells, steps_of, step_s),
    )


def _steps(cells: Sequence[Cell], steps_of: Mapping[str, int]) -> int:
    """What is left to train: those that differ in their epochs alone go on from one checkpoint,
    and of those that are halved only some end."""
    if cells and cells[0].method.search.prune:
        return round(HALVED * sum(steps_of.get(cell.label, 0) for cell in cells))
    by_config = {cell.config: steps_of.get(cell.label, 0) for cell in cells}
    branches = find_branches(list(by_config), by_config.__getitem__)
    steps = sum(by_config[config] for config in branches.longest)
    for parts in branches.of.values():
        for shared, configs in parts.items():
            steps += sum(by_config[config] - shared for config in configs)
    return steps


class _Halved(TypedDict):
    halved_s: float | None
    halved_runs: int


def _halved(cells: Sequence[Cell], steps_of: Mapping[str, int], step_s: float) -> _Halved:
    """Epochs and batch at their largest, the lower half ended twice."""
    first = cells[0] if cells else None
    if first is None or first.method.search.prune or first.method.kind not in ADAPTED:
        return {"halved_s": None, "halved_runs": 0}
    others = {
        str([value for name, value in cell.settings.items() if name not in ("epochs", "batch")])
        for cell in cells
    }
    if len(others) < 4:
        return {"halved_s": None, "halved_runs": 0}
    longest = max(steps_of.values(), default=0)
    return {"halved_s": HALVED * len(others) * longest * step_s, "halved_runs": len(others)}


def _not_scored_elsewhere(result: StudyResult, chosen: Cell | None) -> int:
    """Runs that were tested before their study named what nothing is tuned on."""
    if chosen is None or not is_scored_elsewhere(result, chosen):
        return 0
    names = {choice.label for choice in result.study.forgetting} - {chosen.key[1]}
    runs = result.seeds(chosen)
    return sum(bool(names - {each.name for each in run.outcome.elsewhere}) for run in runs)


def _is_finished(result: StudyResult, cell: Cell) -> bool:
    record = result.record(cell)
    return record is not None and record.outcome.finished


def is_alike(record: RunRecord, cell: Cell) -> bool:
    """A run of the same method on the same task with the same model."""
    same_model = record.known_as.path == cell.config.model.path
    return (
        record.config.task == cell.task
        and same_model
        and method_of(record.config) is method_of(cell.config)
    )


def _measured(records: Sequence[RunRecord], config: RunConfig) -> tuple[float | None, float | None]:
    """Seconds a step (of a batch of this size; loading, recording and validation are shared out
    over the steps) and seconds an answer, by the median of runs."""
    steps = [
        seconds * config.train.batch / record.config.train.batch / (record.outcome.steps or 1)
        for record in records
        if (seconds := wall_s(record)) is not None
    ]
    answers = [scores.answer_s for record in records for scores in record.outcome.scores]
    return (
        statistics.median(steps) if steps else None,
        statistics.median(answers) if answers else None,
    )


def wall_s(record: RunRecord) -> float | None:
    """A run's share of the seconds that it and its lanes took from start to end."""
    outcome = record.outcome
    if outcome.status != "done" or not outcome.started or not outcome.ended:
        return None
    start, end = (datetime.fromisoformat(each) for each in (outcome.started, outcome.ended))
    return (end - start).total_seconds() / (outcome.lanes or 1)


def elsewhere_s(records: Sequence[RunRecord]) -> float | None:
    """Seconds a run takes on everything that nothing is tuned on; None where that is not known."""
    measured = [
        sum(entry.seconds for entry in record.outcome.elsewhere)
        for record in records
        if record.outcome.elsewhere
    ]
    return statistics.median(measured) if measured else None


def _answers_elsewhere(result: StudyResult) -> int:
    """How many answers (a reading of a text counts as one of each document) are asked for; closed
    tasks are read twice."""
    return sum(
        len(wanted.content.examples["test"]) * (2 if wanted.content.spec.closed else 1)
        if isinstance(wanted.content, Task)
        else len(wanted.content.texts)
        for wanted in read_all(result.study.forgetting)[0]
    )
