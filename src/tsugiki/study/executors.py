"""Where groups of configurations are worked on: in this process, or in worker processes first.

`submit` takes groups that can train together each, and yields what came of each group: its records,
what kept single configurations from their end, or that another process works on it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

import torch

from tsugiki.config.run import RunConfig
from tsugiki.config.study import StudySpec
from tsugiki.errors import message_of, reason_of
from tsugiki.model.numerics import pick_device
from tsugiki.runs.events import Events
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord, file_of
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import RunBusy, Store
from tsugiki.study.cells import Cell, collect
from tsugiki.study.messages import OnCell, messages, pass_on
from tsugiki.train.engine import Interrupted
from tsugiki.train.ledger import MOST_LANES
from tsugiki.words import Message

Group = Sequence[Cell]
Stage = Literal["cells", "seeds", "test"]
"""What workers do: the configurations, the chosen ones' further seeds, their answers to test."""
Hear = Callable[[Events, OnCell, int], Events]
"""Makes the events of a worker (by its number, from 1) of those that its line on the screen hears,
so that the study hears them too."""


class WorkerLine(Protocol):
    """What is shown of one worker, until it has ended."""

    @property
    def events(self) -> Events: ...

    def on_cell(self, key: str, values: Mapping[str, object]) -> None: ...

    def close(self) -> None: ...


