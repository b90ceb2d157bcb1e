"""How long the rest of a study takes, from what was measured: runs of the same model, task and
method on this device, and the running group's own steps.

What nothing of the kind was measured for is not guessed: the rest takes at least what is known.
Where nothing at all was measured, nothing is said.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tsugiki.config.run import RunConfig
from tsugiki.runs.branching import find_branches
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.study.cells import Cell, Key, StudyResult, is_scored_elsewhere, seed_cells
from tsugiki.study.forecast import HALVED, elsewhere_s, is_alike, wall_s
from tsugiki.study.search import TRIALS

if TYPE_CHECKING:
    from tsugiki.train.engine import Progress

PARTS = 1000  # an epoch in whole numbers, as steps are


@dataclass(frozen=True)
class Left:
    """Seconds; `whole`: whether all that is left is in them, or only what was measured before."""

    seconds: float
    whole: bool


@dataclass(kw_only=True)
class Group:
    """What a process works on: configurations that train together, since when, and when their last
    step is foretold to be made."""

    configs: tuple[RunConfig, ...]
    cells: tuple[Cell, ...]
    since: float
    ends: float = 0.0


@dataclass(kw_only=True)
class Remaining:
    """What is left of a study: counted anew when something begins, counted down in between.

    `known`: runs from before that were made on this device; those that end meanwhile are added.
    `running` holds what this process (number 0) works on, or what each worker does: they share what
    is left, and how long it takes is told by runs that were not alone on the device either.
    """

    result: StudyResult
    known: Sequence[RunRecord]
    clock: Callable[[], float] = time.monotonic
    running: dict[int, Group] = field(default_factory=dict)
    begun: set[RunConfig] = field(default_factory=set)
    epoch_s: dict[Key, float] = field(default_factory=dict)
    last: Left | None = None
    since: float = 0.0

    def skip(self, before: StudyResult) -> None:
        """Of an earlier day's study nothing that is finished is left."""
        runs = [*before.records.values(), *(run for own in before.repeats.values() for run in own)]
        self.begun.update(run.config for run in runs if run.outcome.finished)

    def begin(self, configs: Sequence[RunConfig] = (), worker: int = 0) -> None:
        """These are worked on from now on by this process, or by the worker of that number; what
        was begun there before has ended, and with none a worker has, too."""
        for number in (0, worker):
            if number in self.running:
                self.begun.update(self.running.pop(number).configs)
        if configs or not worker:
            seeds = [repeat for _, _, repeat in seed_cells(self.result)]
            own = [cell for cell in (*self.result.cells, *seeds) if cell.config in configs]
            self.running[worker] = Group(
                configs=tuple(configs), cells=tuple(own), since=self.clock()
            )
        self._count()

    def train(self, now: Progress, worker: int = 0) -> None:
        """The running group's own steps measure its kind, where no run did so before; and nothing
        ends before they do."""
        group = self.running[worker]
        group.ends = self.clock() + now.left_s
        own = group.cells
        measured = own and (own[0].key in self.epoch_s or _epoch_s(self._alike(own[0])) is not None)
        if not own or not now.step or measured:
            return
        passed = self.clock() - group.since
        self.epoch_s[own[0].key] = (passed + now.left_s) / sum(map(_epochs, own))
        self._count()

    def end(self, record: RunRecord) -> None:
        """A run ended, and says how long one takes."""
        self.known = [*self.known, record]

    def now(self) -> Left | None:
        """What is left at this moment."""
        if self.last is None:
            return None
        ends = [group.ends for group in self.running.values()]
        end = max([self.since + self.last.seconds, *ends])
        return Left(max(0.0, end - self.clock()), self.last.whole)

    def _count(self) -> None:
        """Counts what is left now, shared by those that work on it."""
        seconds, whole = 0.0, True
        for key in dict.fromkeys(cell.key for cell in self.result.cells):
            of_key = self._of(key, [cell for cell in self.result.cells if cell.key == key])
            whole &= of_key.whole
            seconds += of_key.seconds
        self.since = self.clock()
        passed = sum(map(self._passed_s, self.running.values()))
        share = max(0.0, seconds - passed) / max(1, len(self.running))
        self.last = Left(share, whole) if seconds else None

    def _passed_s(self, group: Group) -> float:
        """What of a running group's time has passed; 0 where that was not counted."""
        if not group.cells:
            return 0.0
        epoch_s = self._epoch_s(group.cells[0])
        passed = self.clock() - group.since
        return 0.0 if epoch_s is None else min(passed, epoch_s * _epochs_of(group.cells))

    def _epoch_s(self, cell: Cell) -> float | None:
        measured = _epoch_s(self._alike(cell))
        return self.epoch_s.get(cell.key) if measured is None else measured

    def _of(self, key: Key, cells: Sequence[Cell]) -> Left:
        result, search = self.result, cells[0].method.search
        if all(cell.label in result.missing for cell in cells):
            return Left(0.0, whole=True)
        alike, chosen = self._alike(cells[0]), result.chosen.get(key)
        epoch_s = self._epoch_s(cells[0])
        epochs = _epochs_of([cell for cell in cells if self._is_open(cell)])
        seeds = self._seeds(key, cells[0])
        epochs += seeds * max(map(_epochs, cells if chosen is None else [chosen]))
        untested = seeds + (chosen is None or not result.seeds(chosen))
        test_s = _test_s(alike)
        if is_scored_elsewhere(result, cells[0]):
            other_s = elsewhere_s(alike)
            test_s = None if test_s is None or other_s is None else test_s + other_s
        unknown = (epochs and epoch_s is None) or (untested and test_s is None)
        later = search.kind == "tpe" and len(cells) < (search.trials or TRIALS)
        seconds = epochs * (epoch_s or 0.0) + untested * (test_s or 0.0)
        return Left(seconds, not unknown and not later)

    def _alike(self, cell: Cell) -> list[RunRecord]:
        result = self.result
        repeats = [run for own in result.repeats.values() for run in own]
        made = [*self.known, *result.records.values(), *repeats]
        exclusive = 0 in self.running or not self.running
        return [
            record
            for record in {record.folder: record for record in made}.values()
            if is_alike(record, cell) and (exclusive or not record.outcome.exclusive)
        ]

    def _is_open(self, cell: Cell) -> bool:
        record = self.result.record(cell)
        finished = record is not None and record.outcome.finished
        return not (finished or cell.label in self.result.missing or cell.config in self.begun)

    def _seeds(self, key: Key, first: Cell) -> int:
        """Further seeds that were neither trained nor begun."""
        begun = [
            repeat.config
            for cell, _, repeat in seed_cells(self.result)
            if cell.key == key and repeat.config in self.begun
        ]
        kept = [run.config for run in self.result.repeats.get(key, [])]
        return max(0, first.seeds(self.result.study.num_seeds) - 1 - len({*begun, *kept}))


