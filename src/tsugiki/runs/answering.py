"""How a model answers: a causal language model writes its answer (`Writes`), an encoder chooses one
(`Chooses`). Each says how such a model is read, what its rows are, what it is trained by and how
it is scored; `Method.answering` names one. No torch until one is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tsugiki.config.run import RunConfig
from tsugiki.data.tasks import Task
from tsugiki.words import Message

if TYPE_CHECKING:
    from tsugiki.config.run import ScoreConfig, StepKind
    from tsugiki.config.task import TaskSpec
    from tsugiki.data.prompts import Tokens
    from tsugiki.data.tokenizer import Tokenizer
    from tsugiki.model.loading import Base, BaseSource
    from tsugiki.score.evaluate import Evaluation
    from tsugiki.train.cuda_graph_step import CudaGraphStep
    from tsugiki.train.lane import Lane
    from tsugiki.train.objective import Objective
    from tsugiki.train.step import EagerStep

OnProgress = Callable[[int, int], None]


class RowsOf(Protocol):
    """See `runs/preflight.rows_of`; what an encoder does not read of it, it does not look at."""

    def __call__(
        self,
        tokenizer: Tokenizer,
        task: Task,
        config: RunConfig,
        part: str,
        *,
        longest: int,
        vocab_rows: int,
        stops: Sequence[int],
        left_out: list[str] | None = None,
    ) -> list[Tokens]: ...


class LookAtRows(Protocol):
    """See `runs/preflight.look_at_rows`."""

    def __call__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        task: Task,
        rows: Mapping[str, Sequence[Tokens]],
        config: RunConfig,
        *,
        vocab_rows: int,
    ) -> list[str]: ...


class Evaluate(Protocol):
    """See `score/evaluate.evaluate_lanes`."""

    def __call__(
        self,
        base: Base,
        spec: TaskSpec,
        part: str,
        rows: Sequence[Tokens],
        config: ScoreConfig,
        on_progress: OnProgress | None = None,
        lanes: Sequence[int] | None = None,
    ) -> Iterator[Evaluation]: ...


class Answering(Protocol):
    """`writes`: whether it can be asked for any text."""

    writes: bool

    def read(self, folder: Path) -> Any:
        """The model without its weights. Raises `ModelError` for one that does not answer so."""

    def load(self, source: BaseSource) -> Base:
        """Model and tokenizer, looked at. Raises `ModelError`."""

    @property
    def rows(self) -> RowsOf:
        """The rows of one part as ids."""

    @property
    def look_at_rows(self) -> LookAtRows:
        """What a user should know of rows."""

    def ends(self, tokenizer: Tokenizer, stops: Sequence[int]) -> str:
        """Where answers end, in a line."""

    def notes(self, base: Base, step: StepKind) -> list[str]:
        """What a user should know of a loaded model."""

    def objective(self) -> Objective[Any]:
        """What it is trained by."""

    def open_step(
        self, base: Base, lanes: Sequence[Lane], rows: Sequence[Tokens], *, ended: bool = False
    ) -> AbstractContextManager[EagerStep | CudaGraphStep]:
        """The step; the eager one, which costs nothing to make, when every lane is at its end."""

    @property
    def evaluate(self) -> Evaluate:
        """Each lane's answers, scored, as soon as they are there."""

    def loss(self, base: Base, rows: Sequence[Tokens], lane: int = 0) -> float:
        """The mean loss of these rows, by one lane of the model."""


