"""Runs the missing cells of a study, in this process or in several, and scores the best of each
method on test, once.

A study ends in a report: what goes wrong with one cell becomes its reason (`missing`), and
everything else is run, chosen and tested.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from tsugiki.config.run import RunConfig
from tsugiki.config.study import StudySpec
from tsugiki.errors import reason_of, told
from tsugiki.model.loading import pick_device
from tsugiki.runs.finished import drop_weights, measure_solo, score_run
from tsugiki.runs.group import group_key, run_group
from tsugiki.runs.inputs import Listener
from tsugiki.runs.store import Run, RunBusy, RunRecord, Store, read_record
from tsugiki.study.cells import (
    Cell,
    StudyResult,
    best_cells,
    choose,
    collect,
    expand,
    validation_score,
    with_seed,
)
from tsugiki.study.missing import keep_missing, seed_of, test_of
from tsugiki.study.preflight import look_first
from tsugiki.train.checkpoint import latest_checkpoint
from tsugiki.train.engine import Interrupted
from tsugiki.train.memory import MOST_LANES

# how long a cell is waited for that another process works on: workers of a killed study finish
# their step first
BUSY_S = 30.0


def run_study(
    study: StudySpec,
    store: Store,
    listener: Listener = Listener(),
    *,
    on_cell: Callable[[str], None] | None = None,
    lost: Mapping[RunConfig, str] = {},
) -> StudyResult:
    """Runs what is missing, chooses by validation, scores each chosen cell on test, once.
    Resumable at any moment.

    What keeps a cell from its end stands in the result's `missing`, with the reason. `lost`: cells
    not to be tried, and why (their worker was killed, twice).

    Raises:
        ConfigError: the study itself is wrong.
        TsugikiError: nothing of it can be run, and nothing was (the first reason).
        Interrupted: on Ctrl-C; the same call goes on.
    """
    result = StudyResult(study=study, cells=[])
    heard = replace(listener, on_start=partial(_announce, result, on_cell)) if on_cell else listener
    way = _Way(result=result, store=store, listener=listener, heard=heard, on_cell=on_cell)
    before = collect(study, store)
    result.cells = before.cells
    _look_first(way, before, lost)
    while missing := _missing(result, way.known):
        groups = groups_of_cells(missing)
        busy = [cells for cells in groups if not _train(way, cells)]
        _wait_for(way, busy)
    _test_the_chosen(way)
    for cell in result.chosen.values():
        _other_seeds(way, cell)
    _take_what_was_finished(result, before)
    try:
        keep_missing(store.root, study, result.missing)
    except OSError as broken:
        listener.note(f"what is missing could not be written down: {reason_of(broken)}")
    return result


@dataclass(kw_only=True)
class _Way:
    """A study on its way: its result so far, the records by configuration, and who listens."""

    result: StudyResult
    store: Store
    listener: Listener
    heard: Listener
    on_cell: Callable[[str], None] | None
    known: dict[RunConfig, RunRecord] = field(default_factory=dict)

    def say(self, text: str) -> None:
        if self.on_cell:
            self.on_cell(text)

    def miss(self, label: str, broken: BaseException) -> None:
        """Something cannot be had: kept with its reason, said at once."""
        self.result.missing[label] = reason_of(broken)
        self.listener.note(f"{label}: {told(broken)}")


def _look_first(way: _Way, before: StudyResult, lost: Mapping[RunConfig, str]) -> None:
    """Every model, tokenizer, data file and scorer that is still needed, before the first cell:
    what is refused is told now, not in the night."""
    result = way.result
    open_cells = [
        cell
        for cell in result.cells
        if (record := before.record(cell)) is None or record.status not in ("done", "failed")
    ]
    refused = look_first([cell.config for cell in open_cells if cell.config not in lost])
    for cell in open_cells:
        if cell.config in lost:
            result.missing[cell.label] = lost[cell.config]
        elif cell.config in refused:
            result.missing[cell.label] = reason_of(refused[cell.config])
    if len(result.missing) == len(result.cells) and refused:
        raise next(iter(refused.values()))
    for reason in dict.fromkeys(result.missing.values()):
        labels = [label for label, said in result.missing.items() if said == reason]
        way.listener.note(
            f"left out: {labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''}: "
            f"{reason}"
        )


def _train(way: _Way, cells: Sequence[Cell]) -> bool:
    """Trains and scores cells that share a base; False, and nothing said of them, where another
    process works on one of them."""
    result, faults = way.result, dict[RunConfig, str]()
    try:
        records = _run_together(result.study, cells, way.store, way.heard, faults=faults)
    except Interrupted:
        raise
    except RunBusy:
        return False
    except Exception as broken:
        for cell in cells:
            result.missing[cell.label] = reason_of(broken)
        way.listener.note(f"left out: {cells[0].label} … ({len(cells)} cells): {told(broken)}")
        return True
    way.known |= {record.config: record for record in records}
    for cell in cells:
        if cell.config in faults:
            result.missing[cell.label] = faults[cell.config]
        else:
            result.records[cell.label] = way.known[cell.config]
            _keep_best_weights(result, cell)
    return True


def _wait_for(way: _Way, busy: list[list[Cell]]) -> None:
    """Tries the cells again that another process worked on, for a while: a study that was killed
    may have workers that finish their step."""
    until = time.monotonic() + BUSY_S
    while busy and time.monotonic() < until:
        time.sleep(0.5)
        busy = [cells for cells in busy if not _train(way, cells)]
    for cell in (cell for cells in busy for cell in cells):
        way.result.missing[cell.label] = "another process is working on it"
    if busy:
        way.listener.note(
            f"left out: {sum(map(len, busy))} cells that another process is working on"
        )


def _test_the_chosen(way: _Way) -> None:
    """Chooses by validation and scores what is chosen on test. A cell whose weights are gone is
    trained again, which on another device may give another validation score: then there is another
    choice, until what is chosen has been tested."""
    result, done = way.result, set[str]()
    choose(result)
    while due := [cell for cell in result.chosen.values() if cell.label not in done]:
        for cell in due:
            done.add(cell.label)
            way.say(f"chosen: {cell.label}")
            folder = result.records[cell.label].folder
            try:
                record = _with_weights(result.records[cell.label], way)
                if record.status == "done":
                    measure_solo(score_run(record, "test", way.listener))
            except Interrupted:
                raise
            except Exception as broken:
                way.miss(test_of(cell.label), broken)
            for other in result.cells:  # one run may be a cell of two methods
                if (known := result.record(other)) is not None and known.folder == folder:
                    result.records[other.label] = read_record(folder)
        choose(result)
    for cell in result.chosen.values():
        _keep_best_weights(result, cell)


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
        if (
            key not in result.repeats
            and key in before.repeats
            and before.chosen[key].label == cell.label
        ):
            result.repeats[key] = before.repeats[key]


def _missing(result: StudyResult, known: Mapping[RunConfig, RunRecord]) -> list[Cell]:
    """Looks which cells there are by now (TPE's next round among them); those that are to be
    run."""
    result.cells = expand(result.study, known.get)
    return [
        cell
        for cell in result.cells
        if cell.label not in result.records and cell.label not in result.missing
    ]


def _run_together(
    study: StudySpec,
    cells: Sequence[Cell],
    store: Store,
    listener: Listener,
    *,
    faults: dict[RunConfig, str],
    alone: bool = True,
    skip_busy: bool = False,
) -> list[RunRecord]:
    """One group's cells. Those that are pruned must train together to be compared, on a CPU too."""
    pruned = cells[0].method.search.prune
    lanes = study.lanes or (MOST_LANES if pruned and pick_device().type == "cpu" else None)
    configs = [cell.config for cell in cells]
    return run_group(
        configs,
        store,
        listener,
        alone=alone,
        study=study.name,
        lanes=lanes,
        skip_busy=skip_busy,
        prune=pruned,
        faults=faults,
    )


def groups_of_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that can train together, in the order of their first ones."""
    groups: dict[tuple[RunConfig, str], list[Cell]] = {}
    for cell in cells:
        rivals = (
            cell.method.name if cell.method.search.prune else ""
        )  # one method's cells must not end another's
        groups.setdefault((group_key(cell.config), rivals), []).append(cell)
    return list(groups.values())


def _announce(
    result: StudyResult, on_cell: Callable[[str], None], configs: list[RunConfig]
) -> None:
    """Says which cells start now."""
    first = {
        cell.config: number for number, cell in reversed(list(enumerate(result.cells)))
    }  # one run may be a cell of two methods
    numbers = sorted(first[config] for config in configs if config in first)
    if not numbers:  # another seed of a chosen cell
        return
    labels, total = [result.cells[number].label for number in numbers], len(result.cells)
    if len(numbers) == 1:
        on_cell(f"[{numbers[0] + 1}/{total}] {labels[0]}")
    else:
        on_cell(
            f"[{numbers[0] + 1} … {numbers[-1] + 1}/{total}] {len(numbers)} together: {labels[0]} "
            f"… {labels[-1]}"
        )


def _other_seeds(way: _Way, cell: Cell) -> None:
    """Trains the chosen cell with the study's other seeds and scores each on test; a full model's
    weights are dropped then."""
    result = way.result
    for number in range(1, cell.seeds(result.study.seeds)):
        way.say(f"seed {number + 1} of {result.study.seeds}: {cell.label}")
        try:
            record = run_group(
                [with_seed(cell.config, number)], way.store, way.listener, study=result.study.name
            )[0]
            if record.status == "done":
                record = score_run(record, "test", way.listener)
        except Interrupted:
            raise
        except Exception as broken:
            way.miss(seed_of(cell.label, number + 1), broken)
            continue
        if cell.method.kind == "full":
            drop_weights(record.folder)
        result.repeats.setdefault(cell.key, []).append(read_record(record.folder))


def _with_weights(record: RunRecord, way: _Way) -> RunRecord:
    """The record of a chosen cell; trained again when its weights are gone (it had lost in an
    earlier, wider grid, or they stayed on another machine). A search that learns goes on from the
    score that it was told."""
    if (
        record.evaluation("test") is not None
        or record.config.adapter is not None
        or latest_checkpoint(record.folder / "weights") is not None
    ):
        return record
    run, told_before = (
        Run(record.folder),
        record.happened.get("told", record.main_score("validation")),
    )
    before = run.start_over()
    run.update(told=told_before)
    try:
        return run_group([record.config], way.store, way.listener, study=way.result.study.name)[0]
    except Interrupted:
        raise
    except Exception:
        run.put_back(before)  # it cannot be trained now: what it scored then stays
        raise


def _keep_best_weights(result: StudyResult, latest: Cell) -> None:
    """Full fine-tuning leaves a whole model a cell: only the best so far of a (model, task,
    method) keeps its weights."""
    if latest.method.kind != "full":
        return
    scored = [cell for cell in result.cells if validation_score(result, cell) is not None]
    kept = {
        result.records[cell.label].folder for cell in best_cells(result).values()
    }  # one run may be a cell of two methods
    for cell in scored:
        record = result.records[cell.label]
        if (
            cell.key == latest.key
            and record.folder not in kept
            and record.happened.get("study") == result.study.name
        ):
            drop_weights(record.folder)


def run_cells(study: StudySpec, store: Store, listener: Listener = Listener()) -> None:
    """What one worker of `--jobs` does: takes cells that no other live process works on, until
    none is left. What goes wrong with one is left to the study's own process, which tries it again
    and says what it was."""
    for cells in groups_of_cells(expand(study)):
        try:
            _run_together(study, cells, store, listener, alone=False, skip_busy=True, faults={})
        except Interrupted:
            raise
        except Exception as broken:
            listener.note(f"{cells[0].label}: {reason_of(broken)}")


def run_in_parallel(
    study: StudySpec, store: Store, arguments: Sequence[str], jobs: int, note: Callable[[str], None]
) -> dict[RunConfig, str]:
    """Starts `jobs` workers (`tsugiki study … --worker`) and waits for them; they end when this
    process does, however it ends.

    Where workers were killed, what they left is given to one more. Returns the cells that this one
    was killed over, too, with the reason: whatever it is about them would take the study's own
    process as well.
    """
    codes = _workers(arguments, jobs)
    killed = [code for code in codes if code < 0]
    if not killed:
        return {}
    note(
        f"{len(killed)} of {jobs} workers were killed ({_signal(killed[0])}); what they left is "
        "run by one more"
    )
    start = time.time()
    [code] = _workers(arguments, 1)
    if code >= 0:
        return {}
    begun = [
        cell.config
        for cell, record in collect(study, store).begun()
        if (record.folder / "happened.json").stat().st_mtime >= start
    ]
    why = (
        f"its worker was killed twice ({_signal(code)}): by the system, perhaps, for want of memory"
    )
    return dict.fromkeys(begun, why)


def _workers(arguments: Sequence[str], jobs: int) -> list[int]:
    """Their exit codes. Each reads a pipe that nothing is written to: when it ends, this process
    has ended (`stop_with_parent`)."""
    command = [sys.executable, "-m", "tsugiki", "study", *arguments, "--worker"]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(jobs)]
    try:
        return [worker.wait() for worker in workers]
    except BaseException:
        for worker in workers:
            if worker.stdin:
                worker.stdin.close()
        for worker in workers:
            worker.wait()
        raise


def _signal(code: int) -> str:
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"


def stop_with_parent() -> None:
    """In a worker: when the process that started it ends, however it ends, the worker stops as on
    Ctrl-C: a finished step, a checkpoint."""

    def wait() -> None:
        while os.read(
            0,
            4096,
            # not through sys.stdin, whose lock a thread that waits would hold when the interpreter
            # ends
        ):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
