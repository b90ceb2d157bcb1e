"""A study on its way: what its stages share."""

from __future__ import annotations

from dataclasses import dataclass, field

from tsugiki.config.run import RunConfig
from tsugiki.errors import message_of, reason_of
from tsugiki.runs.elsewhere import Wanted
from tsugiki.runs.events import Events
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import Store
from tsugiki.study.cells import StudyResult
from tsugiki.study.executors import Executor
from tsugiki.study.left import Remaining
from tsugiki.study.messages import OnCell
from tsugiki.words import Message


@dataclass(kw_only=True)
class Way:
    """A study on its way: its result so far, the records by configuration, and who listens."""

    result: StudyResult
    store: Store
    events: Events
    executor: Executor
    on_cell: OnCell | None
    remaining: Remaining
    elsewhere: list[Wanted] = field(default_factory=list)
    known: dict[RunConfig, RunRecord] = field(default_factory=dict)

    def say(self, key: str, **values: object) -> None:
        self.remaining.begin()
        if self.on_cell:
            self.on_cell(key, values)

    def miss(self, label: str, broken: BaseException) -> None:
        """Something cannot be had: kept with its reason, said at once."""
        self.result.missing[label] = reason_of(broken)
        self.events.note(Message("error.at", where=label, reason=message_of(broken)))
