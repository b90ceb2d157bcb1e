"""The schema of a study file; `study/cells` expands it into runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from tsugiki.config.fields import Count, IsNumber, Positive, Record, Seed
from tsugiki.config.run import (
    ADAPTED,
    FROZEN,
    OWN_MODEL,
    UNTRAINED,
    BaseKind,
    Method,
    ModelChoice,
    ScoreConfig,
    TaskChoice,
    TextChoice,
)

Setting = bool | int | float | str


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
    trials: Positive | None = Field(
        None, description="configurations to try (random, tpe; default 24)"
    )
    rounds: Positive | None = Field(
        None, description="tpe: rounds that the trials are spread over (default 3)"
    )
    seed: Seed | None = Field(None, description="of the sample (random, tpe; default 0)")
    prune: bool = Field(
        False,
        description="successive halving: at 1/4 and 1/2 of the steps the lower half of the "
        "configurations "
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
    model: Annotated[
        ModelChoice | None, BeforeValidator(lambda v: {"path": v} if isinstance(v, str) else v)
    ] = Field(
        None,
        description="kind = encoder: which encoder, as a folder, a Hub id, or a table like those "
        "of models",
    )
    adapter: str | None = Field(
        None,
        description="folder of a PEFT adapter that was trained elsewhere; then there is no grid",
    )
    base: BaseKind | None = Field(
        None, description="nf4: this row's frozen base in 4 bits (QLoRA); default: the model's"
    )
    shots: Count = Field(
        0,
        description="kind = base: worked examples before every prompt; a list makes one row "
        "of each number",
    )
    grid: dict[str, tuple[Setting, ...] | Range] = Field(
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
                "search.prune: compares configurations after equally many steps; take epochs and "
                "batch out "
                "of the grid"
            )
        if self.adapter and (self.grid or self.kind not in ADAPTED or self.search != SearchSpec()):
            raise ValueError(
                'adapter: needs kind = "lora", no grid and no search: nothing is trained'
            )
        if self.kind in UNTRAINED and (self.grid or self.search != SearchSpec()):
            raise ValueError(
                'grid: kind = "base" is not trained: it has no grid and no search. What it reads: '
                "shots"
            )
        if self.base is not None and self.kind not in FROZEN:
            raise ValueError(
                f'base: weights in 4 bits cannot be tuned by kind = "{self.kind}"; remove it, or '
                'use kind = "lora"'
            )
        if (self.model is not None) != (self.kind in OWN_MODEL):
            raise ValueError(
                f'model: is needed by kind = "{OWN_MODEL[0]}", and by no other (they are tried on '
                "each of models)"
            )
        if self.shots and self.kind not in UNTRAINED:
            raise ValueError('shots: only kind = "base" reads it; remove it')
        if self.search.prune and self.kind not in ADAPTED:
            raise ValueError(
                "search.prune: compares LoRA configurations that train together; other methods "
                "train one configuration at a time"
            )
        return self


NumSeeds = Annotated[int, IsNumber, Field(gt=0, le=1000)]
SeedList = Annotated[tuple[Seed, ...], Field(min_length=1, max_length=1000)]


def _rows_of_shots(given: Any) -> Any:
    """`shots = [0, 4]` of a method as one method for each number: none is chosen among them."""
    if not isinstance(given, (list, tuple)):
        return given
    rows: list[Any] = []
    for method in given:
        shots = method.get("shots") if isinstance(method, Mapping) else None
        if not isinstance(shots, (list, tuple)):
            rows.append(method)
            continue
        if not shots:
            raise ValueError("shots: an empty list is no row; remove the method, or write 0")
        name = method.get("name")
        rows += [{**method, "name": f"{name} {count}-shot", "shots": count} for count in shots]
    return rows


TEXT_ENDINGS = (".txt", ".jsonl", ".json", ".csv", ".parquet")


def _task_or_text(given: Any) -> Any:
    """A name alone is a task; a file of text or of rows is read for its perplexity."""
    if not isinstance(given, str):
        return given
    return {"text": given} if given.lower().endswith(TEXT_ENDINGS) else {"name": given}


def _kind_of(given: Any) -> str:
    has_text = "text" in given if isinstance(given, Mapping) else isinstance(given, TextChoice)
    return "text" if has_text else "task"


Elsewhere = TaskChoice | TextChoice
_Elsewhere = Annotated[
    Annotated[TaskChoice, Tag("task")] | Annotated[TextChoice, Tag("text")],
    Discriminator(_kind_of),
    BeforeValidator(_task_or_text),
]


class StudySpec(Record):
    """A study file: models × tasks × methods, each method with its grid."""

    name: str = Field(pattern="^[A-Za-z0-9_.-]+$")
    title: str = ""
    models: tuple[ModelChoice, ...] = Field(min_length=1)
    tasks: tuple[TaskChoice, ...] = Field(min_length=1)
    methods: Annotated[tuple[MethodSpec, ...], BeforeValidator(_rows_of_shots)] = Field(
        min_length=1
    )
    train: dict[str, object] = Field({}, description="settings shared by every configuration")
    score: ScoreConfig = ScoreConfig()
    margin: Annotated[float, IsNumber, Field(gt=0, lt=100)] = Field(
        2.0, description="points of 100 within which methods count as equal: fix it before"
    )
    power: Annotated[float, IsNumber, Field(ge=0.5, lt=1)] | None = Field(
        None,
        description="plan the comparison for this power before test is read, from validation "
        "(0.8, say)",
    )
    forgetting: tuple[_Elsewhere, ...] = Field(
        (),
        description="tasks and texts that nothing is tuned on: what is chosen, and the untouched "
        "base, are scored on them too",
    )
    lanes: Positive | None = Field(
        None,
        description="adapters trained in one pass over their base (default: as many as a CUDA "
        "device holds; 1 on a CPU)",
    )
    seeds: NumSeeds | SeedList = Field(
        1,
        description="how many seeds the chosen configurations are trained with, or which; the grid "
        "is searched with the first",
    )
    answers_shown: Count = Field(
        3,
        description="test examples shown with every method's answer; 0 where the texts may not be "
        "passed on",
    )
    reference_rows: bool = Field(False, description="quote the paper's own figures under the table")

    @model_validator(mode="after")
    def _seeds_are_named_once(self) -> Self:
        if isinstance(self.seeds, tuple):
            if len(set(self.seeds)) < len(self.seeds):
                raise ValueError(f"seeds: names one twice: {list(self.seeds)}")
            if "seed" in self.train:
                raise ValueError("train.seed: seeds names them already; remove one of the two")
        return self

    @model_validator(mode="after")
    def _models_are_told_apart(self) -> Self:
        """Weights are kept track of by label."""
        paths = {model.label: model.path for model in self.models}
        for own in (method.model for method in self.methods if method.model is not None):
            if paths.setdefault(own.label, own.path) != own.path:
                raise ValueError(
                    f'methods: an encoder is called "{own.label}" like another model: give it a '
                    f'name: model = {{ path = "{own.path}", name = "…" }}'
                )
        return self

    @model_validator(mode="after")
    def _forgetting_has_a_base(self) -> Self:
        if not self.forgetting:
            return self
        bases = [method for method in self.methods if method.kind in UNTRAINED]
        for task in self.tasks:
            stem = Path(task.name).stem
            if not any(base.tasks is None or stem in base.tasks for base in bases):
                raise ValueError(
                    f'forgetting: is told against the untouched base, which "{stem}" has not: add '
                    'a method with kind = "base"'
                )
        labels = [each.label for each in self.forgetting]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f'forgetting: two are called "{label}": give texts a name')
        return self

    @property
    def num_seeds(self) -> int:
        return len(self.seeds) if isinstance(self.seeds, tuple) else self.seeds
