"""What a step learns: an `Objective` turns rows into a batch, and a batch into a loss for each
lane. The engine and the step know no other difference between a model that writes its answers and
an encoder that chooses one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
import torch.nn.functional as F

from tsugiki.data.batch import Batch, collate
from tsugiki.data.pairs import PairBatch, collate_pairs
from tsugiki.data.prompts import Tokens
from tsugiki.model.encoder import Encoder
from tsugiki.model.loading import backbone_and_head
from tsugiki.train.loss import summed_losses


class StepBatch(Protocol):
    """Of a batch, what a step reads itself: row numbers [rows], positions [1, t]."""

    @property
    def rows(self) -> torch.Tensor: ...

    @property
    def positions(self) -> torch.Tensor: ...

    def to(self, device: torch.device) -> Self: ...


B = TypeVar("B", bound=StepBatch)


class Objective(Protocol[B]):
    """A loss over rows. A lane's loss of a step is the sum over its rows, divided by the sum of
    their sizes."""

    def size(self, row: Tokens) -> int:
        """What a row counts in the mean."""

    def batch(self, rows: Sequence[Tokens], numbers: Sequence[int], pad_id: int) -> B:
        """Rows, with their numbers, as tensors."""

    def sums(self, model: Any, batch: B, rows: Sequence[int]) -> torch.Tensor:
        """The summed loss [k] of each lane's stretch of so many rows, in fp32."""


class AnswerTokens:
    """Cross-entropy over the tokens of the answer: of models that write."""

    def size(self, row: Tokens) -> int:
        return len(row.target_ids)

    def batch(self, rows: Sequence[Tokens], numbers: Sequence[int], pad_id: int) -> Batch:
        return collate(rows, numbers, pad_id)

    def sums(self, model: Any, batch: Batch, rows: Sequence[int]) -> torch.Tensor:
        return summed_losses(*backbone_and_head(model), batch, rows)


class RightAnswer:
    """Cross-entropy over the answers that a row has: of encoders."""

    def size(self, row: Tokens) -> int:
        return 1

    def batch(self, rows: Sequence[Tokens], numbers: Sequence[int], pad_id: int) -> PairBatch:
        return collate_pairs(rows, numbers, pad_id)

    def sums(self, model: Encoder, batch: PairBatch, rows: Sequence[int]) -> torch.Tensor:
        logits = model(batch.ids, batch.mask, batch.types, batch.index)
        losses = F.cross_entropy(logits, batch.right, reduction="none")
        return torch.stack([part.sum() for part in losses.split(list(rows))])


ANSWER_TOKENS, RIGHT_ANSWER = AnswerTokens(), RightAnswer()
