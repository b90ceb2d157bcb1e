"""The schema of a task file."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import regex
from pydantic import BeforeValidator, Field, model_validator

from tsugiki.config.fields import Positive, Record, Seed, Share, Word
from tsugiki.errors import did_you_mean
from tsugiki.words import Message

TaskKind = Literal["classification", "choice", "generation"]
MetricName = Literal["accuracy", "exact_match", "macro_f1", "mcc", "rouge", "char_f1", "number"]
Formatting = Literal["alpaca", "sharegpt", "openai"]
# Which metrics score the answers of a kind; `score/rules` has their rules.
METRICS_OF: dict[TaskKind, tuple[MetricName, ...]] = {
    "classification": ("accuracy", "exact_match", "macro_f1", "mcc"),
    "choice": ("accuracy", "exact_match"),
    "generation": ("rouge", "char_f1", "exact_match", "number"),
}


class FileSpec(Record):
    """One data file: where it is and what its content must be.

    `path` is relative to the task file, or to `data_dir` when the user names one. `url` is fetched
    once and cached; `hub` names a Parquet file of a Hub dataset. A given checksum is always held
    to, wherever the file came from.
    """

    path: str | None = None
    url: str | None = None
    hub: str | None = None
    hub_file: str | None = None
    hub_revision: str = "main"
    git_blob: str | None = Field(None, pattern="^[0-9a-f]{40}$")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    rows: Positive | None = None
    encoding: str | None = Field(
        None, description="of CSV and JSON, where it is neither UTF-8 nor CP932: euc_jp, say"
    )
    has_group: bool = Field(
        True, description="whether the rows carry the task's group field (training files need not)"
    )

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if not (self.path or self.url or self.hub):
            raise ValueError("give path, url or hub: nothing says where this file is")
        if (self.hub is None) != (self.hub_file is None):
            raise ValueError("hub and hub_file belong together")
        return self


class PartSpec(Record):
    """Which rows of which files make one split. `half` cuts in file order, or whole groups at a
    time by `by`. `share` takes from here to there in an order drawn by `seed`: equal rows, and rows
    of one group, stay together."""

    files: Annotated[
        tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else tuple(v))
    ]
    half: Literal["first", "second"] | None = None
    by: Literal["row", "group"] = "row"
    share: tuple[Share, Share] | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _is_one_cut(self) -> Self:
        if self.share is not None and (self.half is not None or self.share[0] >= self.share[1]):
            raise ValueError("share: must be two shares like [0.8, 0.9], and not beside half")
        return self


class SplitSpec(Record):
    """A named way to cut the files into train, validation and test."""

    train: PartSpec
    validation: PartSpec
    test: PartSpec
    note: str = ""


class TaskSpec(Record):
    """A task file. `kind` decides what an answer may be: one of fixed label words, one of the
    row's candidates, or free text."""

    name: str = Field(pattern="^[a-z0-9_]+$")
    title: str
    kind: TaskKind
    licence: str
    citation: str
    metric: MetricName
    target: str
    fields: tuple[str, ...]
    labels: dict[str, Word] = Field({})
    choices: tuple[str, ...] = ()
    id: Word | None = None
    group: Word | None = None
    group_pattern: str = "^(.*)$"
    cut: Word | None = None
    cut_chars: Positive | None = None
    max_new_tokens: Positive
    messages: str | None = Field(
        None,
        description="column of conversations [{role, content}, …]: every assistant turn is an "
        "answer",
    )
    formatting: Formatting | None = Field(
        None, description="rows as another tool writes them: alpaca, sharegpt, openai"
    )
    formats: dict[str, str]
    default_format: str = "paper"
    files: dict[str, FileSpec] = Field({})
    versions: dict[str, dict[str, FileSpec]] = Field({})
    default_version: str | None = None
    splits: dict[str, SplitSpec]
    default_split: str

    @property
    def closed(self) -> bool:
        """Whether an answer is one of a row's candidates."""
        return self.kind != "generation"

    @property
    def fixed_answers(self) -> tuple[str, ...]:
        """The answers that every row has to choose from; none where they differ by row."""
        return tuple(self.labels.values())

    @property
    def asked_by(self) -> tuple[str, ...]:
        """What one row is made of where it is given by itself, without a file: its fields and
        candidates; of a conversation what the user says."""
        if self.messages is not None:
            return ("user",)
        return tuple(dict.fromkeys([*self.fields, *self.choices]))

    @model_validator(mode="before")
    @classmethod
    def _conversations(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("messages") is None:
            return given
        for name in (
            "fields",
            "target",
            "formats",
            "cut",
            "cut_chars",
            "id",
            "group",
            "group_pattern",
            "default_format",
        ):
            if name in given:
                raise ValueError(f"{name}: a task with messages does not read it; remove it")
        return {
            **given,
            "fields": ("conversation",),
            "target": "",
            "formats": {"chat": "{conversation}"},
            "default_format": "chat",
        }

    @model_validator(mode="after")
    def _is_coherent(self) -> Self:
        if self.messages is not None and self.kind != "generation":
            raise ValueError("messages: needs kind = generation: answers are free text")
        if (self.kind == "classification") != bool(self.labels):
            raise ValueError("labels: needed by kind = classification, and by no other")
        if len(
            {unicodedata.normalize("NFKC", text).strip() for text in self.labels.values()}
        ) < len(self.labels):
            raise ValueError(
                "labels: two labels share one word (after NFKC and without spaces around), so "
                "answers could not be told apart"
            )
        if (self.kind == "choice") != bool(self.choices):
            raise ValueError("choices: needed by kind = choice, and by no other")
        if self.metric not in METRICS_OF[self.kind]:
            raise ValueError(
                f"metric: of kind = {self.kind} are {', '.join(METRICS_OF[self.kind])}, "
                f"got {self.metric}"
            )
        if self.cut and self.cut not in self.fields:
            raise ValueError(f"cut: {self.cut!r} is not one of fields")
        for name, template in self.formats.items():
            _check_format(name, template, self.fields)
        if self.default_format not in self.formats:
            hint = did_you_mean(self.default_format, self.formats)
            raise ValueError(Message("error.no_default_format", hint=hint))
        if self.default_split not in self.splits:
            hint = did_you_mean(self.default_split, self.splits)
            raise ValueError(Message("error.no_default_split", hint=hint))
        if (
            any(
                part.by == "group"
                for split in self.splits.values()
                for part in (split.train, split.validation, split.test)
            )
            and not self.group
        ):
            raise ValueError('group: must name a field, since a split says by = "group"')
        _check_pattern(self.group_pattern)
        if self.versions and self.default_version not in self.versions:
            raise ValueError("default_version: must name one of versions")
        return self


def _check_format(name: str, template: str, fields: tuple[str, ...]) -> None:
    """A format is text with the task's fields in curly brackets, and nothing of what else Python's
    formats can do."""
    where = f"formats.{name}: “{template[:60]}”"
    try:
        parts = [
            (field, spec, conversion)
            for _, field, spec, conversion in string.Formatter().parse(template)
            if field is not None
        ]
    except ValueError as broken:
        raise ValueError(
            f"{where}: {broken}. Write {{{{ and }}}} for curly brackets that are meant as text"
        ) from None
    if not parts:
        raise ValueError(
            f"{where} holds none of the fields ({', '.join(fields)}): every prompt would be the "
            "same"
        )
    for field, spec, conversion in parts:
        if field not in fields:
            hint = did_you_mean(field, fields)
            raise ValueError(Message("error.format_field", where=where, name=field, hint=hint))
        if spec or conversion:
            raise ValueError(
                f"{where}: only the field's name may stand between the brackets, as in {{{field}}}"
            )


def _check_pattern(pattern: str) -> None:
    try:
        groups = regex.compile(pattern).groups
    except (regex.error, RecursionError, OverflowError) as broken:
        raise ValueError(
            f"group_pattern: {pattern[:60]!r} is no regular expression ({broken})"
        ) from None
    if groups < 1:
        raise ValueError(
            f"group_pattern: {pattern!r} needs one group in round brackets: what it matches names "
            "the group"
        )
