"""Tells of each lane's own numbers, at every tenth of its steps and its last: for whoever draws
curves while it trains. No torch here: they were fetched before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tsugiki.train.history import History

OnValues = Callable[[int, int, Mapping[str, float]], None]
"""Called with a lane's number, its step, and that step's loss, gradient norm and rate."""


class TellValues:
    """Tells what is new in the lanes' histories. A lane that goes on from a checkpoint is told from
    its first step: what of that was told before, only the listener knows."""

    def __init__(self, lanes: int, every: int, on_values: OnValues | None):
        self.every, self.on_values = every, on_values
        self.until = [0] * lanes

    def __call__(self, lanes: Sequence[tuple[History, bool]]) -> None:
        """`lanes`: the history of each, as far as it was fetched, and whether it ended."""
        if self.on_values is None:
            return
        for number, (history, ended) in enumerate(lanes):
            last = len(history.loss)
            for step in range(self.until[number] + 1, last + 1):
                if step % self.every == 0 or (ended and step == last):
                    self.on_values(number, step, _values(history, step))
            self.until[number] = last


def _values(history: History, step: int) -> dict[str, float]:
    at = step - 1
    return {
        "loss": history.loss[at],
        "gradient_norm": history.norm[at],
        "learning_rate": history.learning_rate[at],
    }
