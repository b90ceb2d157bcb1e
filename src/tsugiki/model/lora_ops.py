"""Pure tensor functions of LoRA: the low-rank update, its counter-based dropout, and the adapted
linear map as one operator.

`low_rank_update` is the reference. `adapted_linear` computes the same for several adapters over
one frozen weight, with the A's stacked, and writes its own backward pass: it keeps the input and x
Aᵀ, nothing of the size of the output.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch

from tsugiki.model.nf4 import dense

# Odd 64-bit constants of splitmix64.
_MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)


def low_rank_update(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float
) -> torch.Tensor:
    """scale · B A x.

    Args:
        x: [..., d_in]
        a: [r, d_in]
        b: [d_out, r]

    Returns:
        [..., d_out], in the dtype of the matmuls (autocast decides).

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3; the
    paper's figure 1.
    """
    return torch.nn.functional.linear(torch.nn.functional.linear(x, a), b) * scale


def grouped_update(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """`low_rank_update` of every lane on its own equal part of the tokens, in two batched matmuls.

    Args:
        x: [..., d_in], flattened to n tokens, lane after lane
        a: [k, r, d_in]; b: [k, d_out, r]; smaller ranks filled up with zeros
        scales: [k]

    Returns:
        [..., d_out]
    """
    parts = x.reshape(len(a), -1, x.shape[-1])
    dtype = (
        torch.get_autocast_dtype(x.device.type)
        if torch.is_autocast_enabled(x.device.type)
        else x.dtype
    )
    inner = torch.bmm(parts.to(dtype), a.to(dtype).transpose(1, 2)).mul_(scales[:, None, None])
    return torch.bmm(inner, b.to(dtype).transpose(1, 2)).view(*x.shape[:-1], -1)


def _mix(z: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64 with wrap-around (Steele, Lea, Flood 2014)."""
    z = (z ^ _logical_shift(z, 30)) * _MULTIPLIERS[1]
    z = (z ^ _logical_shift(z, 27)) * _MULTIPLIERS[2]
    return z ^ _logical_shift(z, 31)


def _logical_shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def dropout_mask(
    seed: int,
    step: int | torch.Tensor,
    layer: int | torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    width: int,
    share: float,
) -> torch.Tensor:
    """Keep-mask [..., width] for tokens at `positions` [...] of the rows `rows` [...], scaled by 1
    / (1 - share).

    A value depends on (seed, step, layer, row number, position, feature) alone: not on the batch a
    row stands in, nor on padding or packing, nor on any generator's state. So a resumed run and a
    run among others draw the same masks.
    """
    counter = torch.zeros((), dtype=torch.int64, device=rows.device)
    return keep_mask(
        counter + (seed * 1_000_003 + step), counter + layer, rows, positions, width, share
    )


@torch.library.custom_op("tsugiki::keep_mask", mutates_args=())
def keep_mask(
    step: torch.Tensor,
    layer: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    width: int,
    share: float,
) -> torch.Tensor:
    """The mask of `dropout_mask`. An operator of its own, because Triton 3.6 does not compile
    these 64-bit multiplications."""
    start = _mix(_mix(step * _MULTIPLIERS[0]) + layer)
    by_row = _mix(start + rows.to(torch.int64) * _MULTIPLIERS[0])
    by_position = _mix(by_row + positions * _MULTIPLIERS[0])
    bits = _mix(by_position[..., None] + torch.arange(width, device=rows.device) * _MULTIPLIERS[0])
    uniform = _logical_shift(bits, 40).to(torch.float32) / 2**24
    return (uniform >= share).to(torch.float32) / (1.0 - share)


@keep_mask.register_fake
def _(
    step: torch.Tensor,
    layer: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    width: int,
    share: float,
) -> torch.Tensor:
    return step.new_empty(
        (*torch.broadcast_shapes(rows.shape, positions.shape), width), dtype=torch.float32
    )


