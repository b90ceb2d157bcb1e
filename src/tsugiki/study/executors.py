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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tsugiki.config.run import RunConfig
from tsugiki.config.study import StudySpec
from tsugiki.errors import message_of, reason_of
from tsugiki.model.loading import pick_device
from tsugiki.runs.events import Events
from tsugiki.runs.reading import RunRecord, file_of
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import RunBusy, Store
from tsugiki.study.cells import Cell, collect
from tsugiki.train.engine import Interrupted
from tsugiki.train.memory import MOST_LANES

Group = Sequence[Cell]


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

    def submit(self, groups: Sequence[Group]) -> Iterator[Done]: ...


@dataclass(frozen=True, kw_only=True)
class ThisProcess:
    """One group after another, here. A worker leaves what is busy to the others, and its faults to
    the study's own process."""

    study: StudySpec
    store: Store
    events: Events
    exclusive: bool = True
    skip_busy: bool = False

    def submit(self, groups: Sequence[Group]) -> Iterator[Done]:
        for group in groups:
            yield self._work(group)

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
            many = f" … ({len(group)} configurations)"
            self.events.note(f"left out: {group[0].label}{many}: {message_of(broken)}")
            return Done(group=group, faults=dict.fromkeys(configs, reason_of(broken)))
        by_config = {record.config: record for record in records}
        return Done(group=group, records=by_config, faults=faults)


@dataclass(frozen=True)
class WorkerProcesses:
    """`jobs` processes (`tsugiki study … --worker`) take the groups first; what they leave, and
    what goes wrong with one, is then worked on here, one after another."""

    this_process: ThisProcess
    arguments: Sequence[str]
    jobs: int

    def submit(self, groups: Sequence[Group]) -> Iterator[Done]:
        lost = self._run_workers() if groups else {}
        for group in groups:
            left = [cell for cell in group if cell.config not in lost]
            lost_here = {cell.config: lost[cell.config] for cell in group if cell.config in lost}
            if lost_here:
                yield Done(
                    group=[cell for cell in group if cell.config in lost_here], faults=lost_here
                )
            if left:
                yield from self.this_process.submit([left])

    def _run_workers(self) -> dict[RunConfig, str]:
        """Waits for the workers; they end when this process does, however it ends.

        Where workers were killed, what they left is given to one more. Returns the configurations
        that this one was killed over, too, with the reason: whatever it is about them would take
        this process as well.
        """
        codes = _workers(self.arguments, self.jobs)
        killed = [code for code in codes if code < 0]
        if not killed:
            return {}
        self.this_process.events.note(
            f"{len(killed)} of {self.jobs} workers were killed ({_signal(killed[0])}); what they "
            "left is run by one more"
        )
        start = time.time()
        [code] = _workers(self.arguments, 1)
        if code >= 0:
            return {}
        begun = collect(self.this_process.study, self.this_process.store).begun()
        touched = [
            cell.config
            for cell, record in begun
            if file_of(record.folder, "outcome.json").stat().st_mtime >= start
        ]
        why = (
            f"its worker was killed twice ({_signal(code)}): by the system, perhaps, for want of "
            "memory"
        )
        return dict.fromkeys(touched, why)


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
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
