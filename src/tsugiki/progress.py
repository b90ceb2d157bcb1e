"""What a terminal shows while something runs: one line, with the time left. Plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.status import Status

from tsugiki.study.cells import Cell
from tsugiki.study.run import Listener

PLAIN_EVERY_S = 15.0


class Display:
    """A live status line on a terminal; elsewhere a plain line every quarter of a minute."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.status: Status | None = None
        self.head = ""
        self.told = 0.0
        self.listener = Listener(on_train=self._on_train, on_score=self._on_score)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.status = self.console.status("starting …")
            self.status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.status:
            self.status.stop()

    def on_cell(self, number: int, total: int, cell: Cell) -> None:
        self.head = f"[{number + 1}/{total}] {cell.label}"
        self.told = 0.0
        self._show("")

    def _on_train(self, now: Any) -> None:
        memory = f"{now.memory_bytes / 2**30:.1f} GiB"
        self._show(f"step {now.step}/{now.steps} loss {now.loss:.3f} {now.tokens_per_s:,.0f} tokens/s {memory} {_clock(now.left_s)} left")

    def _on_score(self, part: str, done: int, total: int) -> None:
        self._show(f"answers on {part} {done}/{total}")

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
