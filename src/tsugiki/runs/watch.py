"""Looks at runs while they train: scores a sample of validation, ends the lower half, hands
checkpoints over to the runs that go on from them."""

from __future__ import annotations

from collections.abc import Sequence

from tsugiki.config.run import RunConfig
from tsugiki.runs.halving import end_the_lower_half, rungs, why_not
from tsugiki.runs.handles import Handles
from tsugiki.runs.scoring import unkeyed
from tsugiki.runs.shared import Shared, Step
from tsugiki.train.engine import PausedLane
from tsugiki.train.lane import Lane
from tsugiki.words import Message


def watch_steps(steps: int, times: int) -> list[int]:
    """The steps after which validation is looked at: `times` of them, evenly spread; the last step
    is scored in full anyway."""
    spread = {round(steps * number / (times + 1)) for number in range(1, times + 1)}
    return sorted(spread - {0, steps})


class Watch:
    """Called by the engine after each step that is among a lane's `callback_steps`."""

    def __init__(
        self,
        shared: Shared,
        configs: Sequence[RunConfig],
        lanes: Sequence[Lane],
        handles: Handles,
        step: Step,
    ):
        self.shared, self.configs, self.handles, self.step = shared, configs, handles, step
        self.number = {lane: number for number, lane in enumerate(lanes)}
        for lane, config in zip(lanes, configs, strict=True):
            handed = shared.branches.steps(config)
            lane.callback_steps = frozenset([*self._scored(lane), *handed])
        why = why_not(len(lanes), [lane.steps for lane in lanes]) if shared.prune else None
        if why is not None:
            shared.events.note(Message("note.not_pruned", lane=lanes[0].name, why=why))

    def _scored(self, lane: Lane) -> list[int]:
        """After which steps of a lane the sample is scored."""
        return [*watch_steps(lane.steps, self._config(lane).score.validations), *self._rungs(lane)]

    def _rungs(self, lane: Lane) -> list[int]:
        return rungs(lane.steps) if self.shared.prune else []

    def _config(self, lane: Lane) -> RunConfig:
        return self.configs[self.number[lane]]

    def __call__(self, paused_lanes: Sequence[PausedLane]) -> None:
        for paused in paused_lanes:
            for config in self.shared.branches.at(self._config(paused.lane), paused.lane.step):
                self.handles.hand_over(self.number[paused.lane], paused, config)
        due = [paused for paused in paused_lanes if paused.lane.step in self._scored(paused.lane)]
        if not due:
            return
        shared, numbers = self.shared, [self.number[paused.lane] for paused in due]
        with self.step.paused():
            score = self._config(due[0].lane).score
            evaluations = shared.method.answering.evaluate(
                shared.base, shared.task.spec, "validation", shared.watched, score, lanes=numbers
            )
            seen = list(zip(due, evaluations, strict=True))
        for paused, evaluation in seen:
            number, scores = self.number[paused.lane], unkeyed(evaluation)
            self.handles.watched(number, paused.lane.step, scores)
            shared.events.validation(self.configs[number], paused.lane.step, scores)
        end_the_lower_half(
            [
                (paused, evaluation)
                for paused, evaluation in seen
                if paused.lane.step in self._rungs(paused.lane)
            ]
        )
