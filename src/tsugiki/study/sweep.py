"""Runs the missing cells of a study and scores the best of each method on test, once.

A study ends in a report: what goes wrong with one cell becomes its reason (`missing`), and
everything else is run, chosen and tested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tsugiki.config.run import RunConfig
from tsugiki.config.study import StudySpec
from tsugiki.errors import TsugikiError, reason_of
from tsugiki.model.numerics import pick_device
from tsugiki.runs.elsewhere import read_all
from tsugiki.runs.events import SILENT, Events
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import Store
from tsugiki.study.cells import (
    Cell,
    StudyResult,
    choose,
    collect,
    expand,
    fetch_widths,
    seed_cells,
)
from tsugiki.study.chosen import keep_best_weights, test_the_chosen
from tsugiki.study.executors import Done, Executor, ThisProcess, groups_of_cells
from tsugiki.study.left import Left, Remaining
from tsugiki.study.missing import elsewhere_of, keep_missing
from tsugiki.study.preflight import look_first
from tsugiki.study.way import OnCell, Way
from tsugiki.train.meter import device_name
from tsugiki.words import Message

if TYPE_CHECKING:
    from tsugiki.train.engine import Progress

# How long a cell is waited for that another process works on: workers of a killed study finish
# their step first.
BUSY_S = 30.0
OnLeft = Callable[[Callable[[], Left | None]], None]


def run_study(
    study: StudySpec,
    store: Store,
    events: Events = SILENT,
    *,
    on_cell: OnCell | None = None,
    on_left: OnLeft | None = None,
    workers: Callable[[ThisProcess], Executor] | None = None,
) -> StudyResult:
    """Runs what is missing, chooses by validation, scores each chosen cell on test, once. Resumable
    at any moment.

    What keeps a cell from its end stands in the result's `missing`, with the reason. `workers` puts
    worker processes before this one. `on_left` is given, once, what says how long the rest takes.

    Raises:
        ConfigError: the study itself is wrong.
        TsugikiError: nothing of it can be run, and nothing was (the first reason).
        Interrupted: on Ctrl-C; the same call goes on.
    """
    fetch_widths(study)
    result = StudyResult(study=study, cells=[])
    # Every run there is read for it: only where somebody asks.
    remaining = Remaining(result=result, known=_made_here(store) if on_left else [])
    if on_left:
        on_left(remaining.now)
    heard = _heard(events, result, on_cell, remaining)
    this_process = ThisProcess(study=study, store=store, events=heard)
    executor: Executor = workers(this_process) if workers else this_process
    way = Way(
        result=result,
        store=store,
        events=events,
        executor=executor,
        on_cell=on_cell,
        remaining=remaining,
    )
    before = collect(study, store)
    result.cells, result.plan = before.cells, before.plan
    _look_first(way, before)
    _read_elsewhere(way)
    while missing := _missing(result, way.known):
        busy = _work(way, groups_of_cells(missing))
        way.executor = this_process  # workers were asked once
        _wait_for(way, busy)
    way.executor = executor
    test_the_chosen(way)
    _take_what_was_finished(result, before)
    try:
        keep_missing(store.root, study, result.missing)
    except (OSError, TsugikiError) as broken:
        events.note(Message("note.missing_not_kept", reason=reason_of(broken)))
    return result


def _made_here(store: Store) -> list[RunRecord]:
    """Runs from before, of any study, that say how long one takes on this device."""
    own = device_name(pick_device())
    return [record for record in store.records() if record.provenance.device == own]


def _heard(
    events: Events, result: StudyResult, on_cell: OnCell | None, remaining: Remaining
) -> Events:
    """The same events, from which the study also learns what is worked on and how fast."""

    def start(configs: Sequence[RunConfig]) -> None:
        remaining.begin(configs)
        if on_cell:
            _announce(result, on_cell, configs)
        events.start(configs)

    def train(now: Progress) -> None:
        remaining.train(now)
        if events.on_train:
            events.on_train(now)

    return replace(events, on_start=start, on_train=train)


def _look_first(way: Way, before: StudyResult) -> None:
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
        said = Message("note.left_out_one", label=labels[0], reason=reason)
        if len(labels) > 1:
            more = len(labels) - 1
            said = Message("note.left_out_many", label=labels[0], more=more, reason=reason)
        way.events.note(said)


def _read_elsewhere(way: Way) -> None:
    """Tasks and texts that show what tuning did to the rest; what cannot be read is said now."""
    way.elsewhere, refused = read_all(way.result.study.forgetting)
    for choice, broken in refused.items():
        way.miss(elsewhere_of(choice.label), broken)


def _work(way: Way, groups: Sequence[Sequence[Cell]]) -> list[Sequence[Cell]]:
    """Trains and scores groups of cells; those that another process works on are returned."""
    busy = []
    for done in way.executor.submit(groups):
        if done.busy:
            busy.append(done.group)
        else:
            _take(way, done)
    return busy


def _take(way: Way, done: Done) -> None:
    way.known |= done.records
    for cell in done.group:
        if cell.config in done.faults:
            way.result.missing[cell.label] = done.faults[cell.config]
        else:
            way.result.records[cell.label] = way.known[cell.config]
            keep_best_weights(way.result, cell)


def _wait_for(way: Way, busy: list[Sequence[Cell]]) -> None:
    """Tries the cells again that another process worked on, for a while: a study that was killed
    may have workers that finish their step."""
    until = time.monotonic() + BUSY_S
    while busy and time.monotonic() < until:
        time.sleep(0.5)
        busy = _work(way, busy)
    for cell in (cell for cells in busy for cell in cells):
        way.result.missing[cell.label] = Message("reason.busy")
    if busy:
        count = sum(map(len, busy))
        way.events.note(Message("note.left_out_busy", count=count))


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
