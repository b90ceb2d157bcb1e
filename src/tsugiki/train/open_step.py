"""Which step a group of lanes takes, and the model rewired for it: compiled layers, packed rows,
as many tokens a backward pass as the memory holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tsugiki.data.packing import PackableRows, split_rows
from tsugiki.data.prompts import Tokens
from tsugiki.errors import RunError
from tsugiki.fast.attention import PACKED, attending
from tsugiki.fast.cuda_graphs import layer_calls, repeated_layers, use_cuda_graphs
from tsugiki.fast.fused_linears import can_fuse, fused, fused_whole
from tsugiki.fast.rotary import deferred_rope
from tsugiki.model.numerics import Numerics
from tsugiki.train.cuda_graph_step import CudaGraphStep
from tsugiki.train.full_weights import FullWeights
from tsugiki.train.lane import DoesNotFit, Lane
from tsugiki.train.ledger import WHOLE_GRADIENT_BYTES
from tsugiki.train.memory import left
from tsugiki.train.packed_forward import PackedForward
from tsugiki.train.step import EagerStep
from tsugiki.words import Message

MOST_VARIANTS = 64  # of a layer compiled in one process: methods, targets, ranks


@contextmanager
def open_step(
    model: Any,
    lanes: Sequence[Lane],
    rows: Sequence[Tokens],
    *,
    pad_id: int,
    device: torch.device,
    numerics: Numerics,
) -> Iterator[EagerStep | CudaGraphStep]:
    """The step that `train.step` of the lanes' configuration asks for; `auto` is the CUDA-graph
    step wherever it exists.

    Raises:
        RunError: `cuda_graph` was asked for and does not exist changed.
        DoesNotFit: the device's memory does not hold so many lanes.
    """
    if not use_cuda_graphs(lanes[0].config.step, "train.step", model, device, numerics):
        yield EagerStep(model, rows, pad_id, device, numerics)
        return
    with cuda_graph_step(model, lanes, rows, device, numerics) as step:
        yield step


@contextmanager
def cuda_graph_step(
    model: Any,
    lanes: Sequence[Lane],
    rows: Sequence[Tokens],
    device: torch.device,
    numerics: Numerics,
) -> Iterator[CudaGraphStep]:
    """The CUDA-graph step of one or more lanes; the model is rewired within and as before
    afterwards.

    When the device's memory does not hold a whole step of one lane, the step is cut into
    micro-batches of half as many tokens, and again, until it fits: which rows make a step never
    changes. Only when not even the longest row fits, layers forget what they computed and compute
    it again in the backward pass.

    Raises:
        DoesNotFit: the device's memory does not hold a step of several lanes, or of one lane not
            even the longest row.
        RunError: the layers cannot be compiled changed.
    """
    packable = PackableRows.of(rows)
    attention = model.config._attn_implementation
    with ExitStack() as rewired:
        rewired.enter_context(attending(model, PACKED))
        rewired.enter_context(deferred_rope(model))
        compute_copy, moves = None, lanes[0].moves
        if isinstance(moves, FullWeights):
            rewired.enter_context(fused_whole(model, moves.joined()))
        elif can_fuse(model):
            compute_copy = rewired.enter_context(fused(model))
        rewired.enter_context(_compiled_layers(model, once=not isinstance(moves, FullWeights)))
        make = partial(PackedForward, model, lanes, numerics, device, compute_copy)
        step = _capture_what_fits(model, make, lanes, packable, rewired)
        step.attention = attention
        try:
            yield step
        finally:
            step.close()


def _capture_what_fits(
    model: Any,
    make: Callable[[], PackedForward],
    lanes: Sequence[Lane],
    rows: PackableRows,
    rewired: ExitStack,
) -> CudaGraphStep:
    """Captures the step in the first of the `_ways` that the memory holds; layers are recomputed
    within `rewired`."""
    first = lanes[0]
    device = first.moved[0].device
    for way in _ways(first, rows):
        with ExitStack() as changed:
            if way.recomputed:
                changed.enter_context(recomputed_layers(model))
            if isinstance(first.moves, FullWeights):
                first.moves.by_layer = way.by_layer
            try:
                # with the gradients, which may not fit either
                step = CudaGraphStep(make(), rows, way.max_tokens)
                step.recomputed = way.recomputed
                rewired.push(changed.pop_all())
                return step
            except torch.OutOfMemoryError:
                if len(lanes) > 1:
                    said = Message("error.lanes_room", lanes=len(lanes), device=device)
                    raise DoesNotFit(said) from None
            except torch.AcceleratorError as broken:
                reason = str(broken).splitlines()[0]
                raise RunError(
                    f"{first.name}: the step cannot be captured ({reason}). Set train.step = "
                    '"eager" to train without'
                ) from broken
        first.moves.free_gradients()
        torch.cuda.empty_cache()
    longest = int(rows.lengths.max())
    raise DoesNotFit(Message("error.step_room", lane=first.name, device=device, tokens=longest))


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a step is made to fit: tokens a backward pass, layers computed twice, gradients used
    layer by layer."""

    max_tokens: int | None = None
    recomputed: bool = False
    by_layer: bool = False


def _ways(lane: Lane, rows: PackableRows) -> Iterator[Way]:
    """The fastest first. Of full fine-tuning, whose gradients are as large as the model, backward
    passes are not cut: they would have to be summed."""
    if isinstance(moves := lane.moves, FullWeights):
        size = sum(parameter.numel() for parameter in moves.moved)
        whole = moves.config.clip_from == "exact"
        if whole and size * WHOLE_GRADIENT_BYTES < left(moves.device):
            yield from (Way(recomputed=recomputed) for recomputed in (False, True))
        if moves.config.micro_batch in (None, moves.config.batch):
            yield from (Way(recomputed=again, by_layer=True) for again in (False, True))
        return
    longest = int(rows.lengths.max())
    for recomputed in (False, True):
        yield Way(recomputed=recomputed)
        budget = _smaller(None, lane, rows)
        while budget >= longest:
            yield Way(max_tokens=budget, recomputed=recomputed)
            budget = _smaller(budget, lane, rows)


def _smaller(budget: int | None, lane: Lane, rows: PackableRows) -> int:
    """Half as many tokens a backward pass; at first, half of the largest step."""
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
        budget = max(int(rows.lengths[part].sum()) for of_step in parts for part in of_step)
    return budget // 2


@contextmanager
def _compiled_layers(model: Any, *, once: bool) -> Iterator[None]:
    """Compiles one layer, for any number of tokens; its copies share the code, and so do later
    runs of the process that adapt alike. `once`: there is one backward pass a forward pass, which
    may overwrite what it reads."""
    layers = repeated_layers(model)
    limits = torch._dynamo.config.patch(
        recompile_limit=MOST_VARIANTS,
        accumulated_recompile_limit=16 * MOST_VARIANTS,
        fail_on_recompile_limit_hit=True,
    )
    # Sizes that happen to be equal (tokens and heads, say) must not be taken for one size: other
    # rows would compile anew.
    sizes = torch.fx.experimental._config.patch(use_duck_shape=False)  # type: ignore[attr-defined]
    overwritten = torch._functorch.config.patch(donated_buffer=once)
    try:
        for layer in layers:
            layer.compile(dynamic=True)
        with limits, sizes, overwritten:
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
