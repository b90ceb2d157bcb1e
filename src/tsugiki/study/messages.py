"""What a worker process of `--jobs` tells the study's own process: one JSON object a line, through
the pipe that stands where the worker's standard output was.

    worker         Events → Sender → pipe
    study's own    pipe → messages → pass_on → Events of that worker's line on the screen
"""

from __future__ import annotations

import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

from tsugiki.config.run import RunConfig
from tsugiki.runs.events import Events
from tsugiki.runs.reading import read_record
from tsugiki.train.engine import Progress
from tsugiki.words import Language, in_language

if TYPE_CHECKING:
    from tsugiki.runs.reading import RunRecord

OnCell = Callable[[str, Mapping[str, object]], None]
"""Who is told what is worked on now: a key of the words under [progress], and their values."""
OFTEN_S = 1.0  # a small model makes hundreds of steps a second, and nobody reads them all
WAIT_S = 1.0  # a wait without an end hears no Ctrl-C on Windows


def take_standard_output() -> int:
    """In a worker: the pipe that was its standard output. What libraries print from now on goes to
    standard error."""
    pipe = os.dup(1)
    os.dup2(2, 1)
    return pipe


class Sender:
    """In a worker: tells the process that started it, through a pipe's end to write to."""

    def __init__(self, pipe: int, language: Language = "en") -> None:
        self.pipe, self.language, self.sent_at = pipe, language, -math.inf
        self.events = Events(
            on_start=self._start,
            on_train=lambda now: self._send_progress("train", asdict(now)),
            on_score=lambda part, done, total: self._send_progress("score", [part, done, total]),
            on_note=self.note,
            on_end=self._end,
        )

    def note(self, text: str) -> None:
        self._send("note", in_language(self.language, text))

    def on_cell(self, key: str, values: Mapping[str, object]) -> None:
        self._send("cell", [key, dict(values)])

    def _start(self, configs: Sequence[RunConfig]) -> None:
        self._send("start", [_as_json(config) for config in configs])

    def _end(self, record: RunRecord) -> None:
        self._send("end", [str(record.folder), _as_json(record.config)])

    def _send_progress(self, kind: str, content: object) -> None:
        if time.monotonic() - self.sent_at >= OFTEN_S:
            self.sent_at = time.monotonic()
            self._send(kind, content)

    def _send(self, kind: str, content: object) -> None:
        line = json.dumps([kind, content]).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self.pipe, line) :]
        except OSError:
            # The process that listened has ended: `stop_with_parent` lets the step be finished.
            return


def messages(workers: Sequence[Popen[bytes]]) -> Iterator[tuple[int, bytes | None]]:
    """(a worker's number from 1, a line that it wrote) as they come, and None when one has ended;
    until all have. The pipes are emptied also when nobody asks any more, so that no worker
    waits."""
    heard: queue.SimpleQueue[tuple[int, bytes | None]] = queue.SimpleQueue()

    def listen(number: int, worker: Popen[bytes]) -> None:
        assert worker.stdout is not None, "it was started with a pipe"
        with worker.stdout as lines:
            for line in lines:
                heard.put((number, line))
        worker.wait()
        heard.put((number, None))

    for number, worker in enumerate(workers, start=1):
        threading.Thread(target=listen, args=(number, worker), daemon=True).start()
    live = len(workers)
    while live:
        try:
            number, line = heard.get(timeout=WAIT_S)
        except queue.Empty:
            continue
        live -= line is None
        yield number, line


def pass_on(line: bytes, events: Events, on_cell: OnCell) -> None:
    """Tells `events` and `on_cell` what a worker wrote. A line that its end cut short is none."""
    if not line.endswith(b"\n"):
        return
    kind, content = json.loads(line)
    _PASS_ON[kind](content, events, on_cell)


def _train(content: Any, events: Events, _: OnCell) -> None:
    if events.on_train:
        events.on_train(Progress(**content))


def _score(content: Any, events: Events, _: OnCell) -> None:
    if events.on_score:
        events.on_score(*content)


def _end(content: Any, events: Events, _: OnCell) -> None:
    if events.on_end:
        folder, config = content
        events.on_end(read_record(Path(folder)).relabelled(RunConfig.model_validate(config), {}))


_PASS_ON: dict[str, Callable[[Any, Events, OnCell], None]] = {
    "start": lambda content, events, _: events.start(
        [RunConfig.model_validate(config) for config in content]
    ),
    "train": _train,
    "score": _score,
    "note": lambda content, events, _: events.note(content),
    "end": _end,
    "cell": lambda content, _, on_cell: on_cell(*content),
}


def _as_json(config: RunConfig) -> object:
    return config.model_dump(mode="json", exclude_none=True)
