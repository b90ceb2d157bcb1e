"""Who wants to hear of a run's progress: the terminal, a notebook, a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsugiki.config.run import RunConfig

if TYPE_CHECKING:
    from tsugiki.train.engine import Progress


@dataclass(frozen=True, kw_only=True)
class Events:
    """What is called when something happens. Losses stay on the device until every tenth step, so
    `on_train` hears of those steps alone.

    `on_start`: runs that start (together). `on_train`: where training is. `on_score`: (part,
    answers so far, of how many). `on_note`: a remark worth keeping.
    """

    on_train: Callable[[Progress], None] | None = None
    on_score: Callable[[str, int, int], None] | None = None
    on_note: Callable[[str], None] | None = None
    on_start: Callable[[Sequence[RunConfig]], None] | None = None

    def start(self, configs: Sequence[RunConfig]) -> None:
        if self.on_start:
            self.on_start(configs)

    def note(self, text: str) -> None:
        if self.on_note:
            self.on_note(text)

    def answers(self, part: str) -> Callable[[int, int], None] | None:
        """Whom to tell how many answers to a part are written; None where nobody listens."""
        heard = self.on_score
        return None if heard is None else lambda done, total: heard(part, done, total)


SILENT = Events()