def _epochs(cell: Cell) -> float:
    """What a run of it takes, in runs over the rows; of what does not train, one run."""
    return cell.config.train.epochs if method_of(cell.config).trains else 1.0


def _epochs_of(cells: Sequence[Cell]) -> float:
    """Those that differ in their epochs alone go on from one checkpoint, and of those that are
    halved only some end."""
    if cells and cells[0].method.search.prune:
        return HALVED * sum(map(_epochs, cells))
    of = {cell.config: round(PARTS * _epochs(cell)) for cell in cells}
    branches = find_branches(list(of), of.__getitem__)
    shared = sum(
        part * len(configs) for own in branches.of.values() for part, configs in own.items()
    )
    return (sum(of.values()) - shared) / PARTS


def _epoch_s(records: Sequence[RunRecord]) -> float | None:
    """Seconds a run takes from start to end for each time over the rows, by the median of runs. A
    run that went on from a checkpoint started late: it takes what its steps took, at least."""
    taken = []
    for record in records:
        seconds, outcome = wall_s(record), record.outcome
        if seconds is not None and outcome.branch is None:
            steps_s = (record.cost().step_s_mean or 0.0) * (outcome.steps or 0)
            trains = method_of(record.config).trains
            taken.append(max(seconds, steps_s) / (record.config.train.epochs if trains else 1.0))
    return statistics.median(taken) if taken else None


def _test_s(records: Sequence[RunRecord]) -> float | None:
    """Seconds that answers to test take."""
    taken = [
        scores.answer_s * record.provenance.rows.get("test", 0)
        for record in records
        for scores in record.outcome.scores
    ]
    return statistics.median(taken) if taken else None
