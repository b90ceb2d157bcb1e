"""The optimiser step near the device's limit: packed rows, fused matmuls, compiled layers, CUDA
graphs.

A few shapes are planned from the lanes' own rows before the first step. For each, forward and
backward are captured as one CUDA graph; clipping and the optimiser as another. A step is then:
pack on the host, one copy, two or more replays. The eager step (`train/step`) is the reference:
same rows, same masks, same loss to bf16 noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch

from tsugiki.data.packing import (
    PackableRows,
    PackedBatch,
    PackedShape,
    largest_of,
    plan_shapes,
    shape_for,
    split_rows,
)
from tsugiki.fast.attention import attending
from tsugiki.fast.cuda_graphs import GraphCapturer, layer_calls
from tsugiki.fast.rotary import deferred_rope
from tsugiki.train.full_weights import FullWeights
from tsugiki.train.lane import Lane
from tsugiki.train.packed_forward import PackedForward
from tsugiki.train.step import StepResult

HOST_BUFFERS = 8
# Captured at most: filled-up tokens cost every lane, a capture costs a group once.
SHAPES, SHAPES_OF_LANES = 8, 20
NOTHING: list[int] = []


class CudaGraphStep:
    """Steps of one or more lanes on CUDA. Make it with `open_step`; it captures everything before
    the first step."""

    recomputed = False
    attention = "sdpa"  # the model's own, before it was rewired

    def __init__(self, forward: PackedForward, rows: PackableRows, max_tokens: int | None):
        self.forward, self.lanes, self.rows, self.max_tokens = (
            forward,
            forward.lanes,
            rows,
            max_tokens,
        )
        device = forward.device
        self.plans = self._plan()
        moves = self.lanes[0].moves
        cut = any(len(parts) > 1 for plan in self.plans for parts in plan)
        if isinstance(moves, FullWeights) and cut:
            moves.sum_gradients()
        # Gradients that are handed over lie in the memory of the graph that made them: the update
        # is part of it.
        self.updates_itself = isinstance(moves, FullWeights) and not cut
        wanted, fewest = self._wanted()
        most = SHAPES if len(self.lanes) == 1 else SHAPES_OF_LANES
        self.shapes = plan_shapes(
            list(wanted), most=most, lanes=len(self.lanes), fewest=list(fewest.values())
        )
        self.capturer = GraphCapturer(device)
        torch.cuda.reset_peak_memory_stats(device)
        self.losses = torch.zeros(len(self.lanes), device=device)
        self.results = torch.zeros(2, len(self.lanes), device=device)
        self.batches = [
            PackedBatch(
                shape=shape, buffer=torch.zeros(shape.size, dtype=torch.long, device=device)
            )
            for shape in self.shapes
        ]
        self.host = [
            torch.zeros(max(shape.size for shape in self.shapes), dtype=torch.long, pin_memory=True)
            for _ in range(HOST_BUFFERS)
        ]
        self.copied = [torch.cuda.Event() for _ in range(HOST_BUFFERS)]
        self.turn = 0
        self.coming = [lane.step for lane in self.lanes]
        self.graphs = self._capture_all(wanted, fewest)
        self.update = None if self.updates_itself else self.capturer.capture(self._update)
        # A replay allocates nothing that the allocator sees: what a step needs shows while it is
        # captured.
        self.peak_bytes = torch.cuda.max_memory_allocated(device)

    @property
    def kind(self) -> str:
        """For the record: `cuda_graph`, and what memory asked for."""
        moves = self.lanes[0].moves
        by_layer = isinstance(moves, FullWeights) and moves.moves_in_backward
        said = [
            f"at most {self.max_tokens:,} tokens a backward pass" if self.max_tokens else "",
            "gradients by layer" if by_layer else "",
            "layers computed twice" if self.recomputed else "",
        ]
        return ", ".join(["cuda_graph", *filter(None, said)])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it the model may be used for something else: its layers run as written, not as
        compiled for training."""
        model = self.forward.model
        with (
            attending(model, self.attention),
            layer_calls(model, lambda layer, compiled: None),
            deferred_rope(model, deferred=False),
        ):
            yield

    def _plan(self) -> list[list[list[list[int]]]]:
        """For each lane and step its micro-batches; lanes of one order share the list."""
        plans: dict[tuple[Any, ...], list[list[list[int]]]] = {}
        keys = [(lane.order, lane.config.micro_batch) for lane in self.lanes]
        for lane, key in zip(self.lanes, keys, strict=True):
            if len(plans.get(key, ())) < lane.steps:
                plans[key] = [
                    self._split(lane, lane.order.rows_of(step)) for step in range(lane.steps)
                ]
        return [plans[key] for key in keys]

    def _split(self, lane: Lane, numbers: Sequence[int]) -> list[list[int]]:
        return split_rows(
            numbers, self.rows.lengths, max_rows=lane.config.micro_batch, max_tokens=self.max_tokens
        )

    def _wanted(self) -> tuple[dict[PackedShape, list[list[int]]], dict[PackedShape, int]]:
        """Every shape that some step asks for, with rows (of each lane) that ask for it; and the
        fewest tokens of any lane in it."""
        wanted: dict[PackedShape, list[list[int]]] = {}
        fewest: dict[PackedShape, int] = {}
        different = {id(plan): plan for plan in self.plans}
        leading = max(different.values(), key=len)
        for step in range(len(leading)):
            for parts in zip_longest(
                *(plan[step] if step < len(plan) else leading[step] for plan in different.values()),
                fillvalue=NOTHING,
            ):
                by_plan = dict(zip(different, parts, strict=True))
                exact = [self.rows.exact_shape(part) for part in parts]
                shape, least = largest_of(exact), min(shape.tokens for shape in exact)
                if least <= fewest.get(shape, least):
                    fewest[shape], wanted[shape] = least, [by_plan[id(plan)] for plan in self.plans]
        return wanted, fewest

    def _capture_all(
        self, wanted: dict[PackedShape, list[list[int]]], fewest: dict[PackedShape, int]
    ) -> list[torch.cuda.CUDAGraph]:
        """Captures the work of every shape, the largest first; real rows are in the buffers while
        kernels warm up."""
        with warnings.catch_warnings():
            # The compiler looks at it.
            warnings.filterwarnings(
                "ignore", message="The .grad attribute of a Tensor that is not a leaf"
            )
            return self._capture(wanted, fewest)

    def _capture(
        self, wanted: dict[PackedShape, list[list[int]]], fewest: dict[PackedShape, int]
    ) -> list[torch.cuda.CUDAGraph]:
        example = {
            shape_for(shape, self.shapes, fewest[shape]): parts for shape, parts in wanted.items()
        }
        works = [self._work(batch) for batch in self.batches]
        # All are warmed up before the first is captured: what a warm-up takes would come on top of
        # what the graphs keep.
        for index, (batch, work) in enumerate(zip(self.batches, works, strict=True)):
            parts = (
                example[index]
                if index in example
                else [part[:1] for part in next(iter(wanted.values()))]
            )
            self._load(batch, parts, num_targets=[1] * len(parts), steps=[0] * len(parts))
            for _ in range(2 if index == 0 else 1):
                self.capturer.warm_up(work)
        graphs = [self.capturer.capture(work) for work in works]
        for gradient in self.forward.gradients():
            gradient.zero_()
        self.losses.zero_()
        return graphs

    def _work(self, batch: PackedBatch) -> Callable[[], None]:
        def work() -> None:
            self.losses.add_(self.forward(batch))
            if self.updates_itself:
                self._update()

        return work

    def _update(self) -> None:
        norms = [lane.move() for lane in self.lanes]
        if gradients := self.forward.gradients():
            torch._foreach_zero_(gradients)
        if self.forward.compute_copy is not None:
            self.forward.compute_copy.refresh()
        self.results.copy_(torch.stack([self.losses, torch.stack(norms)]))
        self.losses.zero_()

    def _load(
        self,
        batch: PackedBatch,
        parts: Sequence[list[int]],
        *,
        num_targets: Sequence[int],
        steps: Sequence[int],
    ) -> None:
        """Packs each lane's rows into the next free pinned buffer and sends it on its way."""
        self.turn = (self.turn + 1) % HOST_BUFFERS
        self.copied[self.turn].synchronize()  # its last copy: eight micro-batches ago
        host = self.host[self.turn][: batch.shape.size]
        packed: dict[tuple[int, int], Any] = {}
        for part, stretch, targets, step in zip(
            parts, host.view(batch.shape.lanes, -1).numpy(), num_targets, steps, strict=True
        ):
            if (key := (id(part), step)) in packed:
                stretch[:] = packed[key]  # lanes of one order read the same rows
            else:
                self.rows.pack(part, batch.shape, stretch, num_targets=max(targets, 1), step=step)
                packed[key] = stretch
        batch.buffer.copy_(host, non_blocking=True)
        self.copied[self.turn].record()

    def close(self) -> None:
        """Gives the memory of the graphs and of full-size gradients back, before answers are
        generated."""
        self.graphs.clear()
        self.batches.clear()
        del self.update, self.capturer
        self.lanes[0].moves.free_gradients()
        torch.cuda.empty_cache()

    def __call__(self, lanes: Sequence[Lane]) -> list[StepResult]:
        """The coming step of each of `lanes`; the others of the graph idle: they read what the
        first reads, and move nowhere."""
        going = {id(lane) for lane in lanes}
        assert going <= {id(lane) for lane in self.lanes}, "a CUDA-graph step belongs to its lanes"
        if [
            lane.step for lane in self.lanes
        ] != self.coming and self.forward.compute_copy is not None:
            self.forward.compute_copy.refresh()  # a checkpoint was loaded
        leading = next(
            plan[lane.step]
            for lane, plan in zip(self.lanes, self.plans, strict=True)
            if id(lane) in going
        )
        plans = [
            plan[lane.step] if id(lane) in going else leading
            for lane, plan in zip(self.lanes, self.plans, strict=True)
        ]
        numbers = [[number for part in parts for number in part] for parts in plans]
        num_targets = [int(self.rows.num_targets[own].sum()) for own in numbers]
        if self.lanes[0].adamw.looks_first:
            self._replay(plans, num_targets, going, live=False)
        self._replay(plans, num_targets, going)
        losses, norms = self.results.clone().unbind()
        results = []
        for index, lane in enumerate(self.lanes):
            if id(lane) in going:
                lane.count()
                tokens = int(self.rows.lengths[numbers[index]].sum())
                results.append(StepResult(loss=losses[index], norm=norms[index], num_tokens=tokens))
        self.coming = [lane.step for lane in self.lanes]
        return results

    def _replay(
        self,
        plans: Sequence[list[list[int]]],
        num_targets: Sequence[int],
        going: Collection[int],
        *,
        live: bool = True,
    ) -> None:
        """All backward passes of a step, and its update."""
        steps = [lane.step for lane in self.lanes]
        for lane in self.lanes:
            lane.set_rate(idle=id(lane) not in going, live=live)
        for parts in zip_longest(*plans, fillvalue=NOTHING):
            exact = [
                self.rows.exact_shape(part) for part in {id(part): part for part in parts}.values()
            ]
            index = shape_for(largest_of(exact), self.shapes, min(shape.tokens for shape in exact))
            self._load(self.batches[index], parts, num_targets=num_targets, steps=steps)
            self.graphs[index].replay()
        if self.update is not None:
            self.update.replay()
