"""Rows packed without padding, and the few shapes that a CUDA-graph step is captured for.

rows      p p p a e | p p a e | p p p p a a e        documents, one after another
input_ids p p p a e p p a e p p p p a a e 0 0        filled up to the shape: one more, idle document
positions 0 1 2 3 4 0 1 2 3 0 1 2 3 4 5 6 0 0        the idle document's are all 0
cu_seq    0         5       9             16  18 18  fixed length: empty documents at the end
sources       2 3       6 7         12 13 14 0       where targets are predicted from; idle: 0
targets       a e       a e          a  a  e .

Several lanes lie one after another, each in a stretch of the same shape; their idle tokens may
need several documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tsugiki.data.batch import IGNORED
from tsugiki.data.prompts import Tokens


@dataclass(frozen=True, kw_only=True)
class PackedShape:
    """Upper limits that each lane's rows of a micro-batch fit into: packed tokens, documents,
    longest document, target tokens.

    `idle` documents take the tokens that are left.
    """

    tokens: int
    documents: int
    longest: int
    targets: int
    lanes: int = 1
    idle: int = 1

    @property
    def parts(self) -> dict[str, int]:
        """Lengths of the integer vectors of one lane, in the order they are stored in."""
        return {
            "input_ids": self.tokens,
            "positions": self.tokens,
            "rows": self.tokens,
            "sources": self.targets,
            "targets": self.targets,
            "cu_seq": self.documents + 1 + self.idle,
            "scalars": 2,
        }

    @property
    def lane_size(self) -> int:
        return sum(self.parts.values())

    @property
    def size(self) -> int:
        return self.lanes * self.lane_size

    def views(self, vector: Any) -> dict[str, Any]:
        """The parts of integers [..., lane_size] (NumPy or torch), by name."""
        views, start = {}, 0
        for name, length in self.parts.items():
            views[name] = vector[..., start : start + length]
            start += length
        return views


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One integer vector [size] on one device that holds all of a packed batch, and its shape.

    `input_ids`, `positions`, `rows` [n]; `sources`, `targets` [m]; `cu_seq` [documents and idle
    ones + 1]: lane after lane. `num_targets` (of a lane's whole optimiser step) and `step`
    [lanes]. `rows` are the row numbers in the data.
    """

    shape: PackedShape
    buffer: torch.Tensor

    def __getattr__(self, name: str) -> torch.Tensor:
        scalars = ("num_targets", "step")
        if name not in (*scalars, *self.shape.parts):
            raise AttributeError(name)
        views = self.shape.views(self.buffer.view(self.shape.lanes, -1))
        if name in scalars:
            column: torch.Tensor = views["scalars"][:, scalars.index(name)]
            return column
        view: torch.Tensor = views[name]
        # Counted from the lane's own first token.
        if self.shape.lanes > 1 and name in ("sources", "cu_seq"):
            view = (
                view
                + self.shape.tokens * torch.arange(self.shape.lanes, device=view.device)[:, None]
            )
        if name == "cu_seq":
            return torch.cat([view[0, :1], view[:, 1:].reshape(-1)])
        return view.reshape(-1)


@dataclass(frozen=True, kw_only=True)
class PackableRows:
    """Rows as arrays, with their lengths: what `pack` and `plan_shapes` read."""

    ids: list[np.ndarray]
    lengths: np.ndarray
    num_targets: np.ndarray

    @staticmethod
    def of(rows: Sequence[Tokens]) -> PackableRows:
        ids = [np.array([*row.prompt_ids, *row.target_ids], dtype=np.int64) for row in rows]
        return PackableRows(
            ids=ids,
            lengths=np.array([len(row_ids) for row_ids in ids]),
            num_targets=np.array([len(row.target_ids) for row in rows]),
        )

    def exact_shape(self, numbers: Sequence[int]) -> PackedShape:
        """The smallest shape that holds these rows (of one lane)."""
        picked = list(numbers)
        if not picked:
            return PackedShape(tokens=0, documents=0, longest=0, targets=0)
        lengths = self.lengths[picked]
        return PackedShape(
            tokens=int(lengths.sum()),
            documents=len(picked),
            longest=int(lengths.max()),
            targets=int(self.num_targets[picked].sum()),
        )

    def pack(
        self,
        numbers: Sequence[int],
        shape: PackedShape,
        out: np.ndarray,
        *,
        num_targets: int,
        step: int,
    ) -> None:
        """Writes the rows `numbers` into one lane's `out` [shape.lane_size]."""
        views = shape.views(out)
        out[:] = 0
        views["targets"][:] = IGNORED
        views["scalars"][:] = num_targets, step
        token = target = 0
        for document, number in enumerate(numbers):
            ids, wanted = self.ids[number], int(self.num_targets[number])
            stop = token + len(ids)
            views["input_ids"][token:stop] = ids
            views["positions"][token:stop] = np.arange(len(ids))
            views["rows"][token:stop] = number
            views["sources"][target : target + wanted] = np.arange(stop - wanted - 1, stop - 1)
            views["targets"][target : target + wanted] = ids[len(ids) - wanted :]
            views["cu_seq"][document + 1] = stop
            token, target = stop, target + wanted
        idle = views["cu_seq"][len(numbers) + 1 :]
        idle[:] = np.minimum(token + shape.longest * np.arange(1, len(idle) + 1), shape.tokens)
        idle[-1] = shape.tokens


