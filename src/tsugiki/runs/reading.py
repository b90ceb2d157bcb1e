"""Reads run folders: those of today and those that earlier versions wrote
(`config/old_spellings`). No torch here.

A file that is damaged, or of a later version, is one line (`RunError`) and concerns its run alone.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from tsugiki.config.fields import Record
from tsugiki.config.old_spellings import FILES, KEYS, OldSpelling
from tsugiki.config.run import ModelChoice, RunConfig
from tsugiki.errors import RunError, first_line
from tsugiki.runs.record import (
    FORMAT,
    Answer,
    Outcome,
    Provenance,
    ScoreKey,
    Scores,
    Status,
    Validation,
)
from tsugiki.toml import parse
from tsugiki.train.cost import Cost
from tsugiki.train.history import History
from tsugiki.words import Message

T = TypeVar("T", bound=Record)
Json = dict[str, object]
_VALIDATIONS = TypeAdapter(tuple[Validation, ...])
_HISTORY = TypeAdapter(History)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as it stands on disk. With `wanted`, only those scores count that depend on what is
    wanted (another study may have scored the same run on other rows)."""

    folder: Path
    config: RunConfig
    provenance: Provenance
    outcome: Outcome
    wanted: Mapping[str, ScoreKey] = field(default_factory=dict)
    made_as: ModelChoice | None = None

    def relabelled(self, config: RunConfig, wanted: Mapping[str, ScoreKey]) -> RunRecord:
        """The same record under the labels of whoever asks, with the scores that they want
        alone."""
        return replace(self, config=config, wanted=wanted, made_as=self.known_as)

    @property
    def known_as(self) -> ModelChoice:
        """The model under the name and path that the run was made with."""
        return self.made_as or self.config.model

    @property
    def status(self) -> Status:
        return self.outcome.status

    def scores(self, part: str) -> Scores | None:
        """The latest scores of a part, of those that count."""
        wanted = self.wanted.get(part)
        for scores in reversed(self.outcome.scores):
            same = wanted is None or scores.key is None or scores.key.digest == wanted.digest
            if scores.part == part and same:
                return scores
        return None

    def scored(self, part: str) -> Scores:
        """The scores of a part that is known to be scored."""
        scores = self.scores(part)
        assert scores is not None, f"{self.folder}: {part} was not scored"
        return scores

    def main_score(self, part: str) -> float | None:
        """The score that chooses, None when this part was not scored."""
        scores = self.scores(part)
        return None if scores is None else scores.main.value

    def cost(self) -> Cost:
        """What it cost; of a run that has none, nothing known."""
        return self.outcome.cost or Cost(device=self.provenance.device, num_steps=0)

    @cached_property
    def validations(self) -> tuple[Validation, ...]:
        """Scores of a sample of validation during training, step by step."""
        return read_validations(self.folder)

    @cached_property
    def losses(self) -> list[float]:
        """Mean loss per target token, step by step."""
        return read_history(self.folder).loss

    def answers(self, part: str) -> list[Answer]:
        """The kept answers of a part that was scored, in the order of its rows."""
        return read_answers(self.folder / self.scored(part).file)


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("config.json", FILES["config.json"]))


def file_of(folder: Path, name: str) -> Path:
    """The file of that name, or the one that earlier versions wrote."""
    path, old = folder / name, folder / FILES.get(name, name)
    return old if old.exists() and not path.exists() else path


def read_record(folder: Path) -> RunRecord:
    """Reads a run folder. Raises `RunError` naming the file that is missing or damaged."""
    if not is_run(folder):
        what = "error.not_a_run" if folder.exists() else "error.no_run_folder"
        raise RunError(Message(what, folder=folder))
    path = file_of(folder, "config.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OldSpelling)  # nobody can change what a run has kept
        config = parse(RunConfig, _object(path), str(path))
    provenance = _validated(Provenance, file_of(folder, "provenance.json"))
    return RunRecord(
        folder=folder, config=config, provenance=provenance, outcome=read_outcome(folder)
    )


def read_outcome(folder: Path) -> Outcome:
    """What came of a run so far; of one that only began, the empty outcome."""
    path = file_of(folder, "outcome.json")
    if not path.exists():
        return Outcome()
    return _validated(Outcome, path)


def read_validations(folder: Path) -> tuple[Validation, ...]:
    path = file_of(folder, "validations.json")
    if not path.exists():
        return ()
    content = _json(path)
    if path.name == FILES["validations.json"] and isinstance(content, list):
        content = [
            {"step": entry.get("step"), "scores": _known(Scores, entry)}
            for entry in content
            if isinstance(entry, dict)
        ]
    try:
        return _VALIDATIONS.validate_python(content)
    except ValidationError as broken:
        raise _damaged(path, broken) from None


def read_history(folder: Path) -> History:
    path = folder / "history.json"
    if not path.exists():
        return History()
    try:
        return _HISTORY.validate_python(_object(path))
    except ValidationError as broken:
        raise _damaged(path, broken) from None


def read_answers(path: Path) -> list[Answer]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Answer.model_validate_json(line) for line in lines]
    except (OSError, ValueError) as broken:
        raise _damaged(path, broken) from None


def _validated(schema: type[T], path: Path) -> T:
    content = _object(path)
    if path.name in FILES.values():
        content = _of_today(schema, content)
    written = content.get("format", FORMAT)
    if isinstance(written, int) and written > FORMAT:
        raise RunError(Message("error.later_version", path=path, written=written, known=FORMAT))
    try:
        return schema.model_validate(content)
    except ValidationError as broken:
        raise _damaged(path, broken) from None


def _of_today(schema: type[Record], old: Json) -> Json:
    """What an earlier version wrote, under the names of today; what nobody reads any more is left
    out."""
    new = {KEYS.get(key, key): value for key, value in old.items() if value is not None}
    parts = new.get("evaluations")
    if isinstance(parts, dict):
        new["scores"] = [_known(Scores, entry) for entry in parts.values()]
    for key in ("branch", "adapter"):
        inner = new.get(key)
        if isinstance(inner, dict):
            new[key] = {KEYS.get(name, name): value for name, value in inner.items()}
    return _known(schema, new)


def _known(schema: type[Record], entry: Json) -> Json:
    return {key: value for key, value in entry.items() if key in schema.model_fields}


def _damaged(path: Path, broken: Exception) -> RunError:
    if isinstance(broken, ValidationError):
        first = broken.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    else:
        said = first_line(broken) if isinstance(broken, OSError) else str(broken)
    return RunError(Message("error.damaged_run", path=path, reason=said, folder=path.parent))


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as broken:
        raise _damaged(path, broken) from None


def _object(path: Path) -> Json:
    content = _json(path)
    if not isinstance(content, dict):
        raise _damaged(path, ValueError(f"holds no object but {type(content).__name__}"))
    return content


def run_folders(root: Path) -> Iterator[Path]:
    """Every run folder under `root`/runs, by name."""
    for folder in sorted((root / "runs").glob("*")):
        if not folder.name.startswith(".") and is_run(folder):
            yield folder
