"""Every schema of tsugiki: run, study and task file. Frozen, strict; `toml` reads files into them.

A run is asked for by one `RunConfig`; `fingerprint()` names it. A study file expands into many
(`study/sweep`).
"""

from __future__ import annotations

import hashlib
import json
import string
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import regex
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from tsugiki.errors import did_you_mean

Method = Literal["lora", "full"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
StepKind = Literal["auto", "captured", "eager"]
Precision = Literal["auto", "fp32", "bf16"]
LongRows = Literal["refuse", "leave_out"]


def _a_number(given: Any) -> Any:
    if isinstance(given, bool):  # which Python counts as 1
        raise ValueError(f"must be a number, got {str(given).lower()}")
    return given


IsNumber = BeforeValidator(_a_number)
Positive = Annotated[int, IsNumber, Field(gt=0, le=10**9)]
Count = Annotated[int, IsNumber, Field(ge=0, le=10**9)]
Seed = Annotated[int, IsNumber, Field(ge=0, lt=2**32)]
Share = Annotated[float, IsNumber, Field(ge=0, le=1)]
Word = Annotated[str, Field(pattern=r"\S")]
Above0 = Annotated[float, IsNumber, Field(gt=0, le=1e20, allow_inf_nan=False)]


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, protected_namespaces=())


# ---- the task file ------------------------------------------------------------------------------


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
    time by `by`."""

    files: Annotated[
        tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else tuple(v))
    ]
    half: Literal["first", "second"] | None = None
    by: Literal["row", "group"] = "row"


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
    kind: Literal["classification", "choice", "generation"]
    licence: str
    citation: str
    metric: Literal["accuracy", "exact_match", "rouge"]
    target: str
    fields: tuple[str, ...]
    labels: dict[str, Word] = {}
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
    formats: dict[str, str]
    default_format: str = "paper"
    files: dict[str, FileSpec] = {}
    versions: dict[str, dict[str, FileSpec]] = {}
    default_version: str | None = None
    splits: dict[str, SplitSpec]
    default_split: str

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
            {unicodedata.normalize("NFKC", word).strip() for word in self.labels.values()}
        ) < len(self.labels):
            raise ValueError(
                "labels: two labels share one word (after NFKC and without spaces around), so "
                "answers could not be told apart"
            )
        if (self.kind == "choice") != bool(self.choices):
            raise ValueError("choices: needed by kind = choice, and by no other")
        if (self.kind == "generation") != (self.metric == "rouge"):
            raise ValueError(
                "metric: rouge for kind = generation, accuracy or exact_match for the others"
            )
        if self.cut and self.cut not in self.fields:
            raise ValueError(f"cut: {self.cut!r} is not one of fields")
        for name, template in self.formats.items():
            _check_format(name, template, self.fields)
        if self.default_format not in self.formats:
            raise ValueError(
                f"default_format: no such format.{did_you_mean(self.default_format, self.formats)}"
            )
        if self.default_split not in self.splits:
            raise ValueError(
                f"default_split: no such split.{did_you_mean(self.default_split, self.splits)}"
            )
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
            raise ValueError(f'{where}: no field "{field}".{did_you_mean(field, fields)}')
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


# ---- a run --------------------------------------------------------------------------------------


class TaskChoice(Record):
    """Which task, which version of its data, which split, which prompt format, how many rows."""

    name: str = Field(description="built-in task name or path of a task file")
    version: Annotated[
        str | None, BeforeValidator(lambda v: str(v) if isinstance(v, float) else v)
    ] = Field(None, description="version of the data (default: the task file's)")
    split: str | None = Field(None, description="named split (default: the task file's)")
    format: str | None = Field(None, description="prompt format (default: the task file's)")
    data_dir: str | None = Field(None, description="folder with local copies of the data files")
    train_rows: Positive | None = Field(
        None, description="use only so many training rows, drawn by a fixed seed"
    )
    eval_rows: Positive | None = Field(
        None, description="use only so many rows of validation and of test, drawn by a fixed seed"
    )


class ModelChoice(Record):
    """Which causal language model."""

    path: str = Field(description='folder, Hub id, or "builtin"')
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    name: str | None = Field(None, description="short name in tables (default: last part of path)")

    @property
    def label(self) -> str:
        return self.name or Path(self.path).name


class LoraConfig(Record):
    """h = W z + scale · B A z with scale = alpha / rank; alpha = rank (the paper's h = W z + B A
    z) unless given."""

    targets: str = Field("all-linear", description="q+v, q+k+v+o, all-linear, or words joined by +")
    rank: Positive = 16
    alpha: Above0 | None = Field(None, description="default: rank, so that the scale is 1")
    dropout: Annotated[float, IsNumber, Field(ge=0, lt=1)] = 0.0

    @property
    def scale(self) -> float:
        return (self.alpha or self.rank) / self.rank


class TrainConfig(Record):
    """The optimiser and its course. LoRA and FT read the same fields."""

    learning_rate: Above0
    epochs: Annotated[float, IsNumber, Field(gt=0, le=10_000)] = 3
    batch: Positive = Field(8, description="rows an optimiser step")
    micro_batch: Positive | None = Field(None, description="rows a backward pass (default: batch)")
    schedule: Schedule = "constant"
    warmup: Share = 0.0
    decay: Share | None = Field(
        None, description="share of all steps that wsd spends on its decay (default 0.1)"
    )
    weight_decay: Annotated[float, IsNumber, Field(ge=0, le=1e6)] = 0.0
    clip: Above0 = Field(1.0, description="gradient norm")
    max_length: Positive = Field(2048, description="prompt + answer, in tokens")
    long_rows: LongRows = Field(
        "refuse", description="training rows that do not fit and may not be cut (left out: counted)"
    )
    precision: Precision = "auto"
    step: StepKind = Field(
        "auto",
        description="captured: packed rows, CUDA graphs; eager: the plain reference; auto: "
        "captured on CUDA in bf16",
    )
    seed: Seed = 0

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, given: Any) -> Any:
        if given in ("fp16", "float16", "half"):
            raise ValueError(
                "fp16 is not offered: its gradients under- and overflow. A card without bf16 "
                "(Turing: T4) trains in fp32; use auto"
            )
        return given

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(
                f"micro_batch: must divide batch ({self.batch}), got {self.micro_batch}"
            )
        if self.decay is not None and self.schedule != "wsd":
            raise ValueError(
                'decay: only schedule = "wsd" reads it; remove it or change the schedule'
            )
        if self.warmup + self.decay_share > 1:
            raise ValueError("warmup + decay: must not exceed 1")
        return self

    @property
    def decay_share(self) -> float:
        """Share of all steps spent on wsd's decay; 0 under any other schedule."""
        return (0.1 if self.decay is None else self.decay) if self.schedule == "wsd" else 0.0