class Writes:
    """A causal language model: its answer is generated."""

    writes = True

    def read(self, folder: Path) -> Any:
        import torch

        from tsugiki.model.loading import read_model

        return read_model(folder, torch.float32, only_names=True)

    def load(self, source: BaseSource) -> Base:
        from tsugiki.model.loading import load_base

        return load_base(source)

    @property
    def rows(self) -> RowsOf:
        from tsugiki.runs.preflight import rows_of

        return rows_of

    @property
    def look_at_rows(self) -> LookAtRows:
        from tsugiki.runs.preflight import look_at_rows

        return look_at_rows

    def ends(self, tokenizer: Tokenizer, stops: Sequence[int]) -> str:
        ids = sorted({tokenizer.eos_token_id, *stops})
        said = " ".join(str(token) for token in tokenizer.convert_ids_to_tokens(ids))
        return Message("check.ends_at", ends=said)

    def notes(self, base: Base, step: StepKind) -> list[str]:
        from tsugiki.fast.cuda_graphs import why_eager
        from tsugiki.model.look import look_of

        why = why_eager(base.model, base.device, base.numerics, step)
        return [*([] if why is None else [why]), *look_of(base.model).notes]

    def objective(self) -> Objective[Any]:
        from tsugiki.train.objective import ANSWER_TOKENS

        return ANSWER_TOKENS

    def open_step(
        self, base: Base, lanes: Sequence[Lane], rows: Sequence[Tokens], *, ended: bool = False
    ) -> AbstractContextManager[EagerStep | CudaGraphStep]:
        from tsugiki.data.prompts import pad_id_of
        from tsugiki.train.open_step import open_step
        from tsugiki.train.step import EagerStep

        pad, device, numerics = pad_id_of(base.tokenizer), base.device, base.numerics
        if ended:
            return nullcontext(EagerStep(base.model, rows, pad, device, numerics))
        return open_step(base.model, lanes, rows, pad_id=pad, device=device, numerics=numerics)

    @property
    def evaluate(self) -> Evaluate:
        from tsugiki.score.evaluate import evaluate_lanes

        return evaluate_lanes

    def loss(self, base: Base, rows: Sequence[Tokens], lane: int = 0) -> float:
        from tsugiki.data.prompts import pad_id_of
        from tsugiki.model.lora import lanes_on
        from tsugiki.score.choices import log_probs

        pairs = [(row.prompt_ids, row.target_ids) for row in rows]
        with lanes_on(base.model).only(lane):
            read = log_probs(base.model, pairs, pad_id_of(base.tokenizer), base.numerics)
        return -sum(map(sum, read)) / sum(map(len, read))


class Chooses:
    """An encoder: its answer is the likeliest of those that the row has."""

    writes = False

    def read(self, folder: Path) -> Any:
        import torch

        from tsugiki.model.encoder import read_encoder

        return read_encoder(folder, torch.float32, only_names=True)

    def load(self, source: BaseSource) -> Base:
        from tsugiki.model.encoder import look_at_encoder, read_encoder
        from tsugiki.model.loading import load_base

        return load_base(source, read_encoder, look_at_encoder)

    @property
    def rows(self) -> RowsOf:
        from tsugiki.runs.preflight import pairs_of

        return pairs_of

    @property
    def look_at_rows(self) -> LookAtRows:
        from tsugiki.runs.preflight import look_at_pairs

        return look_at_pairs

    def ends(self, tokenizer: Tokenizer, stops: Sequence[int]) -> str:
        return Message("check.chooses")

    def notes(self, base: Base, step: StepKind) -> list[str]:
        return [Message("note.encoder_step")] if base.device.type == "cuda" else []

    def objective(self) -> Objective[Any]:
        from tsugiki.train.objective import RIGHT_ANSWER

        return RIGHT_ANSWER

    def open_step(
        self, base: Base, lanes: Sequence[Lane], rows: Sequence[Tokens], *, ended: bool = False
    ) -> AbstractContextManager[EagerStep | CudaGraphStep]:
        from tsugiki.data.prompts import pad_id_of
        from tsugiki.train.step import EagerStep

        pad, device, numerics = pad_id_of(base.tokenizer), base.device, base.numerics
        return nullcontext(EagerStep(base.model, rows, pad, device, numerics, self.objective()))

    @property
    def evaluate(self) -> Evaluate:
        from tsugiki.score.right_answer import evaluate_encoder

        return evaluate_encoder

    def loss(self, base: Base, rows: Sequence[Tokens], lane: int = 0) -> float:
        from tsugiki.score.right_answer import mean_loss

        return mean_loss(base, rows)


WRITES, CHOOSES = Writes(), Chooses()
