"""Runs the missing cells of a study, in this process or in several, and scores the best of each method on test, once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from tsugiki.config import RunConfig, StudySpec
from tsugiki.errors import RunError
from tsugiki.model.loading import pick_device
from tsugiki.study.cells import Cell, StudyResult, best_cells, choose, expand, validation_score, with_seed
from tsugiki.study.finished import drop_weights, measure_solo, score_run
from tsugiki.study.inputs import Listener
from tsugiki.study.run import group_key, run_group
from tsugiki.study.store import Run, RunRecord, Store, read_record
from tsugiki.train.checkpoint import latest_checkpoint
from tsugiki.train.memory import MOST_LANES


def run_study(
    study: StudySpec,
    store: Store,
    listener: Listener = Listener(),
    *,
    on_cell: Callable[[str], None] | None = None,
) -> StudyResult:
    """Runs what is missing, chooses by validation, scores each chosen cell on test, once. Resumable at any moment."""
    result = StudyResult(study=study, cells=[])
    heard = replace(listener, on_start=partial(_announce, result, on_cell)) if on_cell else listener
    known: dict[RunConfig, RunRecord] = {}
    while missing := _missing(result, known):
        for cells in groups_of_cells(missing):
            records = _run_together(study, cells, store, heard)
            for cell, record in zip(cells, records, strict=True):
                result.records[cell.label] = known[cell.config] = record
                _keep_best_weights(result, cell)
    _test_the_chosen(result, store, listener, on_cell)
    for cell in result.chosen.values():
        _other_seeds(result, cell, store, listener, on_cell)
    return result


def _test_the_chosen(result: StudyResult, store: Store, listener: Listener, on_cell: Callable[[str], None] | None) -> None:
    """Chooses by validation and scores what is chosen on test. A cell whose weights are gone is trained again, which on another
    device may give another validation score: then there is another choice, until what is chosen has been tested."""
    done: set[str] = set()
    choose(result)
    while due := [cell for cell in result.chosen.values() if cell.label not in done]:
        for cell in due:
            done.add(cell.label)
            if on_cell:
                on_cell(f"chosen: {cell.label}")
            record = _with_weights(result.records[cell.label], result.study, store, listener)
            if record.status == "done":
                record = score_run(record, "test", listener)
                measure_solo(record)
            folder = record.folder
            for other in result.cells:  # one run may be a cell of two methods
                if result.records[other.label].folder == folder:
                    result.records[other.label] = read_record(folder)
        choose(result)
    for cell in result.chosen.values():
        _keep_best_weights(result, cell)


def _missing(result: StudyResult, known: Mapping[RunConfig, RunRecord]) -> list[Cell]:
    """Looks which cells there are by now (TPE's next round among them); those that have not been run."""
    result.cells = expand(result.study, known.get)
    return [cell for cell in result.cells if cell.label not in result.records]


def _run_together(study: StudySpec, cells: Sequence[Cell], store: Store, listener: Listener, *, alone: bool = True, skip_busy: bool = False) -> list[RunRecord]:
    """One group's cells. Those that are pruned must train together to be compared, on a CPU too."""
    pruned = cells[0].method.search.prune
    lanes = study.lanes or (MOST_LANES if pruned and pick_device().type == "cpu" else None)
    configs = [cell.config for cell in cells]
    return run_group(configs, store, listener, alone=alone, study=study.name, lanes=lanes, skip_busy=skip_busy, prune=pruned)


def groups_of_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that can train together, in the order of their first ones."""
    groups: dict[tuple[RunConfig, str], list[Cell]] = {}
    for cell in cells:
        rivals = cell.method.name if cell.method.search.prune else ""  # one method's cells must not end another's
        groups.setdefault((group_key(cell.config), rivals), []).append(cell)
    return list(groups.values())


def _announce(result: StudyResult, on_cell: Callable[[str], None], configs: list[RunConfig]) -> None:
    """Says which cells start now."""
    first = {cell.config: number for number, cell in reversed(list(enumerate(result.cells)))}  # one run may be a cell of two methods
    numbers = sorted(first[config] for config in configs if config in first)
    if not numbers:  # another seed of a chosen cell
        return
    labels, total = [result.cells[number].label for number in numbers], len(result.cells)
    if len(numbers) == 1:
        on_cell(f"[{numbers[0] + 1}/{total}] {labels[0]}")
    else:
        on_cell(f"[{numbers[0] + 1} … {numbers[-1] + 1}/{total}] {len(numbers)} together: {labels[0]} … {labels[-1]}")


def _other_seeds(result: StudyResult, cell: Cell, store: Store, listener: Listener, on_cell: Callable[[str], None] | None) -> None:
    """Trains the chosen cell with the study's other seeds and scores each on test; a full model's weights are dropped then."""
    for number in range(1, result.study.seeds):
        if on_cell:
            on_cell(f"seed {number + 1} of {result.study.seeds}: {cell.label}")
        record = run_group([with_seed(cell.config, number)], store, listener, study=result.study.name)[0]
        if record.status == "done":
            record = score_run(record, "test", listener)
        if cell.method.kind == "full":
            drop_weights(record.folder)
        result.repeats.setdefault(cell.key, []).append(read_record(record.folder))


def _with_weights(record: RunRecord, study: StudySpec, store: Store, listener: Listener) -> RunRecord:
    """The record of a chosen cell; trained again when its weights are gone (it had lost in an earlier, wider grid, or they stayed on
    another machine). A search that learns goes on from the score that it was told."""
    if record.evaluation("test") is not None or record.config.adapter is not None or latest_checkpoint(record.folder / "weights") is not None:
        return record
    run, told = Run(record.folder), record.happened.get("told", record.main_score("validation"))
    run.start_over()
    run.update(told=told)
    return run_group([record.config], store, listener, study=study.name)[0]


def _keep_best_weights(result: StudyResult, latest: Cell) -> None:
    """Full fine-tuning leaves a whole model a cell: only the best so far of a (model, task, method) keeps its weights."""
    if latest.method.kind != "full":
        return
    scored = [cell for cell in result.cells if validation_score(result, cell) is not None]
    kept = {result.records[cell.label].folder for cell in best_cells(result).values()}  # one run may be a cell of two methods
    for cell in scored:
        record = result.records[cell.label]
        if cell.key == latest.key and record.folder not in kept and record.happened.get("study") == result.study.name:
            drop_weights(record.folder)


def run_cells(study: StudySpec, store: Store, listener: Listener = Listener()) -> None:
    """What one worker of `--jobs` does: takes cells that no other live process works on, until none is left."""
    for cells in groups_of_cells(expand(study)):
        _run_together(study, cells, store, listener, alone=False, skip_busy=True)


def run_in_parallel(arguments: Sequence[str], jobs: int) -> None:
    """Starts `jobs` workers (`tsugiki study … --worker`) and waits for them. Raises `RunError` when one of them failed."""
    command = [sys.executable, "-m", "tsugiki", "study", *arguments, "--worker"]
    workers = [subprocess.Popen(command) for _ in range(jobs)]
    try:
        codes = [worker.wait() for worker in workers]
    except KeyboardInterrupt:
        codes = [worker.wait() for worker in workers]
        raise
    if any(codes):
        raise RunError(f"{sum(map(bool, codes))} of {jobs} workers stopped with an error (above). Run the same command again: finished cells are kept")
