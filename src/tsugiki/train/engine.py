"""The loop. Moves lanes to their ends, together: steps, logs, checkpoints, health, resume. Knows
nothing of LoRA or of tasks."""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tsugiki.errors import RunError
from tsugiki.train.checkpoint import (
    LaneState,
    checkpoints,
    drop_older_checkpoints,
    read_checkpoint,
    read_state,
    save_checkpoint,
)
from tsugiki.train.cost import Cost
from tsugiki.train.history import History
from tsugiki.train.lane import DidNotLearn, Lane
from tsugiki.train.meter import Meter
from tsugiki.train.step import StepResult

HEALTH_STEP = 3
LOG_EVERY = 10
CHECKPOINT_EVERY_S = 60.0


class Interrupted(RunError):
    """Ctrl-C: the step was finished and a checkpoint written."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a lane is, or several that train together, for whoever draws it."""

    lane: str
    step: int
    steps: int
    loss: float
    tokens_per_s: float
    memory_bytes: int
    left_s: float


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """`failure` says why the lane's result is worth nothing, if it is: it diverged or did not
    learn. `pruned`: who visited it ended it."""

    history: History
    cost: Cost
    resumed_from: int
    failure: str | None = None
    pruned: bool = False

    @property
    def whole(self) -> bool:
        """Whether it was trained to its end."""
        return self.failure is None and not self.pruned


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A lane after one of its `visits`; `save(folder)` writes a checkpoint of it there, from which
    another run can go on; `prune()` ends it."""

    lane: Lane
    save: Callable[[Path], None]
    prune: Callable[[], None]


def fit(
    step: Callable[[Sequence[Lane]], list[StepResult]],
    lanes: Sequence[Lane],
    device: torch.device,
    *,
    folders: Sequence[Path | None],
    on_progress: Callable[[Progress], None] | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    visit: Callable[[list[Visit]], None] | None = None,
) -> list[FitResult]:
    """Trains the lanes together, each to its own end, resuming from the checkpoints in their
    folders if there are any.

    A lane that diverges or does not learn leaves the others; its result says why. `visit` is
    called after each step that is among some lanes' `visits`, outside what is measured.

    Raises:
        Interrupted: on Ctrl-C, after the running step; the same call goes on from there, to the
            same result.
        RunError: a checkpoint cannot be written or read.
    """
    courses = [_Course(lane, folder) for lane, folder in zip(lanes, folders, strict=True)]
    return _Together(step, courses, device, on_progress, checkpoint_every_s, visit).run()


def is_end(state: LaneState, lane: Lane) -> bool:
    """Whether a checkpoint's state is the lane's end: its last step was made, it failed, or it was
    pruned."""
    return state.step >= lane.steps or state.failure is not None or state.pruned


class _Course:
    """One lane on its way: its history, its folder, and how it ended."""

    def __init__(self, lane: Lane, folder: Path | None):
        self.lane, self.folder = lane, folder
        self.history = History()
        self.failure: str | None = None
        self.pruned = False
        self.resumed_from = 0
        self.settled = False  # its end stands in a checkpoint

    @property
    def going(self) -> bool:
        return not self.lane.done and self.failure is None and not self.pruned

    def take(self, loss: float, norm: float, step_s: float, tokens: int) -> None:
        """Notes one step's numbers."""
        history = self.history
        history.loss.append(loss)
        history.norm.append(norm)
        history.step_s.append(step_s)
        history.step_tokens.append(tokens)
        if not math.isfinite(loss) and self.failure is None:
            rate = self.lane.config.learning_rate
            self.failure = (
                f"{self.lane.name}: the loss is {loss} at step {len(history.loss)}: "
                f"training diverged. Lower the learning rate ({rate:g})"
            )

    def prune(self) -> None:
        self.pruned = True

    def check_health(self) -> None:
        try:
            self.lane.check_health()
        except DidNotLearn as dead:
            self.failure = str(dead)

    def save(
        self, folder: Path, *, group: str | None = None, group_step: int = 0, keep: bool = False
    ) -> None:
        """Writes a checkpoint; of which group and at which of its steps, so that its lanes resume
        from one of them."""
        state = LaneState(
            moving_steps=self.lane.moving_steps,
            failure=self.failure,
            pruned=self.pruned,
            group=group,
            group_step=group_step,
            history=self.history,
        )
        save_checkpoint(folder, self.lane.step, self.lane.state_tensors(), state, keep=keep)

    def resume(self, path: Path) -> None:
        tensors, state = read_checkpoint(path)
        self.lane.load_state(tensors, state.step, state.moving_steps)
        self.history = state.history
        self.failure, self.pruned = state.failure, state.pruned
        self.resumed_from = state.step
        self.settled = not self.going


