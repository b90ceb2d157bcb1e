"""Successive halving: the lower half of the runs that train together ends early.

Source: Jamieson & Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization".
"""

from __future__ import annotations

from collections.abc import Sequence

from tsugiki.score.evaluate import Evaluation
from tsugiki.train.engine import PausedLane
from tsugiki.words import Message

FEWEST_STEPS = 8


def rungs(steps: int) -> list[int]:
    """The steps after which the lower half ends; none for a run too short to tell."""
    return [steps // 4, steps // 2] if steps >= FEWEST_STEPS else []


def end_the_lower_half(rivals: Sequence[tuple[PausedLane, Evaluation]]) -> None:
    """Of an odd number the larger half goes on."""
    ranked = sorted(rivals, key=lambda rival: -rival[1].main.value)
    for paused, _ in ranked[-(-len(ranked) // 2) :]:
        paused.prune()


def why_not(lanes: int, steps: Sequence[int]) -> str | None:
    """Why nothing is pruned here, or None."""
    if lanes == 1:
        return Message("note.no_rivals")
    return None if any(rungs(number) for number in steps) else Message("note.few_steps")