@torch.library.custom_op("tsugiki::adapted_linear", mutates_args=())
def adapted_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    absmax: torch.Tensor | None,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    starts: list[int],
    widths: list[int],
    spans: list[int],
    scale: float,
    scales: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h = W x + bias, and scale · B_i A_i x added to the outputs `starts[i] … + widths[i]`, with
    each lane's own A and B.

    Args:
        x: [n, d_in], lane after lane, equally many tokens each
        weight: [d_out, d_in], frozen; or its codes and their `absmax` (`model/nf4`)
        bias: [d_out] or None, frozen
        a: [lanes, k · r, d_in], the A_i stacked
        b: [lanes, Σ widths, r], the B_i stacked
        spans: for each adapter the first lane that has it, and the one after the last: beyond, A_i
            and B_i are zeros and nothing is computed
        scales: [lanes] where the lanes' scales differ; `scale` is 1 then

    Returns:
        h [n, d_out], and x Aᵀ [n, k · r] (times `scales`; undefined for lanes without any), which
        the backward pass reads. All of one dtype.

    Source: Hu et al. 2021, eq. 3, once for each range of outputs.
    """
    xa = x.new_empty(len(x), a.shape[1])
    some = slice(min(spans), max(spans))
    with on_side_stream(x):
        _batched(_of_lanes(x, len(a), some), a[some].transpose(1, 2), _of_lanes(xa, len(a), some))
        _times(xa, scales)
    wide = dense(weight, absmax, x.dtype).t()
    h = torch.mm(x, wide) if bias is None else torch.addmm(bias, x, wide)
    wait_side_stream(x)
    for out, inner, factor in _adapters(h, xa, b, starts, widths, spans):
        out.baddbmm_(inner, factor.transpose(1, 2), alpha=scale)
    return h, xa


@torch.library.custom_op("tsugiki::adapted_linear_backward", mutates_args=())
def adapted_linear_backward(
    dh: torch.Tensor,
    x: torch.Tensor,
    xa: torch.Tensor,
    weight: torch.Tensor,
    absmax: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    starts: list[int],
    widths: list[int],
    spans: list[int],
    scale: float,
    scales: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(∂x [n, d_in], ∂a, ∂b) from ∂h [n, d_out]: dx = dh W + dxa A, dA = dxaᵀ x, dB_i = scale ·
    dh_iᵀ xa_i."""
    if dh.stride(-1) != 1:
        dh = dh.contiguous()
    lanes, some = len(a), slice(min(spans), max(spans))
    # What no lane has stays zero.
    make = torch.empty_like if spans == [0, lanes] * len(starts) else torch.zeros_like
    dxa, da, db = (
        make(xa),
        make(a, memory_format=torch.contiguous_format),
        make(b, memory_format=torch.contiguous_format),
    )
    pairs = list(
        zip(
            _adapters(dh, xa, b, starts, widths, spans),
            _adapters(dh, dxa, db, starts, widths, spans),
            strict=True,
        )
    )
    with on_side_stream(dh):
        for (part, inner, factor), (_, dinner, dfactor) in pairs:
            torch.baddbmm(dinner, part, factor, beta=0, alpha=scale, out=dinner)
            torch.baddbmm(dfactor, part.transpose(1, 2), inner, beta=0, alpha=scale, out=dfactor)
        _times(dxa, scales)
        inputs, inners = (
            each.view(lanes, -1, each.shape[1])[some] for each in (x.contiguous(), dxa)
        )
        torch.bmm(inners.transpose(1, 2), inputs, out=da[some])
    dx = torch.mm(dh, dense(weight, absmax, dh.dtype))
    wait_side_stream(dh)
    _batched(_of_lanes(dxa, lanes, some), a[some], _of_lanes(dx, lanes, some), add=True)
    return dx, da, db


def _of_lanes(x: torch.Tensor, lanes: int, some: slice) -> torch.Tensor:
    """The tokens [m, d] of some of the lanes of x [n, d]."""
    return x if lanes == 1 else x.reshape(lanes, -1, x.shape[1])[some].view(-1, x.shape[1])


