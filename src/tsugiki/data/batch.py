"""`Tokens → Batch`: rows padded to the longest, and a seeded order that any step can be resumed
from.

input_ids   p p p a a e _ _        labels   . . . a a e . .
            p p p p p a a e                 . . . . . a a e
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from tsugiki.data.prompts import Tokens

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded rows: all tensors [b, t]; `labels` is `IGNORED` wherever there is no loss;
    `rows` are row numbers [b]."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor

    @property
    def positions(self) -> torch.Tensor:
        """[1, t]"""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device)[None]

    @property
    def num_target_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())

    @property
    def num_tokens(self) -> int:
        return int(self.attention_mask.sum())

    def to(self, device: torch.device) -> Batch:
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("input_ids", "attention_mask", "labels", "rows")
        }
        return Batch(**moved)


def collate(rows: Sequence[Tokens], numbers: Sequence[int], pad_id: int) -> Batch:
    """Pads on the right. `pad_id` may equal the EOS token: the loss goes by position, not by id."""
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids = torch.tensor([*row.prompt_ids, *row.target_ids])
        input_ids[index, : len(ids)] = ids
        mask[index, : len(ids)] = 1
        labels[index, len(row.prompt_ids) : len(ids)] = ids[len(row.prompt_ids) :]
    return Batch(
        input_ids=input_ids, attention_mask=mask, labels=labels, rows=torch.tensor(list(numbers))
    )


def longest_first(lengths: Sequence[int], rows_of: Callable[[int], int]) -> Iterator[list[int]]:
    """Row numbers in batches of like length, the longest first; `rows_of(longest)` says how many
    rows a batch holds."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        stop = start + rows_of(lengths[order[start]])
        yield order[start:stop]
        start = stop


def num_steps(num_rows: int, batch: int, epochs: float) -> int:
    """Optimiser steps of a run."""
    return max(1, math.ceil(epochs * -(-num_rows // batch)))


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which rows make step number `i`: a function of (seed, step) alone, so that a resumed run
    draws the same rows."""

    num_rows: int
    batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_rows // self.batch)

    def rows_of(self, step: int) -> list[int]:
        """Row numbers of `step`; the last step of an epoch may be short."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = _permutation(self.seed, epoch, self.num_rows)
        return [int(row) for row in order[index * self.batch : (index + 1) * self.batch]]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_rows)
