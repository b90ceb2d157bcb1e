"""The Triton kernels of `gated`: a program for each row and stretch of BLOCK columns. Only
imported where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(product, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(product + row * 2 * width + columns, mask=inside).to(tl.float32)
    up = tl.load(product + row * 2 * width + width + columns, mask=inside).to(tl.float32)
    tl.store(
        out + row * width + columns,
        (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty),
        mask=inside,
    )


@triton.jit
def backward(dout, product, dproduct, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    slopes = tl.load(dout + row * width + columns, mask=inside).to(tl.float32)
    gate = tl.load(product + row * 2 * width + columns, mask=inside).to(tl.float32)
    up = tl.load(product + row * 2 * width + width + columns, mask=inside).to(tl.float32)
    share = tl.sigmoid(gate)
    dgate = slopes * up * share * (1 + gate * (1 - share))
    tl.store(dproduct + row * 2 * width + columns, dgate.to(dproduct.dtype.element_ty), mask=inside)
    tl.store(
        dproduct + row * 2 * width + width + columns,
        (slopes * gate * share).to(dproduct.dtype.element_ty),
        mask=inside,
    )
