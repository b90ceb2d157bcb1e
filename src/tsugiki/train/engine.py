"""The loop. Moves lanes to their ends, together: steps, logs, checkpoints, health, resume. Knows
nothing of LoRA or of tasks."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from tsugiki.train.interrupt import finish_step_on_interrupt
from tsugiki.train.lane import DidNotLearn, Lane
from tsugiki.train.meter import Meter
from tsugiki.train.step import StepResult
from tsugiki.train.values import OnValues, TellValues
from tsugiki.words import Message

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
    learn. `pruned`: a callback ended it."""

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
class PausedLane:
    """A lane after one of its `callback_steps`; `save(folder)` writes a checkpoint of it there,
    from which another run can go on; `prune()` ends it."""

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
    callback: Callable[[list[PausedLane]], None] | None = None,
    on_values: OnValues | None = None,
) -> list[FitResult]:
    """Trains the lanes together, each to its own end, resuming from the checkpoints in their
    folders if there are any.

    A lane that diverges or does not learn leaves the others; its result says why. `callback`
    is called after each step that is among some lanes' `callback_steps`, outside what is measured.
    `on_values` hears of every lane by itself: see `train/values`.

    Raises:
        Interrupted: on Ctrl-C, after the running step; the same call goes on from there, to the
            same result.
        RunError: a checkpoint cannot be written or read.
    """
    lane_runs = [_LaneRun(lane, folder) for lane, folder in zip(lanes, folders, strict=True)]
    tell = TellValues(len(lanes), LOG_EVERY, on_values)
    return _TrainingLoop(
        step, lane_runs, device, on_progress, checkpoint_every_s, callback, tell
    ).run()


def is_end(state: LaneState, lane: Lane) -> bool:
    """Whether a checkpoint's state is the lane's end: its last step was made, it failed, or it was
    pruned."""
    return state.step >= lane.steps or state.failure is not None or state.pruned


class _LaneRun:
    """One lane while it trains: its history, its folder, and how it ended."""

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
            values = {"loss": loss, "step": len(history.loss)}
            rate = self.lane.config.learning_rate
            self.failure = Message("error.diverged", lane=self.lane.name, rate=rate, **values)

    def prune(self) -> None:
        self.pruned = True

    def check_health(self) -> None:
        try:
            self.lane.check_health()
        except DidNotLearn as unmoved:
            self.failure = unmoved.message

    def save(
        self, folder: Path, *, group: str | None = None, group_step: int = 0, keep: bool = False
    ) -> None:
        """Writes a checkpoint; of which group and at which of its steps, so that its lanes resume
        from one of them."""
        state = LaneState(
            steps_with_lr=self.lane.steps_with_lr,
            failure=self.failure,
            pruned=self.pruned,
            group=group,
            group_step=group_step,
            history=self.history,
        )
        save_checkpoint(folder, self.lane.step, self.lane.state_tensors(), state, keep=keep)

    def resume(self, path: Path) -> None:
        tensors, state = read_checkpoint(path)
        self.lane.load_state(tensors, state.step, state.steps_with_lr)
        self.history = state.history
        self.failure, self.pruned = state.failure, state.pruned
        self.resumed_from = state.step
        self.settled = not self.going


