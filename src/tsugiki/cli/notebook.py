"""What `tsugiki.run` and `tsugiki.run_study` show while they work: in a notebook one line that is
updated where it stands, on a terminal what the command line shows, nothing elsewhere."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from tsugiki.cli.progress import Display
from tsugiki.runs.events import SILENT, Events, listening
from tsugiki.trackers.known import listeners_of
from tsugiki.words import Language, in_language

if TYPE_CHECKING:
    from tsugiki.study.left import Left

UPDATE_EVERY_S = 0.2  # a front end that draws every tenth step of a small model does nothing else


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What is told while something runs: of runs, and of a study's configurations."""

    events: Events
    on_cell: Callable[[str, Mapping[str, object]], None] | None = None
    on_left: Callable[[Callable[[], Left | None]], None] | None = None


@contextmanager
def display_of(
    what: str, progress: bool, language: Language, listeners: Sequence[object]
) -> Iterator[Shown]:
    """What fits where this runs, and the listeners beside it; `what` is begun with.

    Raises:
        ConfigError: a tracker by name cannot be used.
    """
    trackers = listeners_of(listeners)  # refused before anything is shown
    if not progress or not (in_notebook() or sys.stderr.isatty()):
        with listening(SILENT, trackers, warnings.warn) as events:
            yield Shown(events=events)
        return
    shown = (NotebookDisplay if in_notebook() else Display)(language, what)
    with shown, listening(shown.events, trackers, shown.events.note) as events:
        yield Shown(events=events, on_cell=shown.on_cell, on_left=shown.on_left)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this (Colab's too): IPython on a terminal has none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class Line:
    """One line as front ends show it: HTML, or text where there is none."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<div>{escape(self.text)}</div>"


class NotebookDisplay(Display):
    """The line of `Display`, in an output cell; remarks stand above it."""

    def __init__(self, language: Language = "en", what: str = "") -> None:
        super().__init__(language, what)
        self.line: Any = None
        self.updated_at = 0.0

    def _open(self) -> None:
        from IPython.display import display

        self.line = display(Line(self.head), display_id=True)

    def _close(self) -> None:
        if self.line is not None:
            self.line.update(Line(""))

    def _on_note(self, text: str) -> None:
        print(in_language(self.language, text))

    def _show(self, text: str) -> None:
        now = time.monotonic()
        if self.line is not None and now - self.updated_at >= UPDATE_EVERY_S:
            self.updated_at = now
            self.line.update(Line(f"{self.head} {text}".strip()))
