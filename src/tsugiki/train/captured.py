"""The optimiser step near the device's limit: packed rows, fused products, layers compiled,
everything replayed.

A few shapes are planned from the lanes' own rows before the first step. For each, forward and
backward are recorded as one CUDA graph; clipping and the optimiser as another. A step is then:
pack on the host, one copy, two or more replays. The plain path (`train/step`) is the reference:
same rows, same masks, same loss to bf16 noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tsugiki.data.packing import (
    PackableRows,
    PackedBatch,
    PackedShape,
    largest_of,
    plan_shapes,
    shape_for,
    split_rows,
)
from tsugiki.data.prompts import Tokens
from tsugiki.errors import RunError
from tsugiki.fast.attention import PACKED, attending
from tsugiki.fast.cuda_graphs import Recorder, layer_calls, repeated_layers, takes_captured
from tsugiki.fast.fused_linears import Shadow, can_fuse, fused
from tsugiki.fast.rotary import rotation_left
from tsugiki.model.loading import Numerics, backbone_and_head
from tsugiki.train.lane import DoesNotFit, Lane
from tsugiki.train.loss import packed_losses
from tsugiki.train.step import EagerStep, StepResult

HOST_BUFFERS = 8
# Recorded at most: filled-up tokens cost every lane, a recording costs a group once.
SHAPES, SHAPES_OF_LANES = 8, 20
NOTHING: list[int] = []
MOST_VARIANTS = 64  # of a layer compiled in one process: methods, targets, ranks


class PackedForward:
    """Forward and backward of one packed micro-batch of all lanes; adds to their gradients. Runs
    on any device, recorded or not."""

    def __init__(
        self,
        model: Any,
        lanes: Sequence[Lane],
        numerics: Numerics,
        device: torch.device,
        shadow: Shadow | None,
    ):
        self.model = model
        self.backbone, self.head = backbone_and_head(model)
        self.embed: nn.Module = model.get_input_embeddings()
        self.lanes, self.numerics, self.device, self.shadow = lanes, numerics, device, shadow
        self.bank, self.shares = lanes[0].moves.bank, (1,) * len(lanes)
        for lane in lanes:
            for parameter in lane.parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """The micro-batch's share of each lane's mean loss a target token in this step, [lanes] on
        the device."""
        steps, rows, positions = batch.step.unbind(), batch.rows[None], batch.positions[None]
        self.bank.set_batch(self.shares, rows, positions, steps)
        with self.numerics.autocast(self.device):
            losses = packed_losses(self.backbone, self.embed, self.head, batch) / batch.num_targets
            loss = losses.sum()
        if self.shadow is None:
            loss.backward()
        else:
            [gradient] = self.gradients()
            self.shadow.accumulate(torch.autograd.grad(loss, self.shadow.leaves), gradient)
        self.bank.clear_batch()
        return losses.detach()

    def gradients(self) -> list[torch.Tensor]:
        """What a backward pass adds to."""
        return self.lanes[0].moves.gradients()


class CapturedStep:
    """Steps of one or more lanes on CUDA. Make it with `captured_step`; it records everything
    before the first step."""

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
        wanted, fewest = self._wanted()
        most = SHAPES if len(self.lanes) == 1 else SHAPES_OF_LANES
        self.shapes = plan_shapes(
            list(wanted), most=most, lanes=len(self.lanes), fewest=list(fewest.values())
        )
        self.recorder = Recorder(device)
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
        self.graphs = self._record_all(wanted, fewest)
        self.update = self._record_update()
        # A replay allocates nothing that the allocator sees: what a step needs shows while it is
        # recorded.
        self.peak_bytes = torch.cuda.max_memory_allocated(device)

    @property
    def kind(self) -> str:
        """For the record: `captured`, and what memory asked for."""
        cut = f", at most {self.max_tokens:,} tokens a backward pass" if self.max_tokens else ""
        return "captured" + cut + (", layers computed twice" if self.recomputed else "")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it the model may be used for something else: its layers run as written, not as
        compiled for training."""
        model = self.forward.model
        with (
            attending(model, self.attention),
            layer_calls(model, lambda layer, compiled: None),
            rotation_left(model, left=False),
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
                shape, least = largest_of(exact), min(one.tokens for one in exact)
                if least <= fewest.get(shape, least):
                    fewest[shape], wanted[shape] = least, [by_plan[id(plan)] for plan in self.plans]
        return wanted, fewest

    def _record_all(
        self, wanted: dict[PackedShape, list[list[int]]], fewest: dict[PackedShape, int]
    ) -> list[torch.cuda.CUDAGraph]:
        """Largest first; real rows are in the buffers while kernels warm up."""
        with warnings.catch_warnings():
            # The compiler looks at it.
            warnings.filterwarnings(
                "ignore", message="The .grad attribute of a Tensor that is not a leaf"
            )
            return self._record(wanted, fewest)

    def _record(
        self, wanted: dict[PackedShape, list[list[int]]], fewest: dict[PackedShape, int]
    ) -> list[torch.cuda.CUDAGraph]:
        example = {
            shape_for(shape, self.shapes, fewest[shape]): parts for shape, parts in wanted.items()
        }
        graphs = []
        for index, batch in enumerate(self.batches):
            parts = (
                example[index]
                if index in example
                else [part[:1] for part in next(iter(wanted.values()))]
            )
            self._load(batch, parts, num_targets=[1] * len(parts), steps=[0] * len(parts))
            work = self._work(batch)
            for _ in range(2 if index == 0 else 1):
                self.recorder.warm_up(work)
            graphs.append(self.recorder.record(work))
        for gradient in self.forward.gradients():
            gradient.zero_()
        self.losses.zero_()
        return graphs

    def _work(self, batch: PackedBatch) -> Callable[[], None]:
        def work() -> None:
            self.losses.add_(self.forward(batch))

        return work

    def _record_update(self) -> torch.cuda.CUDAGraph:
        gradients = self.forward.gradients()

        def work() -> None:
            norms = [lane.move() for lane in self.lanes]
            torch._foreach_zero_(gradients)
            if self.forward.shadow is not None:
                self.forward.shadow.refresh()
            self.results.copy_(torch.stack([self.losses, torch.stack(norms)]))
            self.losses.zero_()

        return self.recorder.record(work)

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
        """Gives the memory of the recordings and of full-size gradients back, before answers are
        generated."""
        self.graphs.clear()
        self.batches.clear()
        del self.update, self.recorder
        self.lanes[0].moves.free_gradients()
        torch.cuda.empty_cache()

    def __call__(self, lanes: Sequence[Lane]) -> list[StepResult]:
        """The coming step of each of `lanes`; the others of the recording rest: they read what the
        first reads, and move nowhere."""
        going = {id(lane) for lane in lanes}
        assert going <= {id(lane) for lane in self.lanes}, "a captured step belongs to its lanes"
        if [lane.step for lane in self.lanes] != self.coming and self.forward.shadow is not None:
            self.forward.shadow.refresh()  # a checkpoint was loaded
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
        num_targets = [int(self.rows.num_targets[here].sum()) for here in numbers]
        steps = [lane.step for lane in self.lanes]
        for parts in zip_longest(*plans, fillvalue=NOTHING):
            exact = [
                self.rows.exact_shape(part) for part in {id(part): part for part in parts}.values()
            ]
            index = shape_for(largest_of(exact), self.shapes, min(one.tokens for one in exact))
            self._load(self.batches[index], parts, num_targets=num_targets, steps=steps)
            self.graphs[index].replay()
        for lane in self.lanes:
            lane.set_rate(resting=id(lane) not in going)
        self.update.replay()
        losses, norms = self.results.clone().unbind()
        results = []
        for place, lane in enumerate(self.lanes):
            if id(lane) in going:
                lane.count()
                tokens = int(self.rows.lengths[numbers[place]].sum())
                results.append(StepResult(loss=losses[place], norm=norms[place], num_tokens=tokens))
        self.coming = [lane.step for lane in self.lanes]
        return results


@contextmanager
def open_step(
    model: Any,
    lanes: Sequence[Lane],
    rows: Sequence[Tokens],
    *,
    pad_id: int,
    device: torch.device,
    numerics: Numerics,
) -> Iterator[EagerStep | CapturedStep]:
    """The step that `train.step` of the lanes' configuration asks for; `auto` is the captured one
    wherever it exists.

    Raises:
        RunError: `captured` was asked for and does not exist here.
        DoesNotFit: the device's memory does not hold so many lanes.
    """
    if not takes_captured(lanes[0].config.step, "train.step", model, device, numerics):
        yield EagerStep(model, rows, pad_id, device, numerics)
        return
    with captured_step(model, lanes, rows, device, numerics) as step:
        yield step


@contextmanager
def captured_step(
    model: Any,
    lanes: Sequence[Lane],
    rows: Sequence[Tokens],
    device: torch.device,
    numerics: Numerics,
) -> Iterator[CapturedStep]:
    """The captured step of one or more lanes; the model is rewired within and as before afterwards.

    When the device's memory does not hold a whole step of one lane, the step is cut into
    micro-batches of half as many tokens, and again, until it fits: which rows make a step never
    changes. Only when not even the longest row fits, layers forget what they computed and compute
    it again in the backward pass.

    Raises:
        DoesNotFit: the device's memory does not hold a step of several lanes.
        RunError: not even the longest row fits, or the layers cannot be compiled here.
    """
    packable = PackableRows.of(rows)
    longest = int(packable.lengths.max())
    budget: int | None = None
    recomputed = False
    name, attention = lanes[0].name, model.config._attn_implementation
    with ExitStack() as rewired:
        rewired.enter_context(attending(model, PACKED))
        rewired.enter_context(rotation_left(model))
        shadow = rewired.enter_context(fused(model)) if can_fuse(model) else None
        rewired.enter_context(_compiled_layers(model))
        while True:
            try:
                step = CapturedStep(
                    PackedForward(model, lanes, numerics, device, shadow), packable, budget
                )
                break
            except torch.OutOfMemoryError:
                if len(lanes) > 1:
                    raise DoesNotFit(
                        f"{len(lanes)} lanes do not fit into the memory of {device} together"
                    ) from None
                budget = _smaller(budget, lanes[0], packable)
            except torch.AcceleratorError as broken:
                said = str(broken).splitlines()[0]
                raise RunError(
                    f'{name}: the step cannot be recorded ({said}). Set train.step = "eager" to '
                    "train without"
                ) from broken
            torch.cuda.empty_cache()
            if budget >= longest:
                continue
            if recomputed:
                raise RunError(
                    f"{name}: a row of {longest} tokens does not fit into {device}'s memory. Lower "
                    "train.max_length, or take a smaller model"
                )
            rewired.enter_context(recomputed_layers(model))
            recomputed, budget = True, None
        step.recomputed, step.attention = recomputed, attention
        try:
            yield step
        finally:
            step.close()


def _smaller(budget: int | None, lane: Lane, rows: PackableRows) -> int:
    if budget is None:
        steps = range(min(lane.steps, lane.order.steps_per_epoch))
        parts = (
            split_rows(
                lane.order.rows_of(step),
                rows.lengths,
                max_rows=lane.config.micro_batch,
                max_tokens=None,
            )
            for step in steps
        )
        budget = max(int(rows.lengths[part].sum()) for one in parts for part in one)
    return budget // 2


@contextmanager
def _compiled_layers(model: Any) -> Iterator[None]:
    """Compiles one layer, for any number of tokens; its copies share the code, and so do later
    runs of the process that adapt alike."""
    layers = repeated_layers(model)
    limits = torch._dynamo.config.patch(
        recompile_limit=MOST_VARIANTS,
        accumulated_recompile_limit=16 * MOST_VARIANTS,
        fail_on_recompile_limit_hit=True,
    )
    # Sizes that happen to be equal (tokens and heads, say) must not be taken for one size: other
    # rows would compile anew.
    sizes = torch.fx.experimental._config.patch(use_duck_shape=False)  # type: ignore[attr-defined]
    try:
        for layer in layers:
            layer.compile(dynamic=True)
        with limits, sizes:
            yield
    except torch._dynamo.exc.TorchDynamoException as broken:
        raise RunError(
            f"the layers cannot be compiled here: {str(broken).splitlines()[0]}. Set train.step = "
            '"eager" to train without'
        ) from broken
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # type: ignore[assignment]


def recomputed_layers(model: Any) -> AbstractContextManager[None]:
    """Within it a layer keeps its input alone and runs again in the backward pass."""

    def twice(layer: nn.Module, compiled: Any) -> Any:
        # No random numbers are drawn in a layer (dropout counts), and asking for their state would
        # wait for the device.
        return partial(
            checkpoint, compiled or layer._call_impl, use_reentrant=False, preserve_rng_state=False
        )

    return layer_calls(model, twice)