class _TrainingLoop:
    """The loop over one or more lanes."""

    def __init__(
        self,
        step: Any,
        lane_runs: list[_LaneRun],
        device: torch.device,
        on_progress: Any,
        every_s: float,
        callback: Any,
        tell: TellValues,
    ):
        self.tell = tell
        self.step, self.lane_runs, self.on_progress, self.every_s, self.callback = (
            step,
            lane_runs,
            on_progress,
            every_s,
            callback,
        )
        self.meter = Meter(device, getattr(step, "peak_bytes", 0))
        self.pending: list[tuple[list[_LaneRun], list[StepResult]]] = []
        names = sorted(
            "/".join(lane_run.folder.parts[-2:]) for lane_run in lane_runs if lane_run.folder
        )
        self.group = hashlib.sha256("+".join(names).encode()).hexdigest()[:12]
        self.group_step = self._resume()
        self.saving_s = 0.0

    @property
    def going(self) -> list[_LaneRun]:
        return [lane_run for lane_run in self.lane_runs if lane_run.going]

    def run(self) -> list[FitResult]:
        saved = time.monotonic()
        with finish_step_on_interrupt() as interrupted:
            while going := self.going:
                self._one_step(going)
                ended = any(lane_run.lane.done for lane_run in going)
                self._check(going)
                self._call_back(going)
                if self.group_step % LOG_EVERY == 0 or ended or interrupted:
                    self._fetch()
                    self._report_progress()
                    self._tell_values()
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
                    furthest, name = self.going[0].lane, self._name()
                    if not self.going[0].folder:
                        raise Interrupted(Message("error.stopped_unkept", lane=name))
                    at = {"step": furthest.step, "steps": furthest.steps}
                    raise Interrupted(Message("error.stopped", lane=name, **at))
        self._tell_values()  # of those that a look at their health ended
        if len(self.lane_runs) > 1:
            # their ends: while they are scored one after another, a kill must not send some of
            # them back
            self._save()
        return [
            FitResult(
                history=lane_run.history,
                cost=self._cost(lane_run),
                resumed_from=lane_run.resumed_from,
                failure=lane_run.failure,
                pruned=lane_run.pruned,
            )
            for lane_run in self.lane_runs
        ]

    def _one_step(self, going: list[_LaneRun]) -> None:
        for lane_run in going:
            lane_run.history.learning_rate.append(lane_run.lane.learning_rate)
        self.meter.begin()
        results = self.step([lane_run.lane for lane_run in going])
        self.meter.end()
        self.pending.append((going, results))
        self.group_step += 1

    def _check(self, going: list[_LaneRun]) -> None:
        due = [
            lane_run
            for lane_run in going
            if lane_run.lane.steps_with_lr == HEALTH_STEP or lane_run.lane.done
        ]
        if due:
            self._fetch()
        for lane_run in due:
            if lane_run.failure is None:
                lane_run.check_health()

    def _call_back(self, going: list[_LaneRun]) -> None:
        due = [
            lane_run
            for lane_run in going
            if lane_run.lane.step in lane_run.lane.callback_steps and lane_run.failure is None
        ]
        if due and self.callback is not None:
            self._fetch()
            with self.meter.set_aside():
                self.callback(
                    [
                        PausedLane(lane=lane_run.lane, save=lane_run.save, prune=lane_run.prune)
                        for lane_run in due
                        if lane_run.failure is None
                    ]
                )

    def _fetch(self) -> None:
        """Brings losses and norms to the host: the only place that waits for the device."""
        if not self.pending:
            return
        numbers = [
            torch.stack(
                [torch.stack([result.loss.float(), result.norm.float()]) for result in results]
            )
            for _, results in self.pending
        ]
        fetched = torch.cat(numbers).tolist()
        seconds = self.meter.settle()
        for (lane_runs, results), step_s in zip(self.pending, seconds, strict=True):
            for lane_run, result in zip(lane_runs, results, strict=True):
                loss, norm = fetched.pop(0)
                lane_run.take(loss, norm, step_s / len(lane_runs), result.num_tokens)
        self.pending.clear()

    def _name(self) -> str:
        return (
            self.lane_runs[0].lane.name
            if len(self.lane_runs) == 1
            else f"{len(self.lane_runs)} lanes"
        )

    def _report_progress(self) -> None:
        going = [lane_run for lane_run in self.lane_runs if lane_run.failure is None]
        if self.on_progress is None or not going:
            return
        leading = max(going, key=lambda lane_run: lane_run.lane.steps - lane_run.lane.step)
        recent = leading.history.step_s[-50:]
        pace = sum(recent) / len(recent)
        losses = [loss for lane_run in going for loss in lane_run.history.loss[-LOG_EVERY:]]
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

    def _tell_values(self) -> None:
        self.tell([(lane_run.history, not lane_run.going) for lane_run in self.lane_runs])

    def _cost(self, lane_run: _LaneRun) -> Cost:
        return self.meter.cost(
            lane_run.history.step_s, lane_run.history.step_tokens, lanes=len(self.lane_runs)
        )

    def _save(self) -> None:
        """Every lane's checkpoint of this step; older ones are removed only when all are written,
        so that a kill leaves one step of all."""
        start = time.monotonic()
        for lane_run in self.lane_runs:
            if lane_run.folder and not lane_run.settled:
                lane_run.save(
                    lane_run.folder, group=self.group, group_step=self.group_step, keep=True
                )
                lane_run.settled = not lane_run.going
        for lane_run in self.lane_runs:
            if lane_run.folder:
                drop_older_checkpoints(lane_run.folder)
        self.saving_s = time.monotonic() - start

    def _resume(self) -> int:
        """Loads the checkpoints; of those that this very group wrote, the latest step that all its
        lanes have. Returns that step."""
        kept = {
            id(lane_run): [(path, read_state(path)) for path in checkpoints(lane_run.folder)]
            if lane_run.folder
            else []
            for lane_run in self.lane_runs
        }
        ours = [
            max((state.group_step for _, state in own if state.group == self.group), default=0)
            for own in kept.values()
        ]
        ended = [
            bool(own) and is_end(own[-1][1], lane_run.lane)
            for lane_run, own in zip(self.lane_runs, kept.values(), strict=True)
        ]
        common = min(
            (last for last, over in zip(ours, ended, strict=True) if not over), default=max(ours)
        )
        for lane_run in self.lane_runs:
            usable = [
                path
                for path, state in kept[id(lane_run)]
                if state.group != self.group or state.group_step <= common
            ]
            if usable:
                lane_run.resume(usable[-1])
        return common
