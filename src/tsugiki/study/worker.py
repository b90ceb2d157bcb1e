"""What one worker process of `--jobs` does, stage by stage. What goes wrong with one configuration
is left to the study's own process, which tries it again and says what it was."""

from __future__ import annotations

from collections.abc import Iterator

from tsugiki.config.study import StudySpec
from tsugiki.errors import reason_of
from tsugiki.runs.elsewhere import read_all, score_elsewhere
from tsugiki.runs.events import SILENT, Events
from tsugiki.runs.finished import has_weights, score_run
from tsugiki.runs.reading import RunRecord, read_record
from tsugiki.runs.store import Run, RunBusy, Store
from tsugiki.study.cells import (
    Cell,
    StudyResult,
    collect,
    expand,
    is_scored_elsewhere,
    seed_cells,
)
from tsugiki.study.executors import Stage, ThisProcess, groups_of_cells
from tsugiki.study.messages import OnCell
from tsugiki.train.engine import Interrupted
from tsugiki.words import Message


def run_stage(
    study: StudySpec,
    store: Store,
    stage: Stage,
    events: Events = SILENT,
    on_cell: OnCell | None = None,
) -> None:
    """Takes what no other live process works on, until nothing of the stage is left. `on_cell` is
    told which configuration answers test."""
    if stage == "test":
        _test(study, store, events, on_cell)
        return
    cells = expand(study)
    if stage == "seeds":
        cells = [repeat for _, _, repeat in seed_cells(collect(study, store))]
    process = ThisProcess(study=study, store=store, events=events, exclusive=False, skip_busy=True)
    for _ in process.submit(groups_of_cells(cells)):
        continue


def _test(study: StudySpec, store: Store, events: Events, on_cell: OnCell | None) -> None:
    result = collect(study, store)
    every, _ = read_all(study.forgetting)
    for cell, record in _chosen_runs(result):
        wanted = every if is_scored_elsewhere(result, cell) else []
        try:
            with Run(record.folder).lock():
                newest = read_record(record.folder).relabelled(record.config, record.wanted)
                if on_cell and newest.scores("test") is None:
                    on_cell("chosen", {"label": cell.label})
                score_elsewhere(score_run(newest, "test", events), wanted, events)
        except RunBusy:
            continue
        except Interrupted:
            raise
        except Exception as broken:
            said = {"run": record.folder.name, "reason": reason_of(broken)}
            events.note(Message("note.left_to_study", **said))


def _chosen_runs(result: StudyResult) -> Iterator[tuple[Cell, RunRecord]]:
    """What is chosen, and its seeds, as far as it was trained and its weights are there."""
    runs = [(cell, result.record(cell)) for cell in result.chosen.values()]
    for cell in result.chosen.values():
        runs += [(cell, record) for record in result.repeats.get(cell.key, [])]
    for cell, record in runs:
        if record is not None and record.status == "done" and has_weights(record):
            yield cell, record
