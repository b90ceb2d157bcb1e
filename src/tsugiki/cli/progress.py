"""What a terminal shows: one line with the time left while something runs, and tables that fit it.
Plain text elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tsugiki.report.table import Table
from tsugiki.report.words import Language
from tsugiki.runs.events import Events

if TYPE_CHECKING:
    from rich.status import Status

PLAIN_EVERY_S = 15.0


def show_tables(tables: Sequence[Table], language: Language = "en") -> None:
    """Prints tables: drawn to the width of a terminal, without what only a report has room for; or
    as Markdown into a pipe or file."""
    if not sys.stdout.isatty() and "FORCE_COLOR" not in os.environ:
        print("\n".join(table.in_words(language).to_markdown() for table in tables))
        return
    from rich.box import SIMPLE  # what only a terminal needs is not loaded for a pipe
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console = Console(highlight=False)
    for table in tables:
        words, brief = table.in_words(language), any(one.report_only for one in table.columns)
        kept = [place for place, one in enumerate(table.columns) if not one.report_only]
        drawn = Drawn(title=words.title, title_justify="left", title_style="bold", box=SIMPLE)
        for place in kept:
            drawn.add_column(words.header[place], overflow="fold")
        for row in words.rows:
            drawn.add_row(*(Text(row[place]) for place in kept))
        console.print(drawn)
        for note in () if brief else words.notes:
            console.print(Text(note, style="dim"))


class Display:
    """A live status line on a terminal; elsewhere a plain line every quarter of a minute."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.status: Status | None = None
        self.head = ""
        self.told = 0.0
        self.events = Events(
            on_train=self._on_train, on_score=self._on_score, on_note=self._on_note
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.status = self.console.status("starting …")
            self.status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.status:
            self.status.stop()

    def on_cell(self, text: str) -> None:
        """A new piece of work begins: what the coming lines are about."""
        self.head = text
        self.told = 0.0
        self._show("")

    def _on_train(self, now: Any) -> None:
        memory = f"{now.memory_bytes / 2**30:.1f} GiB"
        self._show(
            f"step {now.step}/{now.steps} loss {now.loss:.3f} {now.tokens_per_s:,.0f} tokens/s "
            f"{memory} {_clock(now.left_s)} left"
        )

    def _on_score(self, part: str, done: int, total: int) -> None:
        self._show(f"answers on {part} {done}/{total}")

    def _on_note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _show(self, text: str) -> None:
        line = f"{self.head} {text}".strip()
        if self.status:
            self.status.update(line.replace("[", r"\["))
        elif time.monotonic() - self.told > PLAIN_EVERY_S:
            self.told = time.monotonic()
            self.console.print(line, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