def groups_of_cells(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that can train together, in the order of their first ones."""
    groups: dict[tuple[RunConfig, str], list[Cell]] = {}
    for cell in cells:
        # One method's cells must not end another's.
        rivals = cell.method.name if cell.method.search.prune else ""
        alike = method_of(cell.config).alike(cell.config)
        groups.setdefault((alike, rivals), []).append(cell)
    return list(groups.values())


@dataclass(frozen=True, kw_only=True)
class Done:
    """What came of a group: records by configuration, and reasons why others have none. `busy`:
    another process works on one of them, and nothing is said."""

    group: Group
    records: dict[RunConfig, RunRecord] = field(default_factory=dict)
    faults: dict[RunConfig, str] = field(default_factory=dict)
    busy: bool = False


class Executor(Protocol):
    """Works on groups, in its own order. Raises `Interrupted` on Ctrl-C."""

    @property
    def side_by_side(self) -> bool:
        """Whether a stage of all models and tasks is worked on before the next begins."""

    def submit(self, groups: Sequence[Group], stage: Stage = "cells") -> Iterator[Done]: ...

    def test(self) -> None:
        """Scores what is chosen, and its seeds, on test, as far as that goes side by side."""


@dataclass(frozen=True, kw_only=True)
class ThisProcess:
    """One group after another, here. A worker leaves what is busy to the others, and its faults to
    the study's own process."""

    study: StudySpec
    store: Store
    events: Events
    exclusive: bool = True
    skip_busy: bool = False
    side_by_side: bool = False

    def submit(self, groups: Sequence[Group], stage: Stage = "cells") -> Iterator[Done]:
        for group in groups:
            yield self._work(group)

    def test(self) -> None:
        """The study does it, one after another."""

    def _work(self, group: Group) -> Done:
        faults = dict[RunConfig, str]()
        # Those that are pruned must train together to be compared, on a CPU too.
        pruned = group[0].method.search.prune
        all_together = MOST_LANES if pruned and pick_device().type == "cpu" else None
        configs = [cell.config for cell in group]
        try:
            records = run_group(
                configs,
                self.store,
                self.events,
                exclusive=self.exclusive,
                study=self.study.name,
                lanes=self.study.lanes or all_together,
                skip_busy=self.skip_busy,
                prune=pruned,
                faults=faults,
            )
        except Interrupted:
            raise
        except RunBusy:
            return Done(group=group, busy=True)
        except Exception as broken:
            said = {"label": group[0].label, "count": len(group), "reason": message_of(broken)}
            self.events.note(Message("note.left_out_group", **said))
            return Done(group=group, faults=dict.fromkeys(configs, reason_of(broken)))
        by_config = {record.config: record for record in records}
        return Done(group=group, records=by_config, faults=faults)


@dataclass(frozen=True)
class WorkerProcesses:
    """`jobs` processes (`tsugiki study … --worker STAGE`) take the groups first; what they leave,
    and what goes wrong with one, is then worked on here, one after another.

    `lines` opens the line of the worker of that number on the screen.
    """

    this_process: ThisProcess
    hear: Hear
    arguments: Sequence[str]
    jobs: int
    lines: Callable[[int], WorkerLine]
    side_by_side: bool = True
    noted: set[str] = field(default_factory=set)

    def submit(self, groups: Sequence[Group], stage: Stage = "cells") -> Iterator[Done]:
        ended = set[RunConfig]()
        lost = self._run_workers(stage, ended) if self._is_open(groups) else {}
        process = self.this_process
        # Else it would say that these were finished before.
        only_read = replace(process, events=replace(process.events, on_note=None))
        for group in groups:
            lost_here = {cell.config: lost[cell.config] for cell in group if cell.config in lost}
            if lost_here:
                yield Done(
                    group=[cell for cell in group if cell.config in lost_here], faults=lost_here
                )
            left = [cell for cell in group if cell.config not in lost]
            for own_process, is_ended in ((only_read, True), (process, False)):
                own = [cell for cell in left if (cell.config in ended) == is_ended]
                if own:
                    yield from own_process.submit([own])

    def test(self) -> None:
        self._run_workers("test", set())

    def _is_open(self, groups: Sequence[Group]) -> bool:
        """Whether something of these groups has no finished run."""
        known = collect(self.this_process.study, self.this_process.store)
        repeats = [run for runs in known.repeats.values() for run in runs]
        records = [*known.records.values(), *repeats]
        finished = {record.config for record in records if record.outcome.finished}
        return any(cell.config not in finished for group in groups for cell in group)

    def _run_workers(self, stage: Stage, ended: set[RunConfig]) -> dict[RunConfig, str]:
        """Waits for the workers; they end when this process does, however it ends. What they
        bring to an end is added to `ended`.

        Where workers were killed, what they left is given to one more. Returns the configurations
        that this one was killed over, too, with the reason: whatever it is about them would take
        this process as well.
        """
        codes = self._workers(stage, self.jobs, ended)
        killed = [code for code in codes if _was_killed(code)]
        if not killed:
            return {}
        counts = {"killed": len(killed), "jobs": self.jobs}
        said = Message("note.workers_killed", signal=_signal(killed[0]), **counts)
        self.this_process.events.note(said)
        start = time.time()
        [code] = self._workers(stage, 1, ended)
        if not _was_killed(code):
            return {}
        begun = collect(self.this_process.study, self.this_process.store).begun()
        touched = [
            cell.config
            for cell, record in begun
            if file_of(record.folder, "outcome.json").stat().st_mtime >= start
        ]
        return dict.fromkeys(touched, Message("error.killed_twice", signal=_signal(code)))

    def _workers(self, stage: Stage, jobs: int, ended: set[RunConfig]) -> list[int]:
        """Their exit codes. Each reads a pipe that nothing is written to: when it ends, this
        process has ended (`stop_with_parent`)."""
        command = [sys.executable, "-m", "tsugiki", "study", *self.arguments, "--worker", stage]
        pipe = subprocess.PIPE
        workers = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment_of(number, jobs))
            for number in range(jobs)
        ]
        try:
            self._show(workers, ended)
            return [worker.wait() for worker in workers]
        except BaseException:
            for worker in workers:
                if worker.stdin:
                    worker.stdin.close()
            for worker in workers:
                worker.wait()
            raise

    def _show(self, workers: Sequence[subprocess.Popen[bytes]], ended: set[RunConfig]) -> None:
        """Says what workers do, each on its own line, until all have ended."""
        lines = {number: self.lines(number) for number in range(1, len(workers) + 1)}
        heard = {
            number: self.hear(
                replace(
                    line.events,
                    on_end=lambda record: ended.add(record.config),
                    on_note=partial(self._note_once, line.events),
                ),
                line.on_cell,
                number,
            )
            for number, line in lines.items()
        }
        for number, message in messages(workers):
            if message is None:
                lines[number].close()
                heard[number].start([])
            else:
                pass_on(message, heard[number], lines[number].on_cell)

    def _note_once(self, events: Events, text: str) -> None:
        """Every worker reads the same data and finds the same models missing."""
        if text not in self.noted:
            self.noted.add(text)
            events.note(text)


def environment_of(number: int, jobs: int) -> dict[str, str]:
    """What a worker (from 0) of so many gets unless it is set: a share of the cores, and one of
    several cards, in turn."""
    # Each would take all cores: two on two cores take more than twice as long as one after another.
    given = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}
    if (cards := torch.cuda.device_count()) > 1:
        given["TSUGIKI_DEVICE"] = f"cuda:{number % cards}"
    return given | os.environ


def _was_killed(code: int) -> bool:
    """By a signal; or by Windows, where a fault's exit code is its status, 0xC0000000 or more."""
    return code < 0 or code >= 0xC0000000


def _signal(code: int) -> str:
    if code > 0:
        return f"exit code {code:#x}"
    known = -code in set(signal.Signals)
    return signal.Signals(-code).name if known else f"signal {-code}"


def stop_with_parent() -> None:
    """In a worker: when the process that started it ends, however it ends, the worker stops as on
    Ctrl-C: a finished step, a checkpoint."""

    def wait() -> None:
        # Not through sys.stdin, whose lock a thread that waits would hold when the interpreter
        # ends.
        while os.read(0, 4096):
            continue
        if sys.platform == "win32":  # there os.kill ends the process at once
            signal.raise_signal(signal.SIGTERM)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
