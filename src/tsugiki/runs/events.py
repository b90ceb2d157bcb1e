"""Who wants to hear of a run's progress: the terminal, a notebook, a tracker, a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from tsugiki.config.run import RunConfig
from tsugiki.errors import reason_of
from tsugiki.words import Message

if TYPE_CHECKING:
    from tsugiki.runs.reading import RunRecord
    from tsugiki.runs.record import Scores
    from tsugiki.train.engine import Progress

Say = Callable[[str], None]


class Listener:
    """Hears of runs while they go; overwrite what you need, everything else does nothing.

    Nothing here waits for the device: losses and norms come to the host every tenth step anyway.
    A listener that raises an `Exception` is said once and hears nothing more; the run goes on. To
    end a run from a listener, raise `KeyboardInterrupt`.
    """

    def on_start(self, configs: Sequence[RunConfig]) -> None:
        """These runs train together from now on."""

    def on_begin(self, record: RunRecord, after: int) -> None:
        """A run begins, or goes on after so many of its steps (0: from the start). `record` says
        what is asked, where its folder is and which study asked for it."""

    def on_train(self, progress: Progress) -> None:
        """Where training is, of all lanes together: a step, tokens a second, seconds left."""

    def on_values(self, config: RunConfig, step: int, values: Mapping[str, float]) -> None:
        """A lane's own `loss` (mean nats a target token of that step's rows), `gradient_norm`
        (before clipping) and `learning_rate`, at every tenth of its steps and its last."""

    def on_validation(self, config: RunConfig, step: int, scores: Scores) -> None:
        """What a sample of validation scored after so many steps (`score.validations`)."""

    def on_score(self, part: str, done: int, total: int) -> None:
        """So many answers to a part are written."""

    def on_end(self, record: RunRecord) -> None:
        """A run ended, and this is kept of it: done with scores on validation, failed or pruned
        with a reason. Not called for a run that was finished before and is only read."""

    def on_scored(self, record: RunRecord, part: str) -> None:
        """A run that had ended was scored on another part (test, of what a study chose)."""

    def on_note(self, text: str) -> None:
        """A remark worth keeping."""

    def close(self) -> None:
        """Nothing more comes, however it ended."""


@dataclass(frozen=True, kw_only=True)
class Events:
    """What is called when something happens, by the names of `Listener`; None where nobody
    listens. Losses stay on the device until every tenth step, so `on_train` and `on_values` hear of
    those steps alone.
    """

    on_train: Callable[[Progress], None] | None = None
    on_score: Callable[[str, int, int], None] | None = None
    on_note: Callable[[str], None] | None = None
    on_start: Callable[[Sequence[RunConfig]], None] | None = None
    on_begin: Callable[[RunRecord, int], None] | None = None
    on_values: Callable[[RunConfig, int, Mapping[str, float]], None] | None = None
    on_validation: Callable[[RunConfig, int, Scores], None] | None = None
    on_end: Callable[[RunRecord], None] | None = None
    on_scored: Callable[[RunRecord, str], None] | None = None

    def start(self, configs: Sequence[RunConfig]) -> None:
        if self.on_start:
            self.on_start(configs)

    def note(self, text: str) -> None:
        if self.on_note:
            self.on_note(text)

    def validation(self, config: RunConfig, step: int, scores: Scores) -> None:
        if self.on_validation:
            self.on_validation(config, step, scores)

    def answers(self, part: str) -> Callable[[int, int], None] | None:
        """Whom to tell how many answers to a part are written; None where nobody listens."""
        heard = self.on_score
        return None if heard is None else lambda done, total: heard(part, done, total)


SILENT = Events()
HEARD = tuple(field.name for field in fields(Events))


class Guarded:
    """A listener whose faults end nothing: the first is said, and it hears nothing more."""

    def __init__(self, listener: object, say: Say):
        self.listener, self.say, self.failed = listener, say, False

    def call(self, name: str, *values: object) -> None:
        heard = getattr(self.listener, name, None)
        if heard is None or (self.failed and name != "close"):  # files are let go of all the same
            return
        try:
            heard(*values)
        except Exception as broken:
            if not self.failed:
                name = type(self.listener).__name__
                said = Message("note.listener_failed", listener=name, reason=reason_of(broken))
                self.say(said)
            self.failed = True


def joined(events: Events, listeners: Sequence[Guarded]) -> Events:
    """One `Events` that tells `events` first and then every listener (a `Listener`, an `Events`, or
    any object with some of their methods)."""
    if not listeners:
        return events

    def tell(name: str) -> Callable[..., None] | None:
        first = getattr(events, name)
        some = [own for own in listeners if getattr(own.listener, name, None) is not None]
        if not some:
            return first  # type: ignore[no-any-return]

        def call(*values: object) -> None:
            if first is not None:
                first(*values)
            for own in some:
                own.call(name, *values)

        return call

    return Events(**{name: tell(name) for name in HEARD})


@contextmanager
def listening(events: Events, listeners: Sequence[object], say: Say) -> Iterator[Events]:
    """`events` and the listeners as one, until nothing more comes: then each is closed. `say` is
    told which listener failed, and why."""
    guarded = [Guarded(listener, say) for listener in listeners]
    try:
        yield joined(events, guarded)
    finally:
        for own in guarded:
            own.call("close")
