"""The Triton kernels of `short_document_attention`. Only imported where Triton is: it comes with
PyTorch's CUDA builds.

Queries and keys are handled in two halves, left and right: rotary embedding pairs an element with
the one half a width away.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton passes everything by argument: one a line, the kernels would not fit a screen.
# fmt: off


@triton.jit
def _tile(base, start, length, first, stride, begin, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Rows [BLOCK, WIDTH] of one document from column `begin` on, zeros beyond its end."""
    rows = first + tl.arange(0, BLOCK)
    addresses = base + (start + rows)[:, None] * stride + begin + tl.arange(0, WIDTH)[None, :]
    return tl.load(addresses, mask=(rows < length)[:, None], other=0.0)


@triton.jit
def _put(
    base, values, start, length, first, stride, begin, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    """Writes rows [BLOCK, WIDTH] where `_tile` reads them."""
    rows = first + tl.arange(0, BLOCK)
    addresses = base + (start + rows)[:, None] * stride + begin + tl.arange(0, WIDTH)[None, :]
    tl.store(addresses, values.to(base.dtype.element_ty), mask=(rows < length)[:, None])


@triton.jit
def _angles(
    cos, sin, start, length, first, stride, ROTATE: tl.constexpr, BLOCK: tl.constexpr,
    HALF: tl.constexpr,
):
    """cos and sin [BLOCK, HALF] of rows; no rotation where there are none."""
    if ROTATE:
        return _tile(cos, start, length, first, stride, 0, BLOCK, HALF), _tile(
            sin, start, length, first, stride, 0, BLOCK, HALF
        )
    else:
        return 1.0, 0.0


@triton.jit
def _rotated(
    base, c, s, start, length, first, stride, begin, ROTATE: tl.constexpr, BLOCK: tl.constexpr,
    HALF: tl.constexpr,
):
    """The halves [BLOCK, HALF] of rows, rotated where ROTATE."""
    left = _tile(base, start, length, first, stride, begin, BLOCK, HALF)
    right = _tile(base, start, length, first, stride, begin + HALF, BLOCK, HALF)
    if ROTATE:
        x, y = left.to(tl.float32), right.to(tl.float32)
        left, right = (
            (x * c - y * s).to(base.dtype.element_ty), (y * c + x * s).to(base.dtype.element_ty)
        )
    return left, right


@triton.jit
def _put_rotated_back(
    base, left, right, cos, sin, start, length, first, stride, begin, angles, ROTATE: tl.constexpr,
    BLOCK: tl.constexpr, HALF: tl.constexpr,
):
    """Writes the gradient of what `_rotated` read. The angles are read again: kept, they would take
    registers from the matmuls."""
    if ROTATE:
        c, s = _angles(cos, sin, start, length, first, angles, ROTATE, BLOCK, HALF)
        left, right = left * c + right * s, right * c - left * s
    _put(base, left, start, length, first, stride, begin, BLOCK, HALF)
    _put(base, right, start, length, first, stride, begin + HALF, BLOCK, HALF)


@triton.jit
def _scores(left, right, key_left, key_right):
    """Queries times keys [BLOCK, BLOCK], in fp32."""
    return tl.dot(right, tl.trans(key_right), tl.dot(left, tl.trans(key_left)))


@triton.jit
def _seen(row, column, length, BLOCK: tl.constexpr):
    """Which keys (from `column` on) each query (from `row` on) sees."""
    rows, columns = row + tl.arange(0, BLOCK), column + tl.arange(0, BLOCK)
    return (columns[None, :] <= rows[:, None]) & (rows < length)[:, None]


@triton.jit
def forward(
    q, k, v, cos, sin, out, sums, cu_seq, scale_log2, qn, qh, kn, kh, vn, vh, angles,
    ROTATE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    document, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(cu_seq + document)
    length = tl.load(cu_seq + document + 1) - start
    key_head = head // GROUP
    HALF: tl.constexpr = WIDTH // 2
    if length > BLOCK:
        for row in range(0, length, BLOCK):
            row_cos, row_sin = _angles(cos, sin, start, length, row, angles, ROTATE, BLOCK, HALF)
            left, right = _rotated(
                q, row_cos, row_sin, start, length, row, qn, head * qh, ROTATE, BLOCK, HALF
            )
            largest = tl.full([BLOCK], -1e30, tl.float32)
            total = tl.zeros([BLOCK], tl.float32)
            mixed = tl.zeros([BLOCK, WIDTH], tl.float32)
            for column in range(0, row + BLOCK, BLOCK):
                column_cos, column_sin = _angles(
                    cos, sin, start, length, column, angles, ROTATE, BLOCK, HALF
                )
                key_left, key_right = _rotated(
                    k, column_cos, column_sin, start, length, column, kn, key_head * kh, ROTATE,
                    BLOCK, HALF
                )
                values = _tile(v, start, length, column, vn, key_head * vh, BLOCK, WIDTH)
                scores = tl.where(
                    _seen(row, column, length, BLOCK), _scores(left, right, key_left,
                    key_right) * scale_log2, -1e30
                )
                larger = tl.maximum(largest, tl.max(scores, 1))
                weights = tl.exp2(scores - larger[:, None])
                shrink = tl.exp2(largest - larger)
                total = total * shrink + tl.sum(weights, 1)
                mixed = mixed * shrink[:, None] + tl.dot(weights.to(values.dtype), values)
                largest = larger
            _put(
                out, mixed / total[:, None], start, length, row, HEADS * WIDTH, head * WIDTH,
                BLOCK, WIDTH
            )
            _put_sums(sums, largest + tl.log2(total), start, length, row, head, HEADS, BLOCK)
    elif length > 0:
        c, s = _angles(cos, sin, start, length, 0, angles, ROTATE, BLOCK, HALF)
        left, right = _rotated(q, c, s, start, length, 0, qn, head * qh, ROTATE, BLOCK, HALF)
        key_left, key_right = _rotated(
            k, c, s, start, length, 0, kn, key_head * kh, ROTATE, BLOCK, HALF
        )
        values = _tile(v, start, length, 0, vn, key_head * vh, BLOCK, WIDTH)
        scores = tl.where(
            _seen(0, 0, length, BLOCK), _scores(left, right, key_left, key_right) * scale_log2,
            -1e30
        )
        largest = tl.max(scores, 1)
        weights = tl.exp2(scores - largest[:, None])
        total = tl.sum(weights, 1)
        mixed = tl.dot(weights.to(values.dtype), values) / total[:, None]
        _put(out, mixed, start, length, 0, HEADS * WIDTH, head * WIDTH, BLOCK, WIDTH)
        _put_sums(sums, largest + tl.log2(total), start, length, 0, head, HEADS, BLOCK)


@triton.jit
def _put_sums(sums, values, start, length, row, head, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    rows = row + tl.arange(0, BLOCK)
    tl.store(sums + (start + rows) * HEADS + head, values, mask=rows < length)


@triton.jit
def _weights(
    left, right, key_left, key_right, sums, scale, start, length, row, column, head,
    HEADS: tl.constexpr, BLOCK: tl.constexpr,
):
    """Attention weights [BLOCK, BLOCK], as the forward pass had them."""
    rows = row + tl.arange(0, BLOCK)
    norm = tl.load(sums + (start + rows) * HEADS + head, mask=rows < length, other=0.0)
    scores = _scores(left, right, key_left, key_right) * (scale * 1.4426950408889634)
    return tl.where(_seen(row, column, length, BLOCK), tl.exp2(scores - norm[:, None]), 0.0)


@triton.jit
def _mean_slope(
    out, slopes_out, start, length, row, head, HEADS: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """For each query Σ weight · gradient of the weight, [BLOCK], from what the forward pass
    gave."""
    outputs = _tile(out, start, length, row, HEADS * WIDTH, head * WIDTH, BLOCK, WIDTH)
    return tl.sum(slopes_out.to(tl.float32) * outputs.to(tl.float32), 1)


@triton.jit
def _slopes(weights, slopes_out, values, scale):
    """Gradient of the scores before scaling, [BLOCK, BLOCK], where all keys are at hand: the mean
    slope needs no outputs then."""
    dweights = tl.dot(slopes_out, tl.trans(values))
    return (weights * (dweights - tl.sum(weights * dweights, 1)[:, None]) * scale).to(values.dtype)


@triton.jit
def _backward_keys(
    q, k, v, cos, sin, out, dout, sums, dk, dv, scale, start, length, key_head, qn, qh, kn, kh, vn,
    vh, angles, dkn, dvn, ROTATE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):
    """Gradients of the keys and values of a document of several blocks: for each block of them,
    over all queries that see it."""
    HALF: tl.constexpr = WIDTH // 2
    for column in range(0, length, BLOCK):
        column_cos, column_sin = _angles(
            cos, sin, start, length, column, angles, ROTATE, BLOCK, HALF
        )
        key_left, key_right = _rotated(
            k, column_cos, column_sin, start, length, column, kn, key_head * kh, ROTATE, BLOCK,
            HALF
        )
        values = _tile(v, start, length, column, vn, key_head * vh, BLOCK, WIDTH)
        dleft = tl.zeros([BLOCK, HALF], tl.float32)
        dright = tl.zeros([BLOCK, HALF], tl.float32)
        dvalues = tl.zeros([BLOCK, WIDTH], tl.float32)
        for member in range(0, GROUP):
            head = key_head * GROUP + member
            for row in range(column, length, BLOCK):
                row_cos, row_sin = _angles(
                    cos, sin, start, length, row, angles, ROTATE, BLOCK, HALF
                )
                left, right = _rotated(
                    q, row_cos, row_sin, start, length, row, qn, head * qh, ROTATE, BLOCK, HALF
                )
                slopes_out = _tile(
                    dout, start, length, row, HEADS * WIDTH, head * WIDTH, BLOCK, WIDTH
                )
                mean = _mean_slope(out, slopes_out, start, length, row, head, HEADS, BLOCK, WIDTH)
                weights = _weights(
                    left, right, key_left, key_right, sums, scale, start, length, row, column,
                    head, HEADS, BLOCK
                )
                slopes = (
                    weights * (tl.dot(slopes_out, tl.trans(values)) - mean[:, None]) * scale
                ).to(left.dtype)
                dvalues += tl.dot(tl.trans(weights.to(slopes_out.dtype)), slopes_out)
                dleft += tl.dot(tl.trans(slopes), left)
                dright += tl.dot(tl.trans(slopes), right)
        _put_rotated_back(
            dk, dleft, dright, cos, sin, start, length, column, dkn, key_head * WIDTH, angles,
            ROTATE, BLOCK, HALF
        )
        _put(dv, dvalues, start, length, column, dvn, key_head * WIDTH, BLOCK, WIDTH)


@triton.jit
def _backward_queries(
    q, k, v, cos, sin, out, dout, sums, dq, scale, start, length, head, key_head, qn, qh, kn, kh,
    vn, vh, angles, dqn, ROTATE: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of one head's queries of a document of several blocks: for each block of them,
    over all keys that it sees."""
    HALF: tl.constexpr = WIDTH // 2
    for row in range(0, length, BLOCK):
        row_cos, row_sin = _angles(cos, sin, start, length, row, angles, ROTATE, BLOCK, HALF)
        left, right = _rotated(
            q, row_cos, row_sin, start, length, row, qn, head * qh, ROTATE, BLOCK, HALF
        )
        slopes_out = _tile(dout, start, length, row, HEADS * WIDTH, head * WIDTH, BLOCK, WIDTH)
        mean = _mean_slope(out, slopes_out, start, length, row, head, HEADS, BLOCK, WIDTH)
        dleft = tl.zeros([BLOCK, HALF], tl.float32)
        dright = tl.zeros([BLOCK, HALF], tl.float32)
        for column in range(0, row + BLOCK, BLOCK):
            column_cos, column_sin = _angles(
                cos, sin, start, length, column, angles, ROTATE, BLOCK, HALF
            )
            key_left, key_right = _rotated(
                k, column_cos, column_sin, start, length, column, kn, key_head * kh, ROTATE, BLOCK,
                HALF
            )
            values = _tile(v, start, length, column, vn, key_head * vh, BLOCK, WIDTH)
            weights = _weights(
                left, right, key_left, key_right, sums, scale, start, length, row, column, head,
                HEADS, BLOCK
            )
            slopes = (weights * (tl.dot(slopes_out, tl.trans(values)) - mean[:, None]) * scale).to(
                left.dtype
            )
            dleft += tl.dot(slopes, key_left)
            dright += tl.dot(slopes, key_right)
        _put_rotated_back(
            dq, dleft, dright, cos, sin, start, length, row, dqn, head * WIDTH, angles, ROTATE,
            BLOCK, HALF
        )


@triton.jit
def _backward_of_one_block(
    q, k, v, cos, sin, dout, sums, dq, dk, dv, scale, start, length, key_head, qn, qh, kn, kh, vn,
    vh, angles, dqn, dkn, dvn, ROTATE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):
    """All gradients of a document of one block: everything is read once."""
    HALF: tl.constexpr = WIDTH // 2
    c, s = _angles(cos, sin, start, length, 0, angles, ROTATE, BLOCK, HALF)
    key_left, key_right = _rotated(
        k, c, s, start, length, 0, kn, key_head * kh, ROTATE, BLOCK, HALF
    )
    values = _tile(v, start, length, 0, vn, key_head * vh, BLOCK, WIDTH)
    if GROUP == 1:  # nothing is summed up: each result leaves as soon as it is known
        left, right = _rotated(q, c, s, start, length, 0, qn, key_head * qh, ROTATE, BLOCK, HALF)
        slopes_out = _tile(dout, start, length, 0, HEADS * WIDTH, key_head * WIDTH, BLOCK, WIDTH)
        weights = _weights(
            left, right, key_left, key_right, sums, scale, start, length, 0, 0, key_head, HEADS,
            BLOCK
        )
        _put(
            dv, tl.dot(tl.trans(weights.to(values.dtype)), slopes_out), start, length, 0, dvn,
            key_head * WIDTH, BLOCK, WIDTH
        )
        slopes = _slopes(weights, slopes_out, values, scale)
        dleft, dright = tl.dot(tl.trans(slopes), left), tl.dot(tl.trans(slopes), right)
        _put_rotated_back(
            dk, dleft, dright, cos, sin, start, length, 0, dkn, key_head * WIDTH, angles, ROTATE,
            BLOCK, HALF
        )
        dleft, dright = tl.dot(slopes, key_left), tl.dot(slopes, key_right)
        _put_rotated_back(
            dq, dleft, dright, cos, sin, start, length, 0, dqn, key_head * WIDTH, angles, ROTATE,
            BLOCK, HALF
        )
    else:
        dleft = tl.zeros([BLOCK, HALF], tl.float32)
        dright = tl.zeros([BLOCK, HALF], tl.float32)
        dvalues = tl.zeros([BLOCK, WIDTH], tl.float32)
        for member in range(0, GROUP):
            head = key_head * GROUP + member
            left, right = _rotated(q, c, s, start, length, 0, qn, head * qh, ROTATE, BLOCK, HALF)
            slopes_out = _tile(dout, start, length, 0, HEADS * WIDTH, head * WIDTH, BLOCK, WIDTH)
            weights = _weights(
                left, right, key_left, key_right, sums, scale, start, length, 0, 0, head, HEADS,
                BLOCK
            )
            slopes = _slopes(weights, slopes_out, values, scale)
            dvalues += tl.dot(tl.trans(weights.to(values.dtype)), slopes_out)
            dleft += tl.dot(tl.trans(slopes), left)
            dright += tl.dot(tl.trans(slopes), right)
            query_left, query_right = tl.dot(slopes, key_left), tl.dot(slopes, key_right)
            _put_rotated_back(
                dq, query_left, query_right, cos, sin, start, length, 0, dqn, head * WIDTH, angles,
                ROTATE, BLOCK, HALF
            )
        _put_rotated_back(
            dk, dleft, dright, cos, sin, start, length, 0, dkn, key_head * WIDTH, angles, ROTATE,
            BLOCK, HALF
        )
        _put(dv, dvalues, start, length, 0, dvn, key_head * WIDTH, BLOCK, WIDTH)


@triton.jit
def backward(
    q, k, v, cos, sin, out, dout, sums, dq, dk, dv, cu_seq, scale, qn, qh, kn, kh, vn, vh, angles,
    dqn, dkn, dvn, ROTATE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):
    document, key_head = tl.program_id(0), tl.program_id(1)
    start = tl.load(cu_seq + document)
    length = tl.load(cu_seq + document + 1) - start
    if length > BLOCK:
        _backward_keys(
            q, k, v, cos, sin, out, dout, sums, dk, dv, scale, start, length, key_head, qn, qh, kn,
            kh, vn, vh, angles, dkn, dvn, ROTATE, HEADS, GROUP, WIDTH, BLOCK
        )
        for member in range(0, GROUP):
            head = key_head * GROUP + member
            _backward_queries(
                q, k, v, cos, sin, out, dout, sums, dq, scale, start, length, head, key_head, qn,
                qh, kn, kh, vn, vh, angles, dqn, ROTATE, HEADS, WIDTH, BLOCK
            )
    elif length > 0:
        _backward_of_one_block(
            q, k, v, cos, sin, dout, sums, dq, dk, dv, scale, start, length, key_head, qn, qh, kn,
            kh, vn, vh, angles, dqn, dkn, dvn, ROTATE, HEADS, GROUP, WIDTH, BLOCK
        )
