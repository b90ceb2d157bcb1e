"""The adapters of all lanes over one base, in one block, and which part of a batch is whose.

flat [k, P]     see the picture in `model/lora`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from tsugiki.config.run import LoraConfig


@dataclass
class DropoutClock:
    """What the dropout masks of one lane are drawn from, besides rows and positions. `step` may
    live on the device."""

    seed: int = 0
    step: int | torch.Tensor = 0


@dataclass
class AdapterBank:
    """What the adapted layers share: the adapters of all lanes, and which part of a batch is whose.

    Tokens lie lane after lane: lane i has `shares[i]` of `sum(shares)` equal parts of the
    flattened batch. `rows` [b, 1] and `positions` [1, t] of a padded batch, both [1, n] of a
    packed one, are what dropout reads; `rows` is None when nothing is dropped out.
    """

    flat: torch.Tensor
    scales: torch.Tensor
    configs: list[LoraConfig]
    clocks: list[DropoutClock]
    shares: tuple[int, ...]
    rows: torch.Tensor | None = None
    positions: torch.Tensor | None = None
    off: bool = False
    _gradient: torch.Tensor | None = field(default=None, repr=False)

    @property
    def gradient(self) -> torch.Tensor:
        """[k, P], laid out like `flat`; made at the first use."""
        if self._gradient is None:
            self._gradient = torch.zeros_like(self.flat)
        return self._gradient

    @property
    def equal(self) -> bool:
        """Whether every lane has the same part of the batch, so that one batched matmul serves
        all."""
        return len(set(self.shares)) == 1

    def sizes(self, num_tokens: int) -> list[int]:
        """Tokens of each lane among `num_tokens`, in lane order."""
        unit = num_tokens // sum(self.shares)
        return [share * unit for share in self.shares]

    @property
    def num_lanes(self) -> int:
        return len(self.clocks)

    def set_batch(
        self,
        shares: Sequence[int],
        rows: torch.Tensor,
        positions: torch.Tensor,
        steps: Sequence[int | torch.Tensor],
    ) -> None:
        """Whose rows are coming (parts of the batch by lane), and what dropout is drawn from."""
        self.shares, self.rows, self.positions = tuple(shares), rows, positions
        for clock, step in zip(self.clocks, steps, strict=True):
            clock.step = step

    def clear_batch(self) -> None:
        """No rows are in work: nothing is dropped out, and a whole batch is every lane's."""
        self.shares, self.rows, self.positions = (1,) * self.num_lanes, None, None

    @contextmanager
    def only(self, lane: int) -> Iterator[None]:
        """Within it the whole batch belongs to one lane."""
        before = self.shares
        self.shares = tuple(int(number == lane) for number in range(len(before)))
        try:
            yield
        finally:
            self.shares = before


class NoAdapters:
    """What stands for the bank of a model without adapters: one lane, whose rows are all rows."""

    num_lanes = 1

    def set_batch(
        self,
        shares: Sequence[int],
        rows: torch.Tensor,
        positions: torch.Tensor,
        steps: Sequence[int | torch.Tensor],
    ) -> None:
        """Nothing is to be told."""

    def clear_batch(self) -> None:
        """Nothing is to be told."""

    @contextmanager
    def only(self, lane: int) -> Iterator[None]:
        yield


NO_ADAPTERS = NoAdapters()


@dataclass(frozen=True, kw_only=True)
class LayerAdapters:
    """One lane's adapters in one layer: `where` holds, for each of the layer's target slices, its
    number among the layer's adapters, or None."""

    scale: float
    dropout: float
    where: tuple[int | None, ...]