class _Together:
    """The loop over one or more courses."""

    def __init__(
        self,
        step: Any,
        courses: list[_Course],
        device: torch.device,
        on_progress: Any,
        every_s: float,
        visit: Any,
    ):
        self.step, self.courses, self.on_progress, self.every_s, self.visit = (
            step,
            courses,
            on_progress,
            every_s,
            visit,
        )
        self.meter = Meter(device, getattr(step, "peak_bytes", 0))
        self.pending: list[tuple[list[_Course], list[StepResult]]] = []
        names = sorted("/".join(course.folder.parts[-2:]) for course in courses if course.folder)
        self.group = hashlib.sha256("+".join(names).encode()).hexdigest()[:12]
        self.group_step = self._resume()
        self.saving_s = 0.0

    @property
    def going(self) -> list[_Course]:
        return [course for course in self.courses if course.going]

    def run(self) -> list[FitResult]:
        saved = time.monotonic()
        with _finish_step_on_interrupt() as interrupted:
            while going := self.going:
                self._one_step(going)
                ended = any(course.lane.done for course in going)
                self._check(going)
                self._visit(going)
                if self.group_step % LOG_EVERY == 0 or ended or interrupted:
                    self._fetch()
                    self._tell()
                due = self.going and time.monotonic() - saved > max(
                    self.every_s, 20 * self.saving_s
                )
                if interrupted or due:
                    self._fetch()
                    self._save()
                    saved = time.monotonic()
                if interrupted and not self.going:
                    raise KeyboardInterrupt
                if interrupted:
                    furthest = self.going[0].lane
                    where = (
                        f"checkpoint at step {furthest.step} of {furthest.steps}"
                        if self.going[0].folder
                        else "nothing was kept"
                    )
                    raise Interrupted(
                        f"{self._name()}: stopped; {where}. Run the same command again to go on"
                    )
        if len(self.courses) > 1:
            # their ends: while they are scored one after another, a kill must not send some of
            # them back
            self._save()
        return [
            FitResult(
                history=one.history,
                cost=self._cost(one),
                resumed_from=one.resumed_from,
                failure=one.failure,
                pruned=one.pruned,
            )
            for one in self.courses
        ]

    def _one_step(self, going: list[_Course]) -> None:
        for course in going:
            course.history.learning_rate.append(course.lane.learning_rate)
        self.meter.begin()
        results = self.step([course.lane for course in going])
        self.meter.end()
        self.pending.append((going, results))
        self.group_step += 1

    def _check(self, going: list[_Course]) -> None:
        due = [
            course
            for course in going
            if course.lane.moving_steps == HEALTH_STEP or course.lane.done
        ]
        if due:
            self._fetch()
        for course in due:
            if course.failure is None:
                course.check_health()

    def _visit(self, going: list[_Course]) -> None:
        here = [
            course
            for course in going
            if course.lane.step in course.lane.visits and course.failure is None
        ]
        if here and self.visit is not None:
            self._fetch()
            with self.meter.set_aside():
                self.visit(
                    [
                        Visit(lane=one.lane, save=one.save, prune=one.prune)
                        for one in here
                        if one.failure is None
                    ]
                )

    def _fetch(self) -> None:
        """Brings losses and norms to the host: the only place that waits for the device."""
        if not self.pending:
            return
        numbers = [
            torch.stack([torch.stack([one.loss.float(), one.norm.float()]) for one in results])
            for _, results in self.pending
        ]
        fetched = torch.cat(numbers).tolist()
        seconds = self.meter.settle()
        for (courses, results), step_s in zip(self.pending, seconds, strict=True):
            for course, result in zip(courses, results, strict=True):
                loss, norm = fetched.pop(0)
                course.take(loss, norm, step_s / len(courses), result.num_tokens)
        self.pending.clear()

    def _name(self) -> str:
        return self.courses[0].lane.name if len(self.courses) == 1 else f"{len(self.courses)} lanes"

    def _tell(self) -> None:
        going = [course for course in self.courses if course.failure is None]
        if self.on_progress is None or not going:
            return
        leading = max(going, key=lambda course: course.lane.steps - course.lane.step)
        recent = leading.history.step_s[-50:]
        pace = sum(recent) / len(recent)
        losses = [loss for course in going for loss in course.history.loss[-LOG_EVERY:]]
        self.on_progress(
            Progress(
                lane=self._name(),
                step=leading.lane.step,
                steps=leading.lane.steps,
                loss=sum(losses) / len(losses),
                tokens_per_s=sum(leading.history.step_tokens[-len(recent) :])
                / max(sum(recent), 1e-9),
                memory_bytes=self.meter.memory_bytes,
                left_s=pace * len(going) * (leading.lane.steps - leading.lane.step),
            )
        )

    def _cost(self, course: _Course) -> Cost:
        return self.meter.cost(
            course.history.step_s, course.history.step_tokens, lanes=len(self.courses)
        )

    def _save(self) -> None:
        """Every lane's checkpoint of this step; older ones are removed only when all are written,
        so that a kill leaves one step of all."""
        start = time.monotonic()
        for course in self.courses:
            if course.folder and not course.settled:
                course.save(course.folder, group=self.group, group_step=self.group_step, keep=True)
                course.settled = not course.going
        for course in self.courses:
            if course.folder:
                drop_older_checkpoints(course.folder)
        self.saving_s = time.monotonic() - start

    def _resume(self) -> int:
        """Loads the checkpoints; of those that this very group wrote, the latest step that all its
        lanes have. Returns that step."""
        found = {
            id(course): [(path, read_state(path)) for path in checkpoints(course.folder)]
            if course.folder
            else []
            for course in self.courses
        }
        ours = [
            max((state.group_step for _, state in one if state.group == self.group), default=0)
            for one in found.values()
        ]
        ended = [
            bool(one) and is_end(one[-1][1], course.lane)
            for course, one in zip(self.courses, found.values(), strict=True)
        ]
        common = min(
            (last for last, over in zip(ours, ended, strict=True) if not over), default=max(ours)
        )
        for course in self.courses:
            usable = [
                path
                for path, state in found[id(course)]
                if state.group != self.group or state.group_step <= common
            ]
            if usable:
                course.resume(usable[-1])
        return common


@contextmanager
def _finish_step_on_interrupt() -> Iterator[list[int]]:
    """Within it the first Ctrl-C (or SIGTERM) only fills the list; the same one again is a
    KeyboardInterrupt at once. (A worker may get both for one Ctrl-C: from the terminal, and from
    the process that started it.)"""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if number in received:
            raise KeyboardInterrupt
        received.append(number)

    signals = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what a batch system sends before it kills
    try:
        before = [signal.signal(one, receive) for one in signals]
    except ValueError:  # not the main thread: signals do not reach us
        yield received
        return
    try:
        yield received
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)
