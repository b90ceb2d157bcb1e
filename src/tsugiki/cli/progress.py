"""What a terminal shows: one line with the time left while something runs, and tables that fit it.
Plain text elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tsugiki.report.table import Table
from tsugiki.runs.events import Events
from tsugiki.words import Language, in_language, say

if TYPE_CHECKING:
    from rich.status import Status

    from tsugiki.study.left import Left

PLAIN_EVERY_S = 15.0


def is_drawn() -> bool:
    """Whether standard output is a terminal, or is to be written to as if it were one."""
    return sys.stdout.isatty() or "FORCE_COLOR" in os.environ


def show_tables(tables: Sequence[Table], language: Language = "en") -> None:
    """Prints tables: drawn to the width of a terminal, without what only a report has room for; or
    as Markdown into a pipe or file."""
    if not is_drawn():
        print("\n".join(table.in_words(language).to_markdown() for table in tables))
        return
    from rich.box import SIMPLE  # what only a terminal needs is not loaded for a pipe
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console = Console(highlight=False)
    for table in tables:
        words, brief = table.in_words(language), any(column.report_only for column in table.columns)
        kept = [index for index, column in enumerate(table.columns) if not column.report_only]
        drawn = Drawn(title=words.title, title_justify="left", title_style="bold", box=SIMPLE)
        for index in kept:
            drawn.add_column(words.header[index], overflow="fold")
        for row in words.rows:
            drawn.add_row(*(Text(row[index]) for index in kept))
        console.print(drawn)
        for note in () if brief else words.notes:
            console.print(Text(note, style="dim"))


class Display:
    """A live status line on a terminal; elsewhere a plain line every quarter of a minute.

    `what` is begun with: said at once, since loading torch takes seconds.
    """

    def __init__(self, language: Language = "en", what: str = "") -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.status: Status | None = None
        self.head = say(language, "progress.starting", what=what) if what else ""
        self.language = language
        self.printed_at = 0.0
        self.left: Callable[[], Left | None] = lambda: None
        self.drawn: dict[int, str] = {}
        self.events = Events(
            on_train=self._on_train, on_score=self._on_score, on_note=self._on_note
        )

    def __enter__(self) -> Self:
        self._open()
        self.head = ""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _open(self) -> None:
        if self.console.is_terminal:
            self.status = self.console.status(self.head.replace("[", r"\["))
            self.status.start()
        elif self.head:
            self._print(self.head)

    def _close(self) -> None:
        if self.status:
            self.status.stop()

    def on_cell(self, key: str, values: Mapping[str, object]) -> None:
        """New work begins: what the coming lines are about."""
        self.head = say(self.language, f"progress.{key}", **values)
        self.printed_at = 0.0
        self._show("")

    def worker(self, number: int) -> WorkerLine:
        """The line of a worker process, by its number from 1: it is shown until it is closed."""
        return WorkerLine(self, number)

    def on_left(self, left: Callable[[], Left | None]) -> None:
        """Where to ask how long the rest of a study takes."""
        self.left = left

    def _on_train(self, now: Any) -> None:
        text = say(
            self.language,
            "progress.train",
            step=now.step,
            steps=now.steps,
            loss=now.loss,
            tokens_per_s=now.tokens_per_s,
            memory=f"{now.memory_bytes / 2**30:.1f}",
            left=_clock(now.left_s),
        )
        self._show(text)

    def _on_score(self, part: str, done: int, total: int) -> None:
        part = say(self.language, f"progress.{part}_part")
        self._show(say(self.language, "progress.answers", part=part, done=done, total=total))

    def _on_note(self, text: str) -> None:
        self._print(in_language(self.language, text))

    def _show(self, text: str) -> None:
        line = f"{self.head} {text}".strip()
        if self.status:
            self.draw(0, line)
        elif time.monotonic() - self.printed_at > PLAIN_EVERY_S:
            self.printed_at = time.monotonic()
            self._print(self._with_left(line))

    def draw(self, number: int, line: str) -> None:
        """Draws the status line of this process (number 0), or of a worker among the others'."""
        self.drawn[number] = line
        if number:
            self.drawn.pop(0, None)  # workers are waited for
        if self.status:
            lines = "\n".join(own for _, own in sorted(self.drawn.items()))
            self.status.update(self._with_left(lines).replace("[", r"\["))

    def _with_left(self, text: str) -> str:
        return " · ".join(part for part in (text, self._left_in_all()) if part)

    def _left_in_all(self) -> str:
        """Of a study whose pace is known; else nothing."""
        left = self.left()
        if left is None:
            return ""
        if left.seconds < 60:  # “at least a minute” would say nothing
            return say(self.language, "progress.in_all_soon") if left.whole else ""
        key = "in_all" if left.whole else "in_all_at_least"
        return say(self.language, f"progress.{key}", left=duration(left.seconds, self.language))

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


class WorkerLine(Display):
    """What one of several workers does, shown where `whole` is."""

    def __init__(self, whole: Display, number: int) -> None:
        super().__init__(whole.language)
        self.whole, self.number = whole, number
        self.console, self.left = whole.console, whole.left

    def _show(self, text: str) -> None:
        if self.whole.status:
            self.whole.draw(self.number, f"{self.head} {text}".strip())
        else:
            super()._show(text)

    def close(self) -> None:
        """It has ended."""
        self.whole.drawn.pop(self.number, None)


def duration(seconds: float, language: Language) -> str:
    """`1 min`, `12 min`, `2 h 5 min`: as exact as what is foretold may be."""
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return say(language, "progress.minutes", minutes=minutes)
    return say(language, "progress.hours", hours=minutes // 60, minutes=minutes % 60)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
