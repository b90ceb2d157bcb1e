"""The schema of a run: one `RunConfig` asks for it; `runs/identity` names it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tsugiki.config.fields import Above0, Count, IsNumber, Positive, Record, Seed, Share
from tsugiki.config.old_spellings import in_new_spelling

Method = Literal["lora", "full", "base", "encoder"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
StepKind = Literal["auto", "cuda_graph", "eager"]
Precision = Literal["auto", "fp32", "bf16"]
LongRows = Literal["refuse", "leave_out"]
Moments = Literal["fp32", "bf16", "8bit"]
Weights = Literal["fp32", "24bit"]
ClipFrom = Literal["exact", "last_step"]
BaseKind = Literal["nf4"]


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

    @property
    def label(self) -> str:
        """Its name, with the split and the format that are named: two splits or formats of one
        task are two rows."""
        named = [each for each in (self.split, self.format) if each]
        return f"{Path(self.name).stem} ({', '.join(named)})" if named else Path(self.name).stem


class TextChoice(Record):
    """Running text that a model reads: its perplexity shows what tuning did to the language."""

    text: str = Field(
        description="a text file, documents apart by empty lines; or rows (.jsonl, .csv, .parquet)"
    )
    field: str | None = Field(None, description="of rows: the field that holds the text")
    documents: Positive | None = Field(None, description="only so many, drawn by a fixed seed")
    name: str | None = Field(None, description="short name in tables (default: the file's)")

    @property
    def label(self) -> str:
        return self.name or Path(self.text).stem


class ModelChoice(Record):
    """Which causal language model; of method = "encoder", which encoder."""

    path: str = Field(description='folder, Hub id, or "builtin"')
    revision: str | None = Field(None, description="branch, tag or commit on the Hub")
    name: str | None = Field(None, description="short name in tables (default: last part of path)")
    base: BaseKind | None = Field(
        None,
        description="nf4: the frozen base in 4 bits, LoRA over it (QLoRA; needs bitsandbytes)",
    )

    @property
    def label(self) -> str:
        return self.name or Path(self.path).name


class LoraConfig(Record):
    """h = W z + scale · B A z with scale = alpha / rank; alpha = rank (the paper's h = W z + B A
    z) unless given. rsLoRA (arXiv 2312.03732): scale = alpha / √rank. LoRA+ (arXiv 2402.12354):
    B learns at a rate of its own."""

    targets: str = Field("all-linear", description="q+v, q+k+v+o, all-linear, or names joined by +")
    rank: Positive = 16
    alpha: Above0 | None = Field(None, description="default: rank, so that the scale is 1")
    dropout: Annotated[float, IsNumber, Field(ge=0, lt=1)] = 0.0
    rslora: bool = Field(False, description="divide alpha by the root of the rank")
    loraplus: Above0 = Field(1.0, description="B's learning rate as a multiple of A's (LoRA+: 16)")

    @property
    def scale(self) -> float:
        divisor = math.sqrt(self.rank) if self.rslora else self.rank
        return (self.alpha or self.rank) / divisor


class TrainConfig(Record):
    """The optimiser and its schedule. LoRA and FT read the same fields."""

    learning_rate: Above0
    epochs: Annotated[float, IsNumber, Field(gt=0, le=10_000)] = 3
    batch: Positive = Field(8, description="rows per optimiser step")
    micro_batch: Positive | None = Field(
        None, description="rows per backward pass (default: batch)"
    )
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
        description="cuda_graph: packed rows, CUDA graphs; eager: the reference; auto: "
        "cuda_graph on CUDA in bf16",
    )
    moments: Moments = Field(
        "fp32",
        description="full fine-tuning: AdamW's moments, in fp32 or rounded by train.seed to bf16 "
        "or 8 bits",
    )
    weights: Weights = Field(
        "fp32",
        description="full fine-tuning with bf16 matmuls: exactly fp32, or 24 bits of it (rounded "
        "by train.seed)",
    )
    clip_from: ClipFrom = Field(
        "exact",
        description="full fine-tuning: the norm that clips: of these gradients, or last_step's "
        "(no gradient is kept, no second backward pass)",
    )
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _new_spelling(cls, given: Any) -> Any:
        return in_new_spelling("train", given)

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _is_a_rate(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        try:
            return float(given)
        except ValueError:
            rule = 'must be a number, or a multiple of the recipe\'s like "0.5x"'
            raise ValueError(f"{rule}, got '{given}'") from None

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
        if self.clip_from == "last_step" and self.micro_batch not in (None, self.batch):
            raise ValueError(
                'clip_from: "last_step" keeps no gradients, micro_batch sums them; remove one of '
                "them"
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
        None, description="rows at a time (default: 64; 256 where decoding uses CUDA graphs)"
    )
    decode: StepKind = Field(
        "auto",
        description="cuda_graph: packed prompts, CUDA graphs; eager: the reference; auto: "
        "cuda_graph on CUDA in bf16",
    )
    max_new_tokens: Positive | None = Field(None, description="default: the task file's")
    validations: Count = Field(
        0, description="times a sample of validation is scored during training, evenly (0: never)"
    )
    validation_rows: Positive = Field(
        100, description="rows of that sample of validation, drawn by a fixed seed"
    )

    @model_validator(mode="before")
    @classmethod
    def _new_spelling(cls, given: Any) -> Any:
        return in_new_spelling("score", given)


# What a method reads of [lora] and adapter: one of these.
READ_BY: dict[Method, tuple[set[str], ...]] = {
    "lora": ({"lora"}, {"adapter"}),
    "full": (set(),),
    "base": (set(),),
    "encoder": (set(),),
}
ADAPTED: tuple[Method, ...] = ("lora",)  # train or take adapters, many over one base
UNTRAINED: tuple[Method, ...] = ("base",)  # scored as they are
FROZEN: tuple[Method, ...] = (*ADAPTED, *UNTRAINED)  # leave the base's weights as they are
# Of [train], what full fine-tuning alone reads.
READ_BY_FULL = ("moments", "weights", "clip_from")
NOT_READ_BY: dict[Method, tuple[str, ...]] = {"lora": READ_BY_FULL, "encoder": READ_BY_FULL}
OWN_MODEL: tuple[Method, ...] = ("encoder",)  # a study's row of it names its model
EAGER_ALONE: tuple[Method, ...] = ("encoder",)  # have no step that CUDA graphs record
# Of [train], what is read where nothing is trained; the seed too where it draws shots.
READ_UNTRAINED = ("max_length", "long_rows", "precision")


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
    shots: Count = Field(
        0,
        description="worked examples before every prompt, drawn from the training rows by "
        "train.seed (method = base only)",
    )
    train: TrainConfig
    score: ScoreConfig = ScoreConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_adapter(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        method = given.get("method", "lora")
        if method in UNTRAINED:
            return _untrained(given, "the untouched base")
        if method not in ADAPTED:
            return given
        if given.get("adapter") is not None:
            return _untrained(given, "an adapter that was trained elsewhere")
        return given if given.get("lora") is not None else {**given, "lora": {}}

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.model.base is not None and self.method not in FROZEN:
            raise ValueError(
                f'model.base: weights in 4 bits cannot be tuned by method = "{self.method}". Leave '
                'base out, or use method = "lora" (moments = "8bit" and weights = "24bit" are what '
                "full fine-tuning saves memory by)"
            )
        given = {name for name in ("lora", "adapter") if getattr(self, name) is not None}
        for name in NOT_READ_BY.get(self.method, ()):
            if getattr(self.train, name) != TrainConfig.model_fields[name].default:
                raise ValueError(f"train.{name}: only full fine-tuning reads it; remove it")
        if self.method in EAGER_ALONE and self.train.step == "cuda_graph":
            raise ValueError(
                f'train.step: method = "{self.method}" has the eager step alone; remove it'
            )
        if self.shots and self.method not in UNTRAINED:
            raise ValueError(
                'shots: only method = "base" reads it (a trained model answers without); remove '
                "it, or use the base"
            )
        if given in READ_BY[self.method]:
            return self
        if self.method in UNTRAINED:
            raise ValueError(f'{min(given)}: method = "{self.method}" would ignore it; remove it')
        if "adapter" in given:
            raise ValueError(
                'adapter: needs method = "lora" and no [lora]: rank, targets and α are those of '
                "the adapter"
            )
        raise ValueError(
            f'lora: method = "{self.method}" would ignore it; remove it or use method = "lora"'
        )


def _untrained(given: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """A run of something that is not trained: no rate is read (one stands in for it), and no other
    setting of training.

    Raises:
        ValueError: a setting of training is given.
    """
    train = given.get("train") or {}
    if not isinstance(train, Mapping):
        return given
    read = (*READ_UNTRAINED, "learning_rate", *(["seed"] if given.get("shots") else []))
    for name, value in train.items():
        known = TrainConfig.model_fields.get(name)
        if known is not None and name not in read and value != known.default:
            raise ValueError(f"train.{name}: {what} does not read it; remove it")
    return {**given, "train": {"learning_rate": 1.0, **train}}
