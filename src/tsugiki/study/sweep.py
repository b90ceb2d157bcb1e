"""Runs the missing cells of a study and scores the best of each method on test, once.

A study ends in a report: what goes wrong with one cell becomes its reason (`missing`), and
everything else is run, chosen and tested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from tsugiki.config.run import RunConfig
from tsugiki.config.study import StudySpec
from tsugiki.errors import TsugikiError, message_of, reason_of
from tsugiki.runs.events import SILENT, Events
from tsugiki.runs.finished import measure_exclusive, score_run
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord, read_record
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Run, Store
from tsugiki.study.cells import (
    Cell,
    StudyResult,
    best_cells,
    choose,
    collect,
    expand,
    seed_cells,
    validation_score,
)
from tsugiki.study.executors import Done, Executor, ThisProcess
from tsugiki.study.missing import keep_missing, seed_of, test_of
from tsugiki.study.preflight import look_first
from tsugiki.train.checkpoint import latest_checkpoint
from tsugiki.train.engine import Interrupted

# Who is told what is worked on now: a key of the words under [progress], and their values.
OnCell = Callable[[str, Mapping[str, object]], None]
# How long a cell is waited for that another process works on: workers of a killed study finish
# their step first.
BUSY_S = 30.0


@dataclass(kw_only=True)
class _Way:
    """A study on its way: its result so far, the records by configuration, and who listens."""

    result: StudyResult
    store: Store
    events: Events
    executor: Executor
    on_cell: OnCell | None
    known: dict[RunConfig, RunRecord] = field(default_factory=dict)

    def say(self, key: str, **values: object) -> None:
        if self.on_cell:
            self.on_cell(key, values)

    def miss(self, label: str, broken: BaseException) -> None:
        """Something cannot be had: kept with its reason, said at once."""
        self.result.missing[label] = reason_of(broken)
        self.events.note(f"{label}: {message_of(broken)}")


def run_study(
    study: StudySpec,
    store: Store,
    events: Events = SILENT,
    *,
    on_cell: OnCell | None = None,
    workers: Callable[[ThisProcess], Executor] | None = None,
) -> StudyResult:
    """Runs what is missing, chooses by validation, scores each chosen cell on test, once. Resumable
    at any moment.

    What keeps a cell from its end stands in the result's `missing`, with the reason. `workers` puts
    worker processes before this one.

    Raises:
        ConfigError: the study itself is wrong.
        TsugikiError: nothing of it can be run, and nothing was (the first reason).
        Interrupted: on Ctrl-C; the same call goes on.
    """
    result = StudyResult(study=study, cells=[])
    heard = replace(events, on_start=partial(_announce, result, on_cell)) if on_cell else events
    this_process = ThisProcess(study=study, store=store, events=heard)
    executor: Executor = workers(this_process) if workers else this_process
    way = _Way(result=result, store=store, events=events, executor=executor, on_cell=on_cell)
    before = collect(study, store)
    result.cells = before.cells
    _look_first(way, before)
    while missing := _missing(result, way.known):
        busy = _work(way, groups_of_cells(missing))
        way.executor = this_process  # workers were asked once
        _wait_for(way, busy)
    _test_the_chosen(way)
    way.executor = executor
    _other_seeds(way)
    _take_what_was_finished(result, before)
    try:
        keep_missing(store.root, study, result.missing)
    except (OSError, TsugikiError) as broken:
        events.note(f"what is missing could not be written down: {reason_of(broken)}")
    return result


def _look_first(way: _Way, before: StudyResult) -> None:
    """Every model, tokenizer, data file and scorer that is still needed, before the first cell:
    what is refused is said now, not in the night."""
    result = way.result
    open_cells = [
        cell
        for cell in result.cells
        if (record := before.record(cell)) is None or record.status not in ("done", "failed")
    ]
    refused = look_first([cell.config for cell in open_cells])
    for cell in open_cells:
        if cell.config in refused:
            result.missing[cell.label] = reason_of(refused[cell.config])
    if len(result.missing) == len(result.cells) and refused:
        raise next(iter(refused.values()))
    for reason in dict.fromkeys(result.missing.values()):
        labels = [label for label, said in result.missing.items() if said == reason]
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        way.events.note(f"left out: {labels[0]}{more}: {reason}")


def _work(way: _Way, groups: Sequence[Sequence[Cell]]) -> list[Sequence[Cell]]:
    """Trains and scores groups of cells; those that another process works on are returned."""
    busy = []
    for done in way.executor.submit(groups):
        if done.busy:
            busy.append(done.group)
        else:
            _take(way, done)
    return busy


def _take(way: _Way, done: Done) -> None:
    way.known |= done.records
    for cell in done.group:
        if cell.config in done.faults:
            way.result.missing[cell.label] = done.faults[cell.config]
        else:
            way.result.records[cell.label] = way.known[cell.config]
            _keep_best_weights(way.result, cell)


def _wait_for(way: _Way, busy: list[Sequence[Cell]]) -> None:
    """Tries the cells again that another process worked on, for a while: a study that was killed
    may have workers that finish their step."""
    until = time.monotonic() + BUSY_S
    while busy and time.monotonic() < until:
        time.sleep(0.5)
        busy = _work(way, busy)
    for cell in (cell for cells in busy for cell in cells):
        way.result.missing[cell.label] = "another process is working on it"
    if busy:
        count = sum(map(len, busy))
        way.events.note(f"left out: {count} configurations that another process is working on")


def _test_the_chosen(way: _Way) -> None:
    """Chooses by validation and scores what is chosen on test. A cell whose weights are gone is
    trained again, which on another device may give another validation score: then there is another
    choice, until what is chosen has been tested."""
    result, done = way.result, set[str]()
    choose(result)
    while due := [cell for cell in result.chosen.values() if cell.label not in done]:
        for cell in due:
            done.add(cell.label)
            way.say("chosen", label=cell.label)
            folder = result.records[cell.label].folder
            try:
                record = _with_weights(result.records[cell.label], way)
                if record.status == "done":
                    measure_exclusive(score_run(record, "test", way.events))
            except Interrupted:
                raise
            except Exception as broken:
                way.miss(test_of(cell.label), broken)
            for other in result.cells:  # one run may be a cell of two methods
                if (known := result.record(other)) is not None and known.folder == folder:
                    result.records[other.label] = _read_again(known)
        choose(result)
    for cell in result.chosen.values():
        _keep_best_weights(result, cell)


def _read_again(record: RunRecord) -> RunRecord:
    return read_record(record.folder).relabelled(record.config, record.wanted)


def _take_what_was_finished(result: StudyResult, before: StudyResult) -> None:
    """Records of an earlier day stay in the report where their cells could not even be looked for
    today (data that is gone, say)."""
    for cell in result.cells:
        record = before.record(cell)
        if (
            cell.label not in result.records
            and record is not None
            and record.status in ("done", "failed")
        ):
            result.records[cell.label] = record
    choose(result)
    for key, cell in result.chosen.items():
        same = key in before.repeats and before.chosen[key].label == cell.label
        if key not in result.repeats and same:
            result.repeats[key] = before.repeats[key]


def _missing(result: StudyResult, known: Mapping[RunConfig, RunRecord]) -> list[Cell]:
    """Looks which cells there are by now (TPE's next round among them); those that are to be
    run."""
    result.cells = expand(result.study, known.get)
    had = {*result.records, *result.missing}
    return [cell for cell in result.cells if cell.label not in had]


def groups_of_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that can train together, in the order of their first ones."""
    groups: dict[tuple[RunConfig, str], list[Cell]] = {}
    for cell in cells:
        # One method's cells must not end another's.
        rivals = cell.method.name if cell.method.search.prune else ""
        alike = method_of(cell.config).alike(cell.config)
        groups.setdefault((alike, rivals), []).append(cell)
    return list(groups.values())


def _announce(result: StudyResult, on_cell: OnCell, configs: Sequence[RunConfig]) -> None:
    """Says which cells start now, or which seeds of them."""
    seeds = {repeat.config: (cell, number) for cell, number, repeat in seed_cells(result)}
    if configs[0] in seeds:
        cell, number = seeds[configs[0]]
        key, total = ("seeds" if len(configs) > 1 else "seed"), result.study.num_seeds
        said = {"number": number + 1, "total": total, "label": cell.label}
        on_cell(key, {**said, "more": len(configs) - 1})
        return
    numbered = reversed(list(enumerate(result.cells)))
    first = {cell.config: number for number, cell in numbered}  # one run may be in two methods
    numbers = sorted(first[config] for config in configs if config in first)
    if not numbers:
        return
    labels, total = [result.cells[number].label for number in numbers], len(result.cells)
    if len(numbers) == 1:
        on_cell("cell", {"number": numbers[0] + 1, "total": total, "label": labels[0]})
    else:
        said = {"number": numbers[0] + 1, "last_number": numbers[-1] + 1, "total": total}
        on_cell("cells", {**said, "count": len(labels), "label": labels[0], "last": labels[-1]})


def _other_seeds(way: _Way) -> None:
    """Trains what is chosen with the study's other seeds (adapters together, as lanes) and scores
    each on test; a full model's weights are dropped then."""
    result = way.result
    wanted = seed_cells(result)
    labels = {repeat.config: seed_of(cell.label, number + 1) for cell, number, repeat in wanted}
    for done in way.executor.submit(groups_of_cells([repeat for _, _, repeat in wanted])):
        way.known |= done.records
        for repeat in done.group:
            _take_seed(way, labels[repeat.config], repeat.config, done)
    for cell, _, repeat in wanted:
        if (record := way.known.get(repeat.config)) is not None:
            result.repeats.setdefault(cell.key, []).append(_read_again(record))


def _take_seed(way: _Way, label: str, config: RunConfig, done: Done) -> None:
    record = done.records.get(config)
    if done.busy or record is None:
        reason = "another process is working on it" if done.busy else done.faults[config]
        way.result.missing[label] = reason
        return
    try:
        if record.status == "done":
            score_run(record, "test", way.events)
    except Interrupted:
        raise
    except Exception as broken:
        way.known.pop(config, None)
        way.miss(label, broken)
        return
    if method_of(config).moves_base:
        Run(record.folder).drop_weights()


def _with_weights(record: RunRecord, way: _Way) -> RunRecord:
    """The record of a chosen cell; trained again when its weights are gone (it had lost in an
    earlier, wider grid, or they stayed on another machine). A search that learns goes on from the
    score that it was given."""
    kept = latest_checkpoint(record.folder / "weights") is not None
    if record.scores("test") is not None or not method_of(record.config).trains or kept:
        return record
    run, outcome = Run(record.folder), record.outcome
    score_before = outcome.search_score
    if score_before is None:
        score_before = record.main_score("validation")
    before = run.start_over()
    run.change(search_score=score_before)
    try:
        return run_group([record.config], way.store, way.events, study=way.result.study.name)[0]
    except Interrupted:
        raise
    except Exception:
        run.put_back(before)  # it cannot be trained now: what it scored then stays
        raise


def _keep_best_weights(result: StudyResult, latest: Cell) -> None:
    """Full fine-tuning leaves a whole model a cell: only the best so far of a (model, task, method)
    keeps its weights."""
    if not method_of(latest.config).moves_base:
        return
    scored = [cell for cell in result.cells if validation_score(result, cell) is not None]
    # One run may be a cell of two methods.
    kept = {result.records[cell.label].folder for cell in best_cells(result).values()}
    for cell in scored:
        record = result.records[cell.label]
        ours = record.outcome.study == result.study.name
        if cell.key == latest.key and record.folder not in kept and ours:
            Run(record.folder).drop_weights()


def run_cells(study: StudySpec, store: Store, events: Events = SILENT) -> None:
    """What one worker of `--jobs` does: takes cells that no other live process works on, until
    none is left. What goes wrong with one is left to the study's own process, which tries it again
    and says what it was."""
    this_process = ThisProcess(
        study=study, store=store, events=events, exclusive=False, skip_busy=True
    )
    for _ in this_process.submit(groups_of_cells(expand(study))):
        continue
    result = collect(study, store)
    if all(_is_finished(result, cell) for cell in result.cells):  # so that the choice is final
        repeats = [repeat for _, _, repeat in seed_cells(result)]
        for _ in this_process.submit(groups_of_cells(repeats)):
            continue


def _is_finished(result: StudyResult, cell: Cell) -> bool:
    record = result.record(cell)
    return cell.label in result.missing or (record is not None and record.outcome.finished)