class ScoreConfig(Record):
    """How answers are generated. Greedy, always; `batch` changes the speed, not the rule."""

    batch: Positive | None = Field(
        None, description="rows at a time (default: 64; 256 where decoding is captured)"
    )
    decode: StepKind = Field(
        "auto",
        description="captured: packed prompts, recorded steps; eager: the plain reference; auto: "
        "captured on CUDA in bf16",
    )
    max_new_tokens: Positive | None = Field(None, description="default: the task file's")
    during: Count = Field(
        0, description="times a sample of validation is scored during training, evenly (0: never)"
    )
    during_rows: Positive = Field(
        100, description="rows of that sample of validation, drawn by a fixed seed"
    )


class RunConfig(Record):
    """One run: model × task × method × hyper-parameters."""

    model: ModelChoice
    task: TaskChoice
    method: Method = "lora"
    lora: LoraConfig | None = None
    adapter: str | None = Field(
        None,
        description="folder of a PEFT adapter that was trained elsewhere: it is scored, nothing is "
        "trained",
    )
    train: TrainConfig
    score: ScoreConfig = ScoreConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_adapter(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or given.get("method", "lora") != "lora":
            return given
        if given.get("adapter") is not None:
            train = given.get("train") or {}
            if isinstance(train, Mapping):
                for name, value in train.items():
                    known = TrainConfig.model_fields.get(name)
                    if (
                        known is not None
                        and name not in ("learning_rate", "max_length", "long_rows", "precision")
                        and value != known.default
                    ):
                        raise ValueError(
                            f"train.{name}: an adapter that was trained elsewhere does not read "
                            "it; remove it"
                        )
                return {
                    **given,
                    "train": {"learning_rate": 1.0, **train},
                }  # nothing is trained: no rate is read
            return given
        return given if given.get("lora") is not None else {**given, "lora": {}}

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.method == "full" and self.lora is not None:
            raise ValueError(
                'lora: method = "full" would ignore it; remove it or use method = "lora"'
            )
        if self.adapter is not None and (self.method == "full" or self.lora is not None):
            raise ValueError(
                'adapter: needs method = "lora" and no [lora]: rank, targets and α are those of '
                "the adapter"
            )
        return self

    def fingerprint(self, with_what: Mapping[str, Any]) -> str:
        """12 hexadecimal digits that name this run: what was asked, and the checksums and
        precision it ran with."""
        settings = self.model_dump(mode="json")
        if self.adapter is None:
            del settings[
                "adapter"
            ]  # runs keep the names that they had before adapters could be imported
        asked = {"asked": settings, "with": dict(with_what)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]


# ---- a study ------------------------------------------------------------------------------------


class Range(Record):
    """Any value between two; whole numbers when both are."""

    low: Annotated[float | int, IsNumber, Field(allow_inf_nan=False)]
    high: Annotated[float | int, IsNumber, Field(allow_inf_nan=False)]
    log: bool = Field(False, description="spread evenly over orders of magnitude")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"low must be below high, and above 0 with log; got {self.low:g} and {self.high:g}"
            )
        return self


