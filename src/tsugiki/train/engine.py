"""The loop. Moves every lane to its end: steps, logs, checkpoints, health, resume. Knows nothing of LoRA or of tasks."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tsugiki.errors import RunError
from tsugiki.train.checkpoint import latest_checkpoint, read_checkpoint, save_checkpoint
from tsugiki.train.lane import DidNotLearn, Lane
from tsugiki.train.meter import Measurement, Meter
from tsugiki.train.step import StepResult

HEALTH_STEP = 3
LOG_EVERY = 10
CHECKPOINT_EVERY_S = 60.0


class Interrupted(RunError):
    """Ctrl-C: the step was finished and a checkpoint written."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a lane is, for whoever draws it."""

    lane: str
    step: int
    steps: int
    loss: float
    tokens_per_s: float
    memory_bytes: int
    left_s: float


@dataclass(kw_only=True)
class History:
    """One entry a step: mean loss a target token, gradient norm, learning rate, seconds, tokens."""

    loss: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    step_tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FitResult:
    history: History
    measurement: Measurement
    resumed_from: int


def fit(
    step: Callable[[Lane], StepResult],
    lanes: Sequence[Lane],
    device: torch.device,
    *,
    folders: Sequence[Path | None],
    on_progress: Callable[[Progress], None] | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    watch: Callable[[Lane], None] | None = None,
    watch_at: Collection[int] = (),
) -> list[FitResult]:
    """Trains each lane to its end, one after another, resuming from the checkpoint in its folder if there is one.

    `watch` is called after each step whose number is in `watch_at`, outside what is measured: to score while training.

    Raises:
        Interrupted: on Ctrl-C, after the running step; the same call goes on from there, to the same result.
        DidNotLearn: the loss is no number any more, or an adapter does not learn.
        RunError: a checkpoint cannot be written or read.
    """
    results = []
    for lane, folder in zip(lanes, folders, strict=True):
        course = _Course(step, lane, device, folder, on_progress, checkpoint_every_s, watch, frozenset(watch_at))
        results.append(course.run())
    return results


class _Course:
    """One lane on its way: keeps what the loop needs between steps."""

    def __init__(
        self,
        step: Any,
        lane: Lane,
        device: torch.device,
        folder: Path | None,
        on_progress: Any,
        every_s: float,
        watch: Callable[[Lane], None] | None,
        watch_at: frozenset[int],
    ):
        self.step, self.lane, self.folder, self.on_progress, self.every_s = step, lane, folder, on_progress, every_s
        self.watch, self.watch_at = watch, watch_at
        self.meter = Meter(device, getattr(step, "peak_bytes", 0))
        self.history = History()
        self.pending: list[StepResult] = []
        self.resumed_from = self._resume()

    def run(self) -> FitResult:
        lane = self.lane
        saved = time.monotonic()
        with _finish_step_on_interrupt() as interrupted:
            while not lane.done:
                self._one_step()
                if lane.moving_steps == HEALTH_STEP or lane.done:
                    lane.check_health()
                if self.watch is not None and lane.step in self.watch_at:
                    self._fetch()
                    with self.meter.set_aside():
                        self.watch(lane)
                if lane.step % LOG_EVERY == 0 or lane.done or interrupted:
                    self._fetch()
                if self.folder and (interrupted or (not lane.done and time.monotonic() - saved > self.every_s)):
                    self._fetch()
                    self.save()
                    saved = time.monotonic()
                if interrupted and lane.done:
                    raise KeyboardInterrupt
                if interrupted:
                    where = f"checkpoint at step {lane.step} of {lane.steps}" if self.folder else "nothing was kept"
                    raise Interrupted(f"{lane.name}: stopped; {where}. Run the same command again to go on")
        return FitResult(history=self.history, measurement=self._measurement(), resumed_from=self.resumed_from)

    def _one_step(self) -> None:
        self.history.learning_rate.append(self.lane.learning_rate)
        self.meter.begin()
        result = self.step(self.lane)
        self.meter.end(result.num_tokens)
        self.pending.append(result)

    def _fetch(self) -> None:
        """Brings losses and norms to the host: the only place that waits for the device."""
        if not self.pending:
            return
        numbers = torch.stack([torch.stack([one.loss.float(), one.norm.float()]) for one in self.pending]).tolist()
        self.meter.settle()
        self.pending.clear()
        self.history.loss += [loss for loss, _ in numbers]
        self.history.norm += [norm for _, norm in numbers]
        for back, (loss, _) in enumerate(reversed(numbers)):
            if not math.isfinite(loss):
                at = self.lane.step - back
                raise DidNotLearn(
                    f"{self.lane.name}: the loss is {loss} at step {at}: training diverged. Lower the learning rate ({self.lane.config.learning_rate:g})"
                )
        self._tell()

    def _tell(self) -> None:
        if self.on_progress is None:
            return
        recent = self.meter.step_s[-50:]
        pace = sum(recent) / len(recent)
        loss = self.history.loss[-LOG_EVERY:]
        self.on_progress(
            Progress(
                lane=self.lane.name,
                step=self.lane.step,
                steps=self.lane.steps,
                loss=sum(loss) / len(loss),
                tokens_per_s=sum(self.meter.step_tokens[-len(recent) :]) / max(sum(recent), 1e-9),
                memory_bytes=self.meter.memory_bytes,
                left_s=pace * (self.lane.steps - self.lane.step),
            )
        )

    def _measurement(self) -> Measurement:
        measurement = self.meter.measurement()
        self.history.step_s, self.history.step_tokens = self.meter.step_s, self.meter.step_tokens
        return measurement

    def save(self) -> None:
        assert self.folder is not None
        state = {
            "moving_steps": self.lane.moving_steps,
            "loss": self.history.loss,
            "norm": self.history.norm,
            "learning_rate": self.history.learning_rate,
            "step_s": self.meter.step_s,
            "step_tokens": self.meter.step_tokens,
        }
        save_checkpoint(self.folder, self.lane.step, self.lane.state_tensors(), state)

    def _resume(self) -> int:
        path = latest_checkpoint(self.folder) if self.folder else None
        if path is None:
            return 0
        tensors, state = read_checkpoint(path)
        self.lane.load_state(tensors, state["step"], state["moving_steps"])
        self.history = History(loss=state["loss"], norm=state["norm"], learning_rate=state["learning_rate"])
        self.meter.step_s, self.meter.step_tokens = state["step_s"], state["step_tokens"]
        return int(state["step"])


@contextmanager
def _finish_step_on_interrupt() -> Iterator[list[int]]:
    """Within it the first Ctrl-C (or SIGTERM) only fills the list; a second one is a KeyboardInterrupt at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
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