def split_rows(
    numbers: Sequence[int], lengths: np.ndarray, *, max_rows: int | None, max_tokens: int | None
) -> list[list[int]]:
    """The rows of a step in order, cut into micro-batches of at most `max_rows` rows and
    `max_tokens` tokens (one row at least)."""
    parts: list[list[int]] = []
    tokens = 0
    for number in numbers:
        length = int(lengths[number])
        full = (
            not parts
            or (max_rows and len(parts[-1]) >= max_rows)
            or (max_tokens and tokens + length > max_tokens)
        )
        if full:
            parts.append([])
            tokens = 0
        parts[-1].append(number)
        tokens += length
    return parts


def largest_of(shapes: Sequence[PackedShape]) -> PackedShape:
    """The smallest shape that holds each of these."""
    return PackedShape(
        **{
            name: max(getattr(shape, name) for shape in shapes)
            for name in ("tokens", "documents", "longest", "targets")
        }
    )


def plan_shapes(
    wanted: Sequence[PackedShape],
    *,
    most: int = 8,
    lanes: int = 1,
    fewest: Sequence[int] | None = None,
) -> list[PackedShape]:
    """At most `most` shapes that hold every wanted one, chosen so that the fewest tokens are
    filled up; largest first.

    Token counts are rounded up to a sixty-fourth of the largest (at least 16: a matmul's tile),
    then cut into groups by dynamic programming over the sorted counts. With several lanes each
    gets a stretch of the shape; `fewest` are the tokens of the lane that has the fewest, whose
    idle documents fill the rest. The first shape holds any mixture of what is wanted.
    """
    largest = max(shape.tokens for shape in wanted)
    grain = max(16, -(-largest // 64 // 16) * 16)
    rounded = np.array([-(-shape.tokens // grain) * grain for shape in wanted])
    counts, times = np.unique(rounded, return_counts=True)
    edges = _best_edges(counts, times, most)
    least = [shape.tokens for shape in wanted] if fewest is None else list(fewest)
    shapes = []
    for low, high in zip([0, *edges[:-1]], edges, strict=True):
        indices = [index for index, tokens in enumerate(rounded) if low < tokens <= high]
        inside = largest_of([wanted[index] for index in indices])
        longest = -(-inside.longest // 16) * 16
        slack = high - min(least[index] for index in indices)
        rounded_up = {
            "tokens": high,
            "longest": longest,
            "targets": -(-inside.targets // 8) * 8,
            "lanes": lanes,
        }
        shapes.append(replace(inside, **rounded_up, idle=max(1, -(-slack // longest))))
    shapes = shapes[::-1]
    if lanes > 1:
        whole = replace(largest_of(shapes), lanes=lanes)
        shapes[0] = replace(whole, idle=-(-whole.tokens // whole.longest))
    return shapes


def _best_edges(counts: np.ndarray, times: np.ndarray, most: int) -> list[int]:
    """Upper edges (ascending) of at most `most` groups of the sorted `counts`: Σ times · (edge -
    count) is least."""
    num = len(counts)
    weight, mass = (
        np.concatenate([[0], np.cumsum(times)]),
        np.concatenate([[0], np.cumsum(times * counts)]),
    )

    def cost(start: int, stop: int) -> float:
        return float(counts[stop - 1] * (weight[stop] - weight[start]) - (mass[stop] - mass[start]))

    best = [[0.0] + [float("inf")] * num]
    cut = [[0] * (num + 1)]
    for _ in range(min(most, num)):
        row, where = [0.0] + [float("inf")] * num, [0] * (num + 1)
        for stop in range(1, num + 1):
            choices = [best[-1][start] + cost(start, stop) for start in range(stop)]
            where[stop] = int(np.argmin(choices))
            row[stop] = choices[where[stop]]
        best.append(row)
        cut.append(where)
    edges, stop = [], num
    for level in range(len(cut) - 1, 0, -1):
        if stop == 0:
            break
        edges.append(int(counts[stop - 1]))
        stop = cut[level][stop]
    return edges[::-1]


def shape_for(shape: PackedShape, shapes: Sequence[PackedShape], fewest: int | None = None) -> int:
    """Index of the smallest of `shapes` (largest first) that holds `shape`, and whose idle
    documents hold what the lane with the `fewest` tokens leaves."""
    for index in range(len(shapes) - 1, -1, -1):
        room = shapes[index]
        slack = room.tokens - shape.tokens
        idle_fits = (
            room.tokens - (shape.tokens if fewest is None else fewest) <= room.longest * room.idle
        )
        fits = (
            slack >= 0
            and idle_fits
            and room.documents >= shape.documents
            and room.longest >= shape.longest
            and room.targets >= shape.targets
        )
        if fits:
            return index
    raise AssertionError(f"no planned shape holds {shape}: the plan was made for other rows")