class SearchSpec(Record):
    """How a method's settings are searched: every combination, a random sample, or Optuna's TPE,
    which learns from round to round."""

    kind: Literal["grid", "random", "tpe"] = "grid"
    trials: Positive | None = Field(None, description="cells to try (random, tpe; default 24)")
    rounds: Positive | None = Field(
        None, description="tpe: rounds that the trials are spread over (default 3)"
    )
    seed: Seed | None = Field(None, description="of the sample (random, tpe; default 0)")
    prune: bool = Field(
        False,
        description="successive halving: at 1/4 and 1/2 of the steps the lower half of the cells "
        "that train together ends",
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        ignored = [
            name
            for name in ("trials", "rounds", "seed")
            if getattr(self, name) is not None
            and (self.kind == "grid" or (name, self.kind) == ("rounds", "random"))
        ]
        if ignored:
            raise ValueError(
                f"{', '.join(ignored)}: kind = {self.kind} does not read it; remove it or change "
                "kind"
            )
        return self


class MethodSpec(Record):
    """One row of the table: a method and the grid it is searched over, for all tasks or for those
    it names."""

    name: str = Field(description="what the table calls it: LoRA, FT")
    kind: Annotated[
        Method,
        BeforeValidator(
            lambda v: (
                {"ft": "full", "FT": "full", "LoRA": "lora"}.get(v, v) if isinstance(v, str) else v
            )
        ),
    ]
    tasks: tuple[str, ...] | None = Field(None, description="only these tasks (names)")
    adapter: str | None = Field(
        None,
        description="folder of a PEFT adapter that was trained elsewhere; then there is no grid",
    )
    grid: dict[str, tuple[Any, ...] | Range] = Field(
        {}, description="setting -> values, or { low, high, log } for random and tpe"
    )
    search: SearchSpec = SearchSpec()

    @model_validator(mode="after")
    def _can_be_searched(self) -> Self:
        ranges = [name for name, values in self.grid.items() if isinstance(values, Range)]
        if ranges and self.search.kind == "grid":
            raise ValueError(
                f'grid.{ranges[0]}: a range needs search.kind = "random" or "tpe"; a grid needs '
                "values in square brackets"
            )
        if self.search.prune and {"epochs", "batch"} & set(self.grid):
            raise ValueError(
                "search.prune: compares cells after equally many steps; take epochs and batch out "
                "of the grid"
            )
        if self.adapter is not None and (
            self.grid or self.kind != "lora" or self.search != SearchSpec()
        ):
            raise ValueError(
                'adapter: needs kind = "lora", no grid and no search: nothing is trained'
            )
        if self.search.prune and self.kind != "lora":
            raise ValueError(
                "search.prune: compares LoRA cells that train together; full fine-tuning trains "
                "one cell at a time"
            )
        return self


class StudySpec(Record):
    """A study file: models × tasks × methods, each method with its grid."""

    name: str = Field(pattern="^[A-Za-z0-9_.-]+$")
    title: str = ""
    models: tuple[ModelChoice, ...] = Field(min_length=1)
    tasks: tuple[TaskChoice, ...] = Field(min_length=1)
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    train: dict[str, Any] = Field({}, description="settings shared by every cell")
    score: ScoreConfig = ScoreConfig()
    margin: Annotated[float, IsNumber, Field(gt=0, lt=100)] = Field(
        2.0, description="points of 100 within which methods count as equal: fix it before"
    )
    lanes: Positive | None = Field(
        None,
        description="adapters trained in one pass over their base (default: as many as a CUDA "
        "device holds; 1 on a CPU)",
    )
    seeds: Annotated[int, IsNumber, Field(gt=0, le=1000)] = Field(
        1, description="seeds of the chosen cells; the grid is searched with the first"
    )
    answers_shown: Count = Field(
        3,
        description="test examples shown with every method's answer; 0 where the texts may not be "
        "passed on",
    )
    reference_rows: bool = Field(False, description="quote the paper's own figures under the table")
