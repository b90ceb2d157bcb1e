"""What is kept of a run, typed and frozen, read back as it was written. No torch here.

    config.json       RunConfig      what was asked
    provenance.json   Provenance     with what: checksums, precision, device, versions
    outcome.json      Outcome        what came of it: status, cost, scores
    validations.json  [Validation]   a sample of validation, scored during training
    history.json      History        loss, norm, rate, seconds, tokens by step

`runs/store` writes them, and nobody else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from tsugiki.config.fields import Record
from tsugiki.config.old_spellings import VALUES
from tsugiki.score.metrics import Score
from tsugiki.train.cost import Cost

FORMAT = 1
Status = Literal["running", "done", "failed", "pruned"]
FINISHED: tuple[Status, ...] = ("done", "failed", "pruned")


class ScoreKey(Record):
    """What a part's scores depend on besides the run: which rows (by content), how and how long
    answers are written, which ids end them, in which format the prompts are."""

    part: str
    rows_sha256: str
    format: str
    decode: str
    max_new_tokens: int
    ends: tuple[int, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _new_spelling(cls, given: Any) -> Any:
        decode = given.get("decode") if isinstance(given, Mapping) else None
        if isinstance(decode, str) and decode in VALUES["decode"]:
            return {**given, "decode": VALUES["decode"][decode]}
        return given

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits, for the name of the file of answers. The ends follow from the
        model and the format, and are not part of it."""
        content = self.model_dump_json(exclude={"ends"})
        return hashlib.sha256(content.encode()).hexdigest()[:8]


class Scores(Record):
    """What the answers to one part are worth. Records from before keys have none: their part was
    scored as the run's own configuration says. `answers` names their file where another key of
    the part came first."""

    key: ScoreKey | None = None
    part: str
    scores: tuple[Score, ...]
    main: Score
    failures: dict[str, int]
    candidate_rate: float | None = None
    answer_s: float
    answers: str = ""

    @property
    def values(self) -> dict[str, float]:
        """Each score's mean, by its name."""
        return {score.name: score.value for score in self.scores}

    @property
    def file(self) -> str:
        """The file of the answers, beside the record."""
        return self.answers or f"answers-{self.part}.jsonl"


class ReadText(Record):
    """Running text as a model reads it: mean nats a token over all `documents`. `file` keeps each
    document's nats and tokens, beside the record."""

    sha256: str
    window: int
    documents: int
    tokens: int
    nats: float
    file: str


class Elsewhere(Record):
    """What a run is worth on something that it was not tuned on: answers to a task's test rows
    (`likeliest`: the candidate with the largest log-likelihood, of a closed task), or running text.
    `content`: a digest of all that depends on besides the run; `seconds`: what it took."""

    name: str
    content: str
    scores: Scores | None = None
    likeliest: Scores | None = None
    text: ReadText | None = None
    seconds: float


class Validation(Record):
    """Scores of a sample of validation after so many steps."""

    step: int
    scores: Scores


class Answer(Record):
    """One kept answer, with what was right and its class."""

    id: str
    group: str
    target: str
    answer: str
    ended: bool
    failure: str


class Branch(Record):
    """The run whose checkpoint this one went on from, and after how many steps."""

    source: str
    steps: int


class Imported(Record):
    """An adapter that was trained elsewhere."""

    targets: str
    rank: int
    alpha: float
    source: str


class Outcome(Record):
    """What came of a run so far. `status` is running until it is finished; `reason` says why it
    failed or was pruned.

    `step` is the kind of optimiser step, `lanes` how many adapters it trained together with,
    `exclusive` whether its times are those of a device of its own; `exclusive_cost` what a step
    costs beside nothing else of the study, by rows a step. `search_score` is the score that a
    search was given, where the run was trained again later; `pruned_score` the last one before it
    was pruned.
    """

    format: int = FORMAT
    status: Status = "running"
    reason: str = ""
    started: str = ""
    ended: str = ""
    command: tuple[str, ...] = ()
    study: str | None = None
    notes: tuple[str, ...] = ()
    left_out: int = 0
    ends: tuple[str, ...] = ()
    target_tokens: float | None = None
    trainable: int = 0
    total: int = 0
    steps: int | None = None
    max_length: int = 0
    step: str | None = None
    lanes: int | None = None
    exclusive: bool = True
    branch: Branch | None = None
    adapter: Imported | None = None
    cost: Cost | None = None
    exclusive_cost: dict[int, Cost] | None = None
    weights_bytes: int = 0
    trained_on: dict[str, str] = Field({})
    validation_loss: float | None = None
    search_score: float | None = None
    pruned_score: Score | None = None
    scores: tuple[Scores, ...] = ()
    elsewhere: tuple[Elsewhere, ...] = ()

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


class StoredNumerics(Record):
    """What was computed and stored in what: matmuls, the frozen base, what was trained."""

    compute: str
    base: str
    trained: str


class TaskNamed(Record):
    """Which task, as its file names it."""

    name: str
    version: str | None = None
    split: str
    format: str


class Provenance(Record):
    """With what a run was made. `recipe_sha256` covers what of the configuration and of the
    training rows moves weights (`runs/identity`); records from before have none.

    `semantics` says by which rules all that is read: see `identity.SEMANTICS`. `width`: of the
    model's hidden states, which the recipe's rates follow.
    """

    format: int = FORMAT
    semantics: int = 1
    recipe_sha256: str = ""
    model_sha256: str
    settings_sha256: str = ""
    width: int | None = None
    adapter_sha256: str = ""
    task_sha256: str = ""
    data: dict[str, dict[str, str]] = Field({})
    numerics: StoredNumerics
    device_type: str = ""
    device: str
    threads: int = 0
    rows: dict[str, int] = Field({})
    task: TaskNamed | None = None
    template_date: str = ""
    versions: dict[str, str] = Field({})
