"""What every tracker shares: what is heard of a run becomes settings, numbers by step and an end in
one `Log` a run.

    settings      model.path, lora.rank, train.learning_rate, train.seed …
    train/        loss, gradient_norm, learning_rate: the lane's own, every tenth step
    sample/       scores of a sample of validation during training
    validation/ test/    each score, with _low and _high (95 %); answers by class
    cost/         step_s, tokens_per_s, peak_bytes, trainable parameters …

A tracker's file says where that goes. It has no word on when: `runs/events` calls it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Protocol

from tsugiki.config.run import RunConfig
from tsugiki.runs.events import Listener
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import Scores

Plain = str | int | float | bool
Settings = Mapping[str, Plain]
Numbers = Mapping[str, float]


class Log(Protocol):
    """One run of a tracker, open for writing."""

    def begin(self, settings: Settings) -> None: ...

    def numbers(self, values: Numbers, step: int) -> None: ...

    def end(self, status: str, reason: str, settings: Settings, values: Numbers) -> None:
        """Lets go of the run. `status`: done, failed, pruned; or stopped, by Ctrl-C or a fault: it
        may go on later."""


class Tracker(Listener):
    """A listener with one `Log` for each configuration; `open` says which."""

    def __init__(self) -> None:
        self.logs: dict[RunConfig, Log] = {}

    def open(self, record: RunRecord, after: int | None) -> Log:
        """The log of a run that begins, or goes on after so many steps; of one that had ended
        (None) to add to it."""
        raise NotImplementedError

    def on_begin(self, record: RunRecord, after: int) -> None:
        if record.config not in self.logs:  # else the second try of a round that did not fit
            self.logs[record.config] = self.open(record, after)
            self.logs[record.config].begin(settings_of(record))

    def on_values(self, config: RunConfig, step: int, values: Numbers) -> None:
        self.logs[config].numbers({f"train/{name}": value for name, value in values.items()}, step)

    def on_validation(self, config: RunConfig, step: int, scores: Scores) -> None:
        self.logs[config].numbers(scores_of(scores, "sample"), step)

    def on_end(self, record: RunRecord) -> None:
        log, scores = self.logs.pop(record.config), record.scores("validation")
        values = costs_of(record)
        if scores is not None:
            values |= scores_of(scores, "validation")
        log.numbers(values, record.outcome.steps or 0)
        log.end(record.status, record.outcome.reason, settings_of(record), values)

    def on_scored(self, record: RunRecord, part: str) -> None:
        values = scores_of(record.scored(part), part)
        log = self.open(record, None)
        log.numbers(values, record.outcome.steps or 0)
        log.end(record.status, record.outcome.reason, settings_of(record), values)

    def close(self) -> None:
        while self.logs:
            self.logs.popitem()[1].end("stopped", "", {}, {})


def key_of(record: RunRecord) -> str:
    """A run's name for a service that keeps runs of many folders: the same run in another folder is
    another one."""
    name = re.sub(r"[^\w-]", "-", record.folder.name, flags=re.ASCII)[-64:]
    return f"{name}-{_digest(record, '')}"


def study_key(record: RunRecord) -> str:
    """The same of the study that asked for it."""
    return f"study-{_digest(record, record.outcome.study or '')}"


def _digest(record: RunRecord, more: str) -> str:
    root = record.folder.parents[1].resolve()
    return hashlib.sha256(f"{root}\n{more}".encode()).hexdigest()[:8]


def settings_of(record: RunRecord) -> dict[str, Plain]:
    """What was asked, by dotted names; what is not set is left out."""
    flat: dict[str, Plain] = {}

    def add(given: Mapping[str, object], prefix: str) -> None:
        for name, value in given.items():
            if isinstance(value, Mapping):
                add(value, f"{prefix}{name}.")
            else:
                flat[prefix + name] = value if isinstance(value, Plain) else str(value)

    add(record.config.model_dump(mode="json", exclude_none=True), "")
    return flat


def scores_of(scores: Scores, prefix: str) -> dict[str, float]:
    """Each score with its interval, and how many answers there are of each class."""
    values: dict[str, float] = {}
    for score in scores.scores:
        name = f"{prefix}/{score.name}"
        values |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    return values | {f"{prefix}/answers/{name}": n for name, n in scores.failures.items()}


def costs_of(record: RunRecord) -> dict[str, float]:
    """What is known of its cost: seconds per step (of several lanes this one's share), tokens a
    second, the largest memory in bytes, parameters, bytes of the weights' file."""
    outcome, cost = record.outcome, record.outcome.cost
    known: dict[str, float | None] = {
        "trainable_parameters": outcome.trainable,
        "validation_loss": outcome.validation_loss,
        "weights_bytes": outcome.weights_bytes,
    }
    if cost is not None:
        known |= {
            "step_s": cost.step_s_median,
            "tokens_per_s": cost.tokens_per_s,
            "peak_device_bytes": cost.peak_allocated_bytes,
            "peak_process_bytes": cost.peak_process_bytes,
            "lanes": cost.lanes,
        }
    return {f"cost/{name}": float(value) for name, value in known.items() if value is not None}