def _batched(
    x: torch.Tensor, factors: torch.Tensor, out: torch.Tensor, *, add: bool = False
) -> None:
    """out [n, d_out] = (or +=) x [n, d_in] · factors [lanes, d_in, d_out], each lane's tokens by
    its own factor."""
    lanes = len(factors)
    if lanes == 1:
        out.addmm_(x, factors[0]) if add else torch.mm(x, factors[0], out=out)
        return
    parts, outs = x.reshape(lanes, -1, x.shape[1]), out.view(lanes, -1, out.shape[1])
    outs.baddbmm_(parts, factors) if add else torch.bmm(parts, factors, out=outs)


def _times(x: torch.Tensor, scales: torch.Tensor | None) -> None:
    """Multiplies each lane's part of x [n, d] by its scale, in place."""
    if scales is not None:
        x.view(len(scales), -1, x.shape[1]).mul_(scales[:, None, None])


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def on_side_stream(x: torch.Tensor) -> AbstractContextManager[Any]:
    """What is launched within runs beside what follows on the current stream, until
    `wait_side_stream`: the small matmuls of the adapters hide behind the large one. Their outputs
    must be allocated before. On a CPU: nothing."""
    if not x.is_cuda:
        return nullcontext()
    side = _side_stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    return torch.cuda.stream(side)


def wait_side_stream(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.current_stream(x.device).wait_stream(_side_stream(x.device))


def _adapters(
    outputs: torch.Tensor,
    inner: torch.Tensor,
    b: torch.Tensor,
    starts: list[int],
    widths: list[int],
    spans: list[int],
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Views (outputs [m, n, width], inner [m, n, r], B [m, width, r]): of one lane a triple of its
    m adapters where they are alike, else one for each; of several lanes a triple for each adapter,
    m being the lanes that have it."""
    lanes, rank, count = len(b), b.shape[2], len(starts)
    if lanes > 1:
        ends = list(accumulate(widths, initial=0))
        parts, inners = (
            outputs.view(lanes, -1, outputs.shape[1]),
            inner.view(lanes, -1, inner.shape[1]),
        )
        having = [slice(first, end) for first, end in zip(spans[::2], spans[1::2], strict=True)]
        return [
            (
                parts[some, :, start : start + width],
                inners[some, :, i * rank : (i + 1) * rank],
                b[some, ends[i] : ends[i + 1]],
            )
            for i, (some, start, width) in enumerate(zip(having, starts, widths, strict=True))
        ]
    steps = {after - before for before, after in pairwise(starts)}
    alike = count if len(steps) <= 1 and len(set(widths)) == 1 else 1
    triples, row = [], 0
    for first in range(0, count, alike):
        width, step = widths[first], max(steps, default=0) if alike > 1 else 0
        out = outputs.as_strided(
            (alike, len(outputs), width),
            (step, outputs.stride(0), 1),
            outputs.storage_offset() + starts[first],
        )
        block = (
            inner[:, first * rank : (first + alike) * rank]
            .view(len(inner), alike, rank)
            .transpose(0, 1)
        )
        triples.append((out, block, b[0, row : row + alike * width].view(alike, width, rank)))
        row += alike * width
    return triples


@adapted_linear.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, absmax: Any, bias: Any, a: torch.Tensor, *rest: Any
) -> Any:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[1])


@adapted_linear_backward.register_fake
def _(
    dh: torch.Tensor,
    x: torch.Tensor,
    xa: torch.Tensor,
    weight: torch.Tensor,
    absmax: Any,
    a: torch.Tensor,
    b: torch.Tensor,
    *rest: Any,
) -> Any:
    return torch.empty_like(x), a.new_empty(a.shape), b.new_empty(b.shape)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    x, weight, absmax, _, a, b, ctx.starts, ctx.widths, ctx.spans, ctx.scale, scales = inputs
    ctx.save_for_backward(x, output[1], weight, absmax, a, b, scales)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dh: torch.Tensor, _: Any) -> Any:
    x, xa, weight, absmax, a, b, scales = ctx.saved_tensors
    dx, da, db = adapted_linear_backward(
        dh, x, xa, weight, absmax, a, b, ctx.starts, ctx.widths, ctx.spans, ctx.scale, scales
    )
    return dx, None, None, None, da, db, None, None, None, None, None


adapted_linear.register_autograd(_backward, setup_context=_keep)
