"""The Triton kernels of `swiglu`: a program for each row and stretch of BLOCK columns. Only
imported where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=inside).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=inside).to(tl.float32)
    tl.store(
        out + row * width + columns,
        (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty),
        mask=inside,
    )


@triton.jit
def backward(dout, gate_up, dgate_up, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    slopes = tl.load(dout + row * width + columns, mask=inside).to(tl.float32)
    gate = tl.load(gate_up + row * 2 * width + columns, mask=inside).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=inside).to(tl.float32)
    share = tl.sigmoid(gate)
    dgate = slopes * up * share * (1 + gate * (1 - share))
    tl.store(dgate_up + row * 2 * width + columns, dgate.to(dgate_up.dtype.element_ty), mask=inside)
    tl.store(
        dgate_up + row * 2 * width + width + columns,
        (slopes * gate * share).to(dgate_up.dtype.element_ty),
        mask=inside,
    )
