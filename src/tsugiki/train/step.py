"""One optimiser step of one lane, eager: forward and backward of every micro-batch, then the update.

This is the reference path and the CPU path; a captured step has the same face.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tsugiki.data.batch import Batch, collate
from tsugiki.data.prompts import Tokens
from tsugiki.model.loading import Numerics, backbone_and_head
from tsugiki.train.lane import Lane
from tsugiki.train.loss import summed_loss


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Mean loss a target token and gradient norm (both on the device, not yet fetched), and what was read."""

    loss: torch.Tensor
    norm: torch.Tensor
    num_rows: int
    num_tokens: int
    num_target_tokens: int


class EagerStep:
    """Steps of any lane over one model."""

    kind = "eager"
    peak_bytes = 0  # what was allocated before the first step and belongs to every step: nothing

    def __init__(self, model: Any, rows: Sequence[Tokens], pad_id: int, device: torch.device, numerics: Numerics):
        self.backbone, self.head = backbone_and_head(model)
        self.rows, self.pad_id, self.device, self.numerics = rows, pad_id, device, numerics

    def __call__(self, lane: Lane) -> StepResult:
        numbers = lane.rows()
        micro = lane.config.micro_batch or lane.config.batch
        batches = [self._batch(numbers[start : start + micro]) for start in range(0, len(numbers), micro)]
        num_targets = sum(batch.num_target_tokens for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            moved = batch.to(self.device)
            if lane.clock is not None:
                lane.clock.step, lane.clock.rows, lane.clock.positions = lane.step, moved.rows[:, None], moved.positions
            with self.numerics.autocast(self.device):
                loss = summed_loss(self.backbone, self.head, moved) / num_targets
            loss.backward()
            total += loss.detach()
        if lane.clock is not None:
            lane.clock.rows = None
        return StepResult(
            loss=total,
            norm=lane.update(),
            num_rows=len(numbers),
            num_tokens=sum(batch.num_tokens for batch in batches),
            num_target_tokens=num_targets,
        )

    def paused(self) -> AbstractContextManager[None]:
        """Within it the model may be used for something else."""
        return nullcontext()

    def _batch(self, numbers: list[int]) -> Batch:
        return collate([self.rows[number] for number in numbers], numbers, self.pad_id)
