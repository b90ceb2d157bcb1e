"""The store's side of runs that train together: their folders, and what is written while they
do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.config.run import RunConfig
from tsugiki.runs.events import Events
from tsugiki.runs.record import Provenance, Scores
from tsugiki.runs.store import Run, RunBusy
from tsugiki.train.checkpoint import latest_checkpoint, read_state, step_of
from tsugiki.train.engine import PausedLane, is_end
from tsugiki.train.lane import Lane
from tsugiki.train.values import OnValues
from tsugiki.words import Message

if TYPE_CHECKING:
    from tsugiki.runs.reading import RunRecord
    from tsugiki.runs.shared import Shared

Opened = Callable[[RunConfig], tuple[Run, Provenance]]


class Handles:
    """Runs in the order of their configurations; each is locked by who made this. `opened` finds
    the folder of any other configuration of the group."""

    def __init__(self, configs: Sequence[RunConfig], opened: Opened):
        self.configs, self.opened = configs, opened
        self.runs = [opened(config)[0] for config in configs]
        self.begun_after = [0] * len(self.runs)
        """After how many of its own steps each goes on."""

    @property
    def checkpoints(self) -> list[Path]:
        return [run.checkpoints for run in self.runs]

    def start_runs(self, shared: Shared, lanes: Sequence[Lane], base_size: int) -> None:
        """Writes what is asked and planned, and says which runs go on from a checkpoint."""
        for number, (lane, config) in enumerate(zip(lanes, self.configs, strict=True)):
            run, provenance = self.opened(config)
            size = shared.method.plan(base_size, lane, config, run)
            sized = {name: getattr(size, name) for name in size.model_fields_set}
            run.start(config, provenance, shared.plan.model_copy(update=sized))
            kept = latest_checkpoint(run.checkpoints)
            if kept is not None and step_of(kept) < lane.steps:
                at = {"step": step_of(kept), "steps": lane.steps}
                shared.events.note(Message("note.resumed", lane=lane.name, **at))
            self.begun_after[number] = _own_steps(run, kept)
            if shared.events.on_begin is not None:
                shared.events.on_begin(_as(run, config), self.begun_after[number])

    def values(self, events: Events) -> OnValues | None:
        """Whom to tell of the lanes' own numbers: of steps that were not made before."""
        heard = events.on_values
        if heard is None:
            return None

        def tell(number: int, step: int, values: Mapping[str, float]) -> None:
            if step > self.begun_after[number]:
                heard(self.configs[number], step, values)

        return tell

    def ended(self, number: int, events: Events) -> None:
        """Says what is kept of a run that ended."""
        if events.on_end is not None:
            events.on_end(_as(self.runs[number], self.configs[number]))

    def all_at_their_end(self, lanes: Sequence[Lane]) -> bool:
        """Whether nothing is left to be trained."""
        return all(_at_its_end(lane, run) for lane, run in zip(lanes, self.runs, strict=True))

    def note_step(self, shared: Shared, step: str) -> None:
        """The steps to come are of this kind."""
        kind, lanes = shared.method.step_kind or step, len(self.runs)
        for run in self.runs:
            run.began(step=kind, lanes=lanes, exclusive=shared.exclusive)

    def watched(self, number: int, step: int, scores: Scores) -> None:
        self.runs[number].watched(step, scores)

    def hand_over(self, number: int, paused: PausedLane, config: RunConfig) -> None:
        """Writes the lane's checkpoint into the folder of a run that goes on from it, unless
        another process works on that."""
        run, provenance = self.opened(config)
        try:
            with run.lock():
                kept = latest_checkpoint(run.checkpoints)
                if run.unfinished and (kept is None or step_of(kept) < paused.lane.step):
                    run.hand_over(config, provenance, self.runs[number], paused.lane.step)
                    paused.save(run.checkpoints)
        except RunBusy:
            return


def _as(run: Run, config: RunConfig) -> RunRecord:
    """Its record under the labels of whoever asked."""
    return run.record().relabelled(config, {})


def _own_steps(run: Run, kept: Path | None) -> int:
    """How many steps it made already; those that a longer run made for it, nobody heard of under
    its name."""
    branch = run.outcome.branch
    if kept is None or (branch is not None and branch.steps == step_of(kept)):
        return 0
    return step_of(kept)


def _at_its_end(lane: Lane, run: Run) -> bool:
    kept = latest_checkpoint(run.checkpoints)
    return lane.done or (kept is not None and is_end(read_state(kept), lane))
