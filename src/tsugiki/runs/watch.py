"""Looks at runs while they train: scores a sample of validation, ends the lower half, hands
checkpoints over to the runs that go on from them."""

from __future__ import annotations

from collections.abc import Sequence

from tsugiki.config.run import RunConfig
from tsugiki.runs.halving import end_the_lower_half, rungs, why_not
from tsugiki.runs.handles import Handles
from tsugiki.runs.scoring import unkeyed
from tsugiki.runs.shared import Shared, Step
from tsugiki.score.evaluate import evaluate_lanes
from tsugiki.train.engine import Visit
from tsugiki.train.lane import Lane


def watch_steps(steps: int, times: int) -> list[int]:
    """The steps after which validation is looked at: `times` of them, evenly spread; the last step
    is scored in full anyway."""
    spread = {round(steps * number / (times + 1)) for number in range(1, times + 1)}
    return sorted(spread - {0, steps})


class Watch:
    """Called by the engine after each step that is among a lane's `visits`."""

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
            lane.visits = frozenset([*self._scored(lane), *handed])
        why = why_not(len(lanes), [lane.steps for lane in lanes]) if shared.prune else None
        if why is not None:
            shared.events.note(f"{lanes[0].name}: nothing is pruned here: {why}")

    def _scored(self, lane: Lane) -> list[int]:
        """After which steps of a lane the sample is scored."""
        return [*watch_steps(lane.steps, self._config(lane).score.during), *self._rungs(lane)]

    def _rungs(self, lane: Lane) -> list[int]:
        return rungs(lane.steps) if self.shared.prune else []

    def _config(self, lane: Lane) -> RunConfig:
        return self.configs[self.number[lane]]

    def __call__(self, visits: Sequence[Visit]) -> None:
        for visit in visits:
            for config in self.shared.branches.at(self._config(visit.lane), visit.lane.step):
                self.handles.hand_over(self.number[visit.lane], visit, config)
        due = [visit for visit in visits if visit.lane.step in self._scored(visit.lane)]
        if not due:
            return
        shared, numbers = self.shared, [self.number[visit.lane] for visit in due]
        with self.step.paused():
            score = self._config(due[0].lane).score
            found = evaluate_lanes(
                shared.base, shared.task.spec, "validation", shared.watched, score, lanes=numbers
            )
            seen = list(zip(due, found, strict=True))
        for visit, evaluation in seen:
            self.handles.watched(self.number[visit.lane], visit.lane.step, unkeyed(evaluation))
        end_the_lower_half(
            [(visit, found) for visit, found in seen if visit.lane.step in self._rungs(visit.lane)]
        )
