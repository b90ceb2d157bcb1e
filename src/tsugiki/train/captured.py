"""The optimiser step near the device's limit: packed rows, fused products, layers compiled, everything replayed.

A few shapes are planned from the lane's own rows before the first step. For each, forward and backward are recorded as
one CUDA graph; clipping and the optimiser as another. A step is then: pack on the host, one copy, two or more replays.
The plain path (`train/step`) is the reference: same rows, same masks, same loss to bf16 noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tsugiki.data.packing import PackableRows, PackedBatch, PackedShape, plan_shapes, shape_for, split_rows
from tsugiki.data.prompts import Tokens
from tsugiki.errors import RunError
from tsugiki.model.attention import PACKED, attending
from tsugiki.model.capture import Recorder, layer_calls, repeated_layers, takes_captured
from tsugiki.model.fused import Shadow, can_fuse, fused
from tsugiki.model.loading import Numerics, backbone_and_head
from tsugiki.train.lane import Lane
from tsugiki.train.loss import packed_loss
from tsugiki.train.step import EagerStep, StepResult

HOST_BUFFERS = 8
MOST_VARIANTS = 64  # of a layer compiled in one process: methods, targets, ranks


class PackedForward:
    """Forward and backward of one packed micro-batch; adds to the lane's gradients. Runs on any device, recorded or not."""

    def __init__(self, model: Any, lane: Lane, numerics: Numerics, device: torch.device, shadow: Shadow | None):
        self.model = model
        self.backbone, self.head = backbone_and_head(model)
        self.embed: nn.Module = model.get_input_embeddings()
        self.lane, self.numerics, self.device, self.shadow = lane, numerics, device, shadow
        for parameter in lane.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """The micro-batch's share of the step's mean loss a target token, on the device."""
        clock = self.lane.clock
        if clock is not None:
            clock.step, clock.rows, clock.positions = batch.step, batch.rows[None], batch.positions[None]
        with self.numerics.autocast(self.device):
            loss = packed_loss(self.backbone, self.embed, self.head, batch) / batch.num_targets
        if self.shadow is None:
            loss.backward()
        else:
            into = self.lane.moved[0].grad
            assert into is not None
            self.shadow.accumulate(torch.autograd.grad(loss, self.shadow.leaves), into)
        if clock is not None:
            clock.rows = None
        return loss.detach()


