"""The same row, or the same text, answered by several runs and by the base beneath them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tsugiki.data.prompts import render
from tsugiki.data.tasks import Task, unanswered
from tsugiki.errors import ConfigError
from tsugiki.model.loading import Base, find_base, load_base
from tsugiki.model.lora import lora_layers, switched_off
from tsugiki.runs.methods import short_name
from tsugiki.runs.new_rows import Answerer, unchanged_task
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.use import texts_of

BASE = "base"
MOST_NEW = 200  # tokens of an answer to free text
MOST_CHARACTERS = 20_000


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one of them answers: its failure class (empty: none), and how likely each candidate is,
    as shares of their sum."""

    name: str
    text: str
    failure: str = ""
    shares: tuple[tuple[str, float], ...] = ()


class SideBySide:
    """Runs of one task over one model, each loaded once, and the untouched base."""

    def __init__(self, records: Sequence[RunRecord]):
        """Raises `ConfigError` for runs of several tasks or models."""
        tasks = {record.folder: unchanged_task(record) for record in records}
        for what, kinds in (
            ("tasks", {record.provenance.task_sha256 for record in records}),
            ("models", {record.provenance.model_sha256 for record in records}),
        ):
            if len(kinds) > 1:
                raise ConfigError(f"these runs are of {len(kinds)} {what}: name runs of one")
        self.records = list(records)
        self.task: Task = next(iter(tasks.values()))
        self.answerers = {_name(record): Answerer(record, self.task) for record in records}
        if len(self.answerers) < len(records):
            raise ConfigError("a run is named twice")
        self.base = self._base()

    @property
    def names(self) -> list[str]:
        return [BASE, *self.answerers]

    def row(self, fields: Mapping[str, str]) -> tuple[str, list[Said]]:
        """The prompt of a row of the task, and what each of them answers."""
        lengths = sum(map(len, fields.values()))
        if lengths > MOST_CHARACTERS:
            raise ConfigError(f"{lengths:,} characters; at most {MOST_CHARACTERS:,}")
        [example] = unanswered(self.task.spec, [(1, dict(fields))], "the form")
        return render(self.task.template, example), [
            self._said(name, fields) for name in self.names
        ]

    def text(self, prompt: str) -> list[Said]:
        """What each of them writes after a text as it is."""
        if not prompt.strip() or len(prompt) > MOST_CHARACTERS:
            raise ConfigError(f"a text of 1 to {MOST_CHARACTERS:,} characters is needed")
        said = []
        for name in self.names:
            answerer = self._answerer(name)
            with self._as_base(name):
                new = min(MOST_NEW, answerer.base.max_positions // 2)
                [answer] = texts_of(answerer.base, self.records[0], [prompt], new)
            said.append(Said(name=name, text=answer))
        return said

    def _said(self, name: str, fields: Mapping[str, str]) -> Said:
        answerer = self._answerer(name)
        tokens, left_out = answerer.tokens([(1, dict(fields))], "the form")
        if left_out:
            raise ConfigError("the prompt does not fit into the run's length")
        with self._as_base(name):
            [answer] = answerer.answers(tokens)
        labels = tokens[0].example.candidates
        return Said(
            name=name,
            text=answer.prediction or "",
            failure=answer.failure,
            shares=tuple(zip(labels, _shares(answer.log_p), strict=False)),
        )

    def _answerer(self, name: str) -> Answerer:
        return self.base if name == BASE else self.answerers[name]

    def _as_base(self, name: str) -> AbstractContextManager[None]:
        return switched_off(self.base.base.model) if name == BASE else nullcontext()

    def _base(self) -> Answerer:
        """A LoRA run's model serves, its adapters switched off; else the base is loaded."""
        for answerer in self.answerers.values():
            if lora_layers(answerer.base.model):
                return answerer
        config = self.records[0].config
        loaded: Base = load_base(find_base(config.model, "base", config.train.precision))
        return Answerer(self.records[0], self.task, loaded)


def _name(record: RunRecord) -> str:
    """What a column is called: the method, and the run's digits."""
    return f"{short_name(record.config)} {record.folder.name.rpartition('-')[2][:6]}"


def _shares(log_p: Sequence[float]) -> list[float]:
    """Likelihoods as shares of their sum."""
    most = max(log_p, default=0.0)
    weights = [math.exp(each - most) for each in log_p]
    return [weight / sum(weights) for weight in weights]
