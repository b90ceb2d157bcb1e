"""The records of a store as a study asks for them: over today's rows, one set of weights a model.
No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tsugiki.config.run import ModelChoice, RunConfig, TaskChoice
from tsugiki.data.tasks import Task
from tsugiki.errors import TsugikiError
from tsugiki.model.folder import check_settings, checksum_of, resolve, weight_files
from tsugiki.model.width import known_width
from tsugiki.runs.identity import keys_of, made_from, recipe_of
from tsugiki.runs.reading import RunRecord, file_of
from tsugiki.runs.store import Store


class Kept:
    """The records of a store as the configurations of a study ask for them."""

    def __init__(self, store: Store, tasks: Mapping[TaskChoice, Task | None]):
        records, self.damaged = store.read()
        self.tasks = tasks
        self.weights: dict[str, str] = {}
        self.records: dict[RunConfig, list[RunRecord]] = {}
        self.newest_first = sorted(
            records, key=lambda record: -file_of(record.folder, "config.json").stat().st_mtime
        )
        self.age = {record.folder: index for index, record in enumerate(self.newest_first)}
        self.by_recipe: dict[str, list[RunRecord]] = {}
        self.by_words: dict[RunConfig, list[RunRecord]] = {}
        for record in self.newest_first:
            self.by_recipe.setdefault(record.provenance.recipe_sha256, []).append(record)
            self.by_words.setdefault(record.config, []).append(record)

    def of(self, config: RunConfig) -> list[RunRecord]:
        """All records of a configuration over today's rows, the newest first, whatever their
        model; with the scores that it asks for alone."""
        if config not in self.records:
            self.records[config] = self._of(config)
        return self.records[config]

    def _of(self, config: RunConfig) -> list[RunRecord]:
        task, same_words = self.tasks[config.task], self.by_words.get(config, [])
        if task is None:
            return same_words
        keys, recipe = keys_of(config, task), recipe_of(config, task)
        before = [record for record in same_words if not record.provenance.recipe_sha256]
        records = [
            *self.by_recipe.get(recipe, []),
            *(record for record in before if made_from(record, task)),
        ]
        records.sort(key=lambda record: self.age[record.folder])
        return [record.relabelled(config, keys) for record in records]

    def settle_weights(self, configs: Sequence[RunConfig]) -> None:
        """One set of weights for each model: that of the newest record of any configuration."""
        for model in {config.model: None for config in configs}:
            records = [
                record
                for config in configs
                if config.model == model
                for record in self.of(config)
                if record.known_as.path == model.path
            ]
            if records:
                newest = min(records, key=lambda record: self.age[record.folder])
                self.weights.setdefault(model.label, newest.provenance.model_sha256)
            elif (checksum := _checksum(model)) is not None:
                self.weights.setdefault(model.label, checksum)

    def width(self, model: ModelChoice) -> int | None:
        """How wide a model is, by its settings, or by its runs where it is not here any more."""
        if (there := known_width(model)) is not None:
            return there
        named = (each for each in self.newest_first if each.known_as.path == model.path)
        return next((each.provenance.width for each in named if each.provenance.width), None)

    def record(self, config: RunConfig) -> RunRecord | None:
        """The newest record of a configuration over its model's weights."""
        wanted = self.weights.get(config.model.label)
        there = (each for each in self.of(config) if each.provenance.model_sha256 == wanted)
        return next(there, None)


def _checksum(model: ModelChoice) -> str | None:
    """Of a model that no run names, but that may be there under another name or path."""
    if not Path(model.path).exists():
        return None
    try:
        folder = resolve(model)
        return checksum_of(weight_files(folder, check_settings(folder)))
    except (TsugikiError, OSError):
        return None