class CapturedStep:
    """Steps of one lane on CUDA. Make it with `captured_step`; it records everything before the first step."""

    recomputed = False

    def __init__(self, forward: PackedForward, lane: Lane, rows: PackableRows, max_tokens: int | None):
        self.forward, self.lane, self.rows, self.max_tokens = forward, lane, rows, max_tokens
        device = forward.device
        self.plan = [self._split(lane.order.rows_of(step)) for step in range(lane.steps)]
        wanted = {tuple(part): rows.exact_shape(part) for parts in self.plan for part in parts}
        self.shapes = plan_shapes(list(wanted.values()))
        self.recorder = Recorder(device)
        torch.cuda.reset_peak_memory_stats(device)
        self.loss = torch.zeros((), device=device)
        self.result = torch.zeros(2, device=device)
        self.batches = [PackedBatch(shape=shape, buffer=torch.zeros(shape.size, dtype=torch.long, device=device)) for shape in self.shapes]
        self.host = [torch.zeros(max(shape.size for shape in self.shapes), dtype=torch.long, pin_memory=True) for _ in range(HOST_BUFFERS)]
        self.copied = [torch.cuda.Event() for _ in range(HOST_BUFFERS)]
        self.turn = 0
        self.coming = lane.step
        self.graphs = self._record_all(wanted)
        self.update = self._record_update()
        # A replay allocates nothing that the allocator sees: what a step needs shows while it is recorded.
        self.peak_bytes = torch.cuda.max_memory_allocated(device)

    @property
    def kind(self) -> str:
        """For the record: `captured`, and what memory asked for."""
        cut = f", at most {self.max_tokens:,} tokens a backward pass" if self.max_tokens else ""
        return "captured" + cut + (", layers computed twice" if self.recomputed else "")

    def paused(self) -> AbstractContextManager[None]:
        """Within it the model may be used for something else: its layers run as written, not as compiled for training."""
        return layer_calls(self.forward.model, lambda layer, compiled: None)

    def _split(self, numbers: Sequence[int]) -> list[list[int]]:
        return split_rows(numbers, self.rows.lengths, max_rows=self.lane.config.micro_batch, max_tokens=self.max_tokens)

    def _record_all(self, wanted: dict[tuple[int, ...], PackedShape]) -> list[torch.cuda.CUDAGraph]:
        """Largest first; real rows are in the buffers while kernels warm up."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at it
            return self._record(wanted)

    def _record(self, wanted: dict[tuple[int, ...], PackedShape]) -> list[torch.cuda.CUDAGraph]:
        example = {shape_for(shape, self.shapes): part for part, shape in wanted.items()}
        graphs = []
        for index, batch in enumerate(self.batches):
            part = list(example[index]) if index in example else list(next(iter(wanted)))[:1]
            self._load(batch, part, num_targets=1, step=0)
            work = self._work(batch)
            for _ in range(2 if index == 0 else 1):
                self.recorder.warm_up(work)
            graphs.append(self.recorder.record(work))
        for parameter in self.lane.moved:
            assert parameter.grad is not None
            parameter.grad.zero_()
        self.loss.zero_()
        return graphs

    def _work(self, batch: PackedBatch) -> Callable[[], None]:
        def work() -> None:
            self.loss.add_(self.forward(batch))

        return work

    def _record_update(self) -> torch.cuda.CUDAGraph:
        gradients = [parameter.grad for parameter in self.lane.moved if parameter.grad is not None]

        def work() -> None:
            norm = self.lane.move()
            torch._foreach_zero_(gradients)
            if self.forward.shadow is not None:
                self.forward.shadow.refresh()
            self.result.copy_(torch.stack([self.loss, norm]))
            self.loss.zero_()

        return self.recorder.record(work)

    def _load(self, batch: PackedBatch, part: Sequence[int], *, num_targets: int, step: int) -> None:
        """Packs rows into the next free pinned buffer and sends it on its way."""
        self.turn = (self.turn + 1) % HOST_BUFFERS
        self.copied[self.turn].synchronize()  # its last copy: eight micro-batches ago
        host = self.host[self.turn][: batch.shape.size]
        self.rows.pack(part, batch.shape, host.numpy(), num_targets=num_targets, step=step)
        batch.buffer.copy_(host, non_blocking=True)
        self.copied[self.turn].record()

    def close(self) -> None:
        """Gives the memory of the recordings and of full-size gradients back, before answers are generated."""
        self.graphs.clear()
        self.batches.clear()
        del self.update, self.recorder
        if self.lane.flat is None:
            for parameter in self.lane.moved:
                parameter.grad = None
        torch.cuda.empty_cache()

    def __call__(self, lane: Lane) -> StepResult:
        assert lane is self.lane, "a captured step belongs to its lane"
        if lane.step != self.coming and self.forward.shadow is not None:
            self.forward.shadow.refresh()  # a checkpoint was loaded
        parts = self.plan[lane.step]
        numbers = [number for part in parts for number in part]
        num_targets = int(self.rows.num_targets[numbers].sum())
        for part in parts:
            index = shape_for(self.rows.exact_shape(part), self.shapes)
            self._load(self.batches[index], part, num_targets=num_targets, step=lane.step)
            self.graphs[index].replay()
        lane.set_rate()
        self.update.replay()
        lane.count()
        self.coming = lane.step
        loss, norm = self.result.clone()
        tokens = int(self.rows.lengths[numbers].sum())
        return StepResult(loss=loss, norm=norm, num_rows=len(numbers), num_tokens=tokens, num_target_tokens=num_targets)


@contextmanager
def open_step(model: Any, lane: Lane, rows: Sequence[Tokens], *, pad_id: int, device: torch.device, numerics: Numerics) -> Iterator[EagerStep | CapturedStep]:
    """The step that `train.step` of the lane's configuration asks for; `auto` is the captured one wherever it exists.

    Raises:
        RunError: `captured` was asked for and does not exist here.
    """
    if not takes_captured(lane.config.step, "train.step", model, device, numerics):
        yield EagerStep(model, rows, pad_id, device, numerics)
        return
    with captured_step(model, lane, rows, device, numerics) as step:
        yield step


@contextmanager
def captured_step(model: Any, lane: Lane, rows: Sequence[Tokens], device: torch.device, numerics: Numerics) -> Iterator[CapturedStep]:
    """The captured step of a lane; the model is rewired within and as before afterwards.

    When the device's memory does not hold a whole step, the step is cut into micro-batches of half as many tokens, and
    again, until it fits: which rows make a step never changes. Only when not even the longest row fits, layers forget
    what they computed and compute it again in the backward pass.

    Raises:
        RunError: not even the longest row fits, or the layers cannot be compiled here.
    """
    packable = PackableRows.of(rows)
    longest = int(packable.lengths.max())
    budget: int | None = None
    recomputed = False
    with ExitStack() as rewired:
        rewired.enter_context(attending(model, PACKED))
        shadow = rewired.enter_context(fused(model, lane.flat)) if lane.flat is not None and can_fuse(model) else None
        rewired.enter_context(_compiled_layers(model))
        while True:
            try:
                step = CapturedStep(PackedForward(model, lane, numerics, device, shadow), lane, packable, budget)
                break
            except torch.OutOfMemoryError:
                budget = _smaller(budget, lane, packable)
            except torch.AcceleratorError as broken:
                said = str(broken).splitlines()[0]
                raise RunError(f'{lane.name}: the step cannot be recorded ({said}). Set train.step = "eager" to train without') from broken
            torch.cuda.empty_cache()
            if budget >= longest:
                continue
            if recomputed:
                raise RunError(f"{lane.name}: a row of {longest} tokens does not fit into {device}'s memory. Lower train.max_length, or take a smaller model")
            rewired.enter_context(recomputed_layers(model))
            recomputed, budget = True, None
        step.recomputed = recomputed
        try:
            yield step
        finally:
            step.close()


def _smaller(budget: int | None, lane: Lane, rows: PackableRows) -> int:
    if budget is None:
        budget = max(int(rows.lengths[lane.order.rows_of(step)].sum()) for step in range(min(lane.steps, lane.order.steps_per_epoch)))
    return budget // 2


@contextmanager
def _compiled_layers(model: Any) -> Iterator[None]:
    """Compiles one layer, for any number of tokens; its copies share the code, and so do later runs of the process that adapt alike."""
    layers = repeated_layers(model)
    limits = torch._dynamo.config.patch(recompile_limit=MOST_VARIANTS, accumulated_recompile_limit=16 * MOST_VARIANTS, fail_on_recompile_limit_hit=True)
    # Sizes that happen to be equal (tokens and heads, say) must not be taken for one size: other rows would compile anew.
    sizes = torch.fx.experimental._config.patch(use_duck_shape=False)  # type: ignore[attr-defined]
    try:
        for layer in layers:
            layer.compile(dynamic=True)
        with limits, sizes:
            yield
    except torch._dynamo.exc.TorchDynamoException as broken:
        raise RunError(f'the layers cannot be compiled here: {str(broken).splitlines()[0]}. Set train.step = "eager" to train without') from broken
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # type: ignore[assignment]


def recomputed_layers(model: Any) -> AbstractContextManager[None]:
    """Within it a layer keeps its input alone and runs again in the backward pass."""

    def twice(layer: nn.Module, compiled: Any) -> Any:
        # No random numbers are drawn in a layer (dropout counts), and asking for their state would wait for the device.
        return partial(checkpoint, compiled or layer._call_impl, use_reentrant=False, preserve_rng_state=False)

    return layer_calls(model, twice)
