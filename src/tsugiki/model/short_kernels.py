"""The Triton kernels of `short_attention`. Only imported where Triton is: it comes with PyTorch's CUDA builds."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(base, start, length, first, stride_n, stride_h, head, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Rows [BLOCK, WIDTH] of one head of one document, zeros beyond its end."""
    rows = first + tl.arange(0, BLOCK)
    places = base + (start + rows)[:, None] * stride_n + head * stride_h + tl.arange(0, WIDTH)[None, :]
    return tl.load(places, mask=(rows < length)[:, None], other=0.0)


@triton.jit
def _put(base, values, start, length, first, head, HEADS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Writes rows [BLOCK, WIDTH] of one head to a dense [n, HEADS, WIDTH]."""
    rows = first + tl.arange(0, BLOCK)
    places = base + (start + rows)[:, None] * (HEADS * WIDTH) + head * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(places, values.to(base.dtype.element_ty), mask=(rows < length)[:, None])


@triton.jit
def _seen(row, column, length, BLOCK: tl.constexpr):
    """Which keys (from `column` on) each query (from `row` on) sees."""
    rows, columns = row + tl.arange(0, BLOCK), column + tl.arange(0, BLOCK)
    return (columns[None, :] <= rows[:, None]) & (columns < length)[None, :]


@triton.jit
def forward(
    q, k, v, out, sums, cu_seq, scale_log2, qn, qh, kn, kh, vn, vh,
    HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    document, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(cu_seq + document)
    length = tl.load(cu_seq + document + 1) - start
    for row in range(0, length, BLOCK):
        queries = _tile(q, start, length, row, qn, qh, head, BLOCK, WIDTH)
        largest = tl.full([BLOCK], -1e30, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        mixed = tl.zeros([BLOCK, WIDTH], tl.float32)
        for column in range(0, row + BLOCK, BLOCK):
            keys = _tile(k, start, length, column, kn, kh, head // GROUP, BLOCK, WIDTH)
            values = _tile(v, start, length, column, vn, vh, head // GROUP, BLOCK, WIDTH)
            scores = tl.where(_seen(row, column, length, BLOCK), tl.dot(queries, tl.trans(keys)) * scale_log2, -1e30)
            larger = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - larger[:, None])
            shrink = tl.exp2(largest - larger)
            total = total * shrink + tl.sum(weights, 1)
            mixed = mixed * shrink[:, None] + tl.dot(weights.to(values.dtype), values)
            largest = larger
        _put(out, mixed / total[:, None], start, length, row, head, HEADS, BLOCK, WIDTH)
        rows = row + tl.arange(0, BLOCK)
        tl.store(sums + (start + rows) * HEADS + head, largest + tl.log2(total), mask=rows < length)


@triton.jit
def _weights_and_slopes(
    queries, keys, values, slopes_out, outputs, sums, scale, start, length, row, column, head,
    HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Attention weights [BLOCK, BLOCK], and the gradient of the scores before scaling."""
    rows = row + tl.arange(0, BLOCK)
    norm = tl.load(sums + (start + rows) * HEADS + head, mask=rows < length, other=0.0)
    scores = tl.dot(queries, tl.trans(keys)) * (scale * 1.4426950408889634)
    seen = _seen(row, column, length, BLOCK) & (rows < length)[:, None]
    weights = tl.where(seen, tl.exp2(scores - norm[:, None]), 0.0)
    mean = tl.sum(slopes_out.to(tl.float32) * outputs.to(tl.float32), 1)
    slopes = weights * (tl.dot(slopes_out, tl.trans(values)) - mean[:, None]) * scale
    return weights, slopes


@triton.jit
def backward(
    q, k, v, out, dout, sums, dq, dk, dv, cu_seq, scale, qn, qh, kn, kh, vn, vh,
    HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    document, key_head = tl.program_id(0), tl.program_id(1)
    start = tl.load(cu_seq + document)
    length = tl.load(cu_seq + document + 1) - start
    several = length if length > BLOCK else 0  # of one block everything is read once, below
    for column in range(0, several, BLOCK):
        keys = _tile(k, start, length, column, kn, kh, key_head, BLOCK, WIDTH)
        values = _tile(v, start, length, column, vn, vh, key_head, BLOCK, WIDTH)
        dkeys = tl.zeros([BLOCK, WIDTH], tl.float32)
        dvalues = tl.zeros([BLOCK, WIDTH], tl.float32)
        for member in range(0, GROUP):
            head = key_head * GROUP + member
            for row in range(column, length, BLOCK):
                queries = _tile(q, start, length, row, qn, qh, head, BLOCK, WIDTH)
                outputs = _tile(out, start, length, row, HEADS * WIDTH, WIDTH, head, BLOCK, WIDTH)
                slopes_out = _tile(dout, start, length, row, HEADS * WIDTH, WIDTH, head, BLOCK, WIDTH)
                weights, slopes = _weights_and_slopes(queries, keys, values, slopes_out, outputs, sums, scale, start, length, row, column, head, HEADS, BLOCK)
                dvalues += tl.dot(tl.trans(weights.to(slopes_out.dtype)), slopes_out)
                dkeys += tl.dot(tl.trans(slopes.to(queries.dtype)), queries)
        _put(dk, dkeys, start, length, column, key_head, HEADS // GROUP, BLOCK, WIDTH)
        _put(dv, dvalues, start, length, column, key_head, HEADS // GROUP, BLOCK, WIDTH)
    for member in range(0, GROUP):
        head = key_head * GROUP + member
        for row in range(0, several, BLOCK):
            queries = _tile(q, start, length, row, qn, qh, head, BLOCK, WIDTH)
            outputs = _tile(out, start, length, row, HEADS * WIDTH, WIDTH, head, BLOCK, WIDTH)
            slopes_out = _tile(dout, start, length, row, HEADS * WIDTH, WIDTH, head, BLOCK, WIDTH)
            dqueries = tl.zeros([BLOCK, WIDTH], tl.float32)
            for column in range(0, row + BLOCK, BLOCK):
                keys = _tile(k, start, length, column, kn, kh, key_head, BLOCK, WIDTH)
                values = _tile(v, start, length, column, vn, vh, key_head, BLOCK, WIDTH)
                weights, slopes = _weights_and_slopes(queries, keys, values, slopes_out, outputs, sums, scale, start, length, row, column, head, HEADS, BLOCK)
                dqueries += tl.dot(slopes.to(keys.dtype), keys)
            _put(dq, dqueries, start, length, row, head, HEADS, BLOCK, WIDTH)
    if length > 0 and length <= BLOCK:
        keys = _tile(k, start, length, 0, kn, kh, key_head, BLOCK, WIDTH)
        values = _tile(v, start, length, 0, vn, vh, key_head, BLOCK, WIDTH)
        dkeys = tl.zeros([BLOCK, WIDTH], tl.float32)
        dvalues = tl.zeros([BLOCK, WIDTH], tl.float32)
        for member in range(0, GROUP):
            head = key_head * GROUP + member
            queries = _tile(q, start, length, 0, qn, qh, head, BLOCK, WIDTH)
            outputs = _tile(out, start, length, 0, HEADS * WIDTH, WIDTH, head, BLOCK, WIDTH)
            slopes_out = _tile(dout, start, length, 0, HEADS * WIDTH, WIDTH, head, BLOCK, WIDTH)
            weights, slopes = _weights_and_slopes(queries, keys, values, slopes_out, outputs, sums, scale, start, length, 0, 0, head, HEADS, BLOCK)
            dvalues += tl.dot(tl.trans(weights.to(slopes_out.dtype)), slopes_out)
            dkeys += tl.dot(tl.trans(slopes.to(queries.dtype)), queries)
            _put(dq, tl.dot(slopes.to(keys.dtype), keys), start, length, 0, head, HEADS, BLOCK, WIDTH)
        _put(dk, dkeys, start, length, 0, key_head, HEADS // GROUP, BLOCK, WIDTH)
        _put(dv, dvalues, start, length, 0, key_head, HEADS // GROUP, BLOCK, WIDTH)
