"""What is chosen by validation: trained with every seed, planned for, and only then scored on test,
once; and scored on what it was not tuned on.

Model by model and task by task, so that no more full models lie on the disk than one comparison
needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tsugiki.config.run import RunConfig
from tsugiki.errors import TsugikiError, reason_of
from tsugiki.runs.elsewhere import missing_of, score_elsewhere
from tsugiki.runs.finished import has_weights, measure_exclusive, score_run
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord, read_record
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Run
from tsugiki.study.cells import (
    Cell,
    StudyResult,
    best_cells,
    choose,
    is_scored_elsewhere,
    seed_cells,
    validation_score,
)
from tsugiki.study.executors import Done, groups_of_cells
from tsugiki.study.kept_plan import plan_path
from tsugiki.study.missing import elsewhere_of, seed_of, test_of
from tsugiki.study.plan import plan_place
from tsugiki.study.way import Way
from tsugiki.train.engine import Interrupted
from tsugiki.words import Message


def test_the_chosen(way: Way) -> None:
    """A cell whose weights are gone is trained again, which on another device may give another
    validation score: then there is another choice, until what is chosen has been tested."""
    result, done = way.result, set[str]()
    choose(result)
    while due := _due(way, done):
        done.update(cell.label for cell in due)
        _train_seeds(way, due)
        for model_task in dict.fromkeys(cell.key[:2] for cell in due):
            _plan(way, model_task)
        if _is_left(way, due):
            way.executor.test()
        for cell in due:
            _test(way, cell)
        _test_seeds(way, due)
        choose(result)
    for cell in result.chosen.values():
        keep_best_weights(result, cell)


def _due(way: Way, done: set[str]) -> list[Cell]:
    """The chosen cells of the next model and task that are not done; of all at once, where they are
    worked on side by side."""
    left = [cell for cell in way.result.chosen.values() if cell.label not in done]
    if way.executor.side_by_side:
        return left
    return [cell for cell in left if cell.key[:2] == left[0].key[:2]]


def _is_left(way: Way, due: Sequence[Cell]) -> bool:
    """Whether something of these was not scored yet."""
    result = way.result
    runs = [(cell, result.records[cell.label]) for cell in due]
    runs += [(cell, record) for cell in due for record in result.repeats.get(cell.key, [])]
    return any(record.status == "done" and _is_wanting(record, cell, way) for cell, record in runs)


def _plan(way: Way, model_task: tuple[str, str]) -> None:
    try:
        if plan_place(way.result, way.store.root, model_task):
            where = plan_path(way.store.root, way.result.study)
            way.events.note(Message("note.planned", where=" · ".join(model_task), path=where))
    except (OSError, ValueError, TsugikiError) as broken:
        said = {"where": " · ".join(model_task), "reason": reason_of(broken)}
        way.events.note(Message("note.no_plan", **said))


def _test(way: Way, cell: Cell) -> None:
    result = way.result
    way.say("chosen", label=cell.label)
    folder = result.records[cell.label].folder
    try:
        # Workers may have scored it meanwhile.
        record = _with_weights(_read_again(result.records[cell.label]), way)
        if record.status == "done":
            record = score_run(record, "test", way.events)
            measure_exclusive(record)
            _elsewhere(way, cell, cell.label, record)
    except Interrupted:
        raise
    except Exception as broken:
        way.miss(test_of(cell.label), broken)
    for other in result.cells:  # one run may be a cell of two methods
        if (known := result.record(other)) is not None and known.folder == folder:
            result.records[other.label] = _read_again(known)


def _read_again(record: RunRecord) -> RunRecord:
    return read_record(record.folder).relabelled(record.config, record.wanted)


def _elsewhere(way: Way, cell: Cell, label: str, record: RunRecord) -> None:
    """Scores a run on what it was not tuned on; what cannot be had is one reason, and its scores on
    test stay."""
    if not is_scored_elsewhere(way.result, cell):
        return
    try:
        score_elsewhere(record, way.elsewhere, way.events)
    except Interrupted:
        raise
    except Exception as broken:
        way.miss(elsewhere_of(label), broken)


def _wanted_seeds(result: StudyResult, due: Sequence[Cell]) -> Iterator[tuple[Cell, int, Cell]]:
    for cell, number, repeat in seed_cells(result):
        if cell in due:
            yield cell, number, repeat


def _train_seeds(way: Way, due: Sequence[Cell]) -> None:
    """Trains these cells with the study's other seeds, adapters together, as lanes."""
    wanted = list(_wanted_seeds(way.result, due))
    labels = {repeat.config: seed_of(cell.label, number + 1) for cell, number, repeat in wanted}
    for done in way.executor.submit(groups_of_cells([repeat for _, _, repeat in wanted]), "seeds"):
        way.known |= done.records
        for repeat in done.group:
            _note_missing(way, labels[repeat.config], repeat.config, done)
    for cell in due:
        own = [repeat for other, _, repeat in wanted if other is cell]
        records = [way.known[repeat.config] for repeat in own if repeat.config in way.known]
        if records:
            way.result.repeats[cell.key] = records


def _note_missing(way: Way, label: str, config: RunConfig, done: Done) -> None:
    if config not in done.records:
        reason = Message("reason.busy") if done.busy else done.faults[config]
        way.result.missing[label] = reason


def _test_seeds(way: Way, due: Sequence[Cell]) -> None:
    """Scores every further seed on test; a full model's weights are dropped then."""
    tested: dict[str, list[RunRecord]] = {}
    for cell, number, repeat in _wanted_seeds(way.result, due):
        record = way.known.get(repeat.config)
        if record is None:
            continue
        label = seed_of(cell.label, number + 1)
        try:
            if record.status == "done":
                record = _with_weights(_read_again(record), way)
                record = score_run(record, "test", way.events)
                _elsewhere(way, cell, label, record)
        except Interrupted:
            raise
        except Exception as broken:
            way.known.pop(repeat.config, None)
            way.miss(label, broken)
            continue
        if method_of(repeat.config).moves_base:
            Run(record.folder).drop_weights()
        way.known[repeat.config] = _read_again(record)
        tested.setdefault(cell.label, []).append(way.known[repeat.config])
    for cell in due:
        way.result.repeats.pop(cell.key, None)
        if cell.label in tested:
            way.result.repeats[cell.key] = tested[cell.label]


def _with_weights(record: RunRecord, way: Way) -> RunRecord:
    """The record of a chosen cell; trained again when its weights are gone (it had lost in an
    earlier, wider grid, or they stayed on another machine) and test was not scored. A search that
    learns goes on from the score that it was given."""
    if has_weights(record) or record.scores("test") is not None:
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


def _is_wanting(record: RunRecord, cell: Cell, way: Way) -> bool:
    """Whether something of it can be scored yet."""
    if record.scores("test") is None:
        return True
    wanted = has_weights(record) and is_scored_elsewhere(way.result, cell)
    return wanted and bool(missing_of(record, way.elsewhere))


def keep_best_weights(result: StudyResult, latest: Cell) -> None:
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
