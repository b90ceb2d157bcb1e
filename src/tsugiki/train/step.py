"""One optimiser step of one or more lanes, eager: forward and backward of every micro-batch, then
the updates.

This is the reference path and the CPU path; a CUDA-graph step has the same face.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from tsugiki.data.prompts import Tokens
from tsugiki.model.numerics import Numerics
from tsugiki.train.full_weights import FullWeights
from tsugiki.train.lane import Lane
from tsugiki.train.meter import free_memory
from tsugiki.train.objective import ANSWER_TOKENS, Objective, StepBatch


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Mean loss a target token (of an encoder: a row) and gradient norm (both on the device, not
    yet fetched), and what was read."""

    loss: torch.Tensor
    norm: torch.Tensor
    num_tokens: int


class EagerStep:
    """Steps of any lanes over one model. Where a backward pass runs out of memory, the step is
    made anew in passes of half as many rows, and so are those after it: which rows make a step
    never changes."""

    peak_bytes = 0  # what was allocated before the first step and belongs to every step: nothing

    def __init__(
        self,
        model: Any,
        rows: Sequence[Tokens],
        pad_id: int,
        device: torch.device,
        numerics: Numerics,
        objective: Objective[Any] = ANSWER_TOKENS,
    ):
        self.model, self.objective = model, objective
        self.rows, self.pad_id, self.device, self.numerics = rows, pad_id, device, numerics
        self.most_rows: int | None = None  # of a lane in a backward pass

    @property
    def kind(self) -> str:
        """For the record."""
        cut = self.most_rows is not None
        return f"eager, at most {self.most_rows} rows a backward pass" if cut else "eager"

    def __call__(self, lanes: Sequence[Lane]) -> list[StepResult]:
        """The coming step of each lane. Lanes share the base's matmuls; all but the last
        micro-batches hold rows of every lane."""
        numbers = [lane.rows() for lane in lanes]
        size = self.objective.size
        sizes = [sum(size(self.rows[number]) for number in own) for own in numbers]
        if lanes[0].adamw.looks_first:
            self._passes(lanes, numbers, sizes, live=False)
        losses = self._backward(lanes, numbers, sizes)
        while losses is None:
            free_memory(self.device)
            losses = self._backward(lanes, numbers, sizes)
        lanes[0].moves.bank.clear_batch()
        return [
            StepResult(
                loss=losses[index],
                norm=lane.update(),
                num_tokens=sum(len(self.rows[number]) for number in numbers[index]),
            )
            for index, lane in enumerate(lanes)
        ]

    def _backward(
        self, lanes: Sequence[Lane], numbers: Sequence[list[int]], sizes: Sequence[int]
    ) -> list[torch.Tensor] | None:
        """`_passes`; None where memory ran out, and smaller ones are to be tried."""
        try:
            return self._passes(lanes, numbers, sizes)
        except torch.OutOfMemoryError:
            rows = max(len(part) for part in _micro_batches(lanes, numbers, self.most_rows)[0])
            # Where a backward pass moves what it has the gradient of, it cannot be made twice.
            if rows == 1 or isinstance(lanes[0].moves, FullWeights):
                raise
            self.most_rows = rows // 2
        lanes[0].moves.bank.clear_batch()
        for lane in lanes:
            lane.adamw.clear()
        return None

    def _passes(
        self,
        lanes: Sequence[Lane],
        numbers: Sequence[list[int]],
        sizes: Sequence[int],
        *,
        live: bool = True,
    ) -> list[torch.Tensor]:
        """All backward passes of a step; each lane's mean loss."""
        for lane in lanes:
            lane.set_rate(live=live)
        losses = [torch.zeros((), device=self.device) for _ in lanes]
        passes = _micro_batches(lanes, numbers, self.most_rows)
        if len(passes) > 1 and isinstance(lanes[0].moves, FullWeights):
            lanes[0].moves.sum_gradients()
        for parts in passes:
            own = [index for index, part in enumerate(parts) if part]
            numbers_here = [number for part in parts for number in part]
            batch = self.objective.batch(
                [self.rows[number] for number in numbers_here], numbers_here, self.pad_id
            ).to(self.device)
            _set_batch(lanes, parts, batch)
            with self.numerics.autocast(self.device):
                counts = [len(parts[index]) for index in own]
                sums = self.objective.sums(self.model, batch, counts)
                means = [
                    each / sizes[index] for index, each in zip(own, sums.unbind(), strict=True)
                ]
                loss = torch.stack(means).sum()
            lanes[0].adamw.backward(loss)
            for index, mean in zip(own, means, strict=True):
                losses[index] += mean.detach()
        return losses

    def paused(self) -> AbstractContextManager[None]:
        """Within it the model may be used for something else."""
        return nullcontext()


def _micro_batches(
    lanes: Sequence[Lane], numbers: Sequence[list[int]], most: int | None
) -> list[list[list[int]]]:
    """One entry for each backward pass: the row numbers of each lane in it, `most` rows at most
    (none where a lane needs fewer passes)."""
    parts = []
    for lane, own in zip(lanes, numbers, strict=True):
        configured = lane.config.micro_batch or lane.config.batch
        micro = min(configured, most or configured)
        parts.append([own[start : start + micro] for start in range(0, len(own), micro)])
    return [list(each) for each in zip_longest(*parts, fillvalue=[])]


def _set_batch(lanes: Sequence[Lane], parts: Sequence[list[int]], batch: StepBatch) -> None:
    """Tells the adapters whose rows are coming, and what their dropout is drawn from. Lanes of the
    bank that are not among these have no rows."""
    bank = lanes[0].moves.bank
    shares, steps = [0] * bank.num_lanes, [0] * bank.num_lanes
    for lane, part in zip(lanes, parts, strict=True):
        shares[lane.moves.number], steps[lane.moves.number] = len(part), lane.step
    bank.set_batch(shares, batch.rows[:, None], batch.positions, steps)
