"""Ctrl-C while steps run: the running one is finished first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def finish_step_on_interrupt() -> Iterator[list[int]]:
    """Within it the first Ctrl-C (or SIGTERM) only fills the list; the same one again is a
    KeyboardInterrupt at once. (A worker may get both for one Ctrl-C: from the terminal, and from
    the process that started it.)"""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if number in received:
            raise KeyboardInterrupt
        received.append(number)

    signals = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C; what a batch system sends before it kills
    try:
        before = [signal.signal(number, receive) for number in signals]
    except ValueError:  # not the main thread: signals do not reach us
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
