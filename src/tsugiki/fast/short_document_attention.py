"""Causal attention over packed short documents as one Triton kernel forward and one backward; its
twin is `attention.by_document`.

Flash attention's variable-length kernels are made for long documents: of forty tokens each they
spend most of the time on clearing and converting buffers. Here one program reads a document (of
one key head) once, and writes all its gradients.

    grid     documents × query heads forward, documents × key heads backward
    blocks   BLOCK query rows × BLOCK key rows; a document of more rows takes several
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

LONGEST = 128  # tokens of a document: beyond, flash attention is the faster one
WIDTHS = (32, 64, 128)
BLOCK = 64


def supports(values: torch.Tensor, longest: int) -> bool:
    """Whether the kernel takes heads [..., d] of this width, and documents of this length."""
    return (
        longest <= LONGEST
        and values.shape[-1] in WIDTHS
        and values.dtype in (torch.bfloat16, torch.float16)
    )


@torch.library.custom_op("tsugiki::short_document_attention", mutates_args=())
def short_document_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    cu_seq: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each document attends causally to itself.

    Args:
        q: [n, h, d]; k, v: [n, h_kv, d], fp16 or bf16
        cos, sin: [n, d], or None. The angles by which queries and keys are rotated first,
            as Llama's rotary embedding does; the right half of a row repeats the left one
        cu_seq: int32 [documents + 1], ascending from 0 to n; equal neighbours are empty documents
        scale: of the scores

    Returns:
        [n, h, d] in q's dtype, and log2 of each row's sum of exponentials [n, h], which the
        backward pass reads.

    Source: Dao 2023, "FlashAttention-2", algorithms 1 and 2, for documents of a block or two.
    """
    return _attend(q, k, v, cos, sin, cu_seq, scale)


@torch.library.custom_op("tsugiki::joined_attention", mutates_args=())
def joined_attention(
    qkv: torch.Tensor,
    heads: int,
    width: int,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    cu_seq: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`short_document_attention` of queries, keys and values that lie side by side, qkv [n, (h + 2
    h_kv) d]: their gradients do too, and need not be put together."""
    return _attend(*_parts(qkv, heads, width), cos, sin, cu_seq, scale)


@torch.library.custom_op("tsugiki::short_document_attention_backward", mutates_args=())
def short_document_attention_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    out: torch.Tensor,
    sums: torch.Tensor,
    cu_seq: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(∂q, ∂k, ∂v), shaped as q, k, v."""
    dq, dk, dv = (_like(part) for part in (q, k, v))
    _attend_backward(dout, q, k, v, cos, sin, out, sums, cu_seq, scale, dq, dk, dv)
    return dq, dk, dv


@torch.library.custom_op("tsugiki::joined_attention_backward", mutates_args=())
def joined_attention_backward(
    dout: torch.Tensor,
    qkv: torch.Tensor,
    heads: int,
    width: int,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    out: torch.Tensor,
    sums: torch.Tensor,
    cu_seq: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """∂qkv."""
    dqkv = _like(qkv)
    _attend_backward(
        dout,
        *_parts(qkv, heads, width),
        cos,
        sin,
        out,
        sums,
        cu_seq,
        scale,
        *_parts(dqkv, heads, width),
    )
    return dqkv


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    cu_seq: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = (_dense(tensor) for tensor in (q, k, v))
    assert len(q) * q.stride(0) < 2**31, "the kernels count in 32 bits"
    out = _like(q)
    sums = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    grid = (len(cu_seq) - 1, q.shape[1])
    _kernels()[0][grid](
        q, k, v, *_angles(q, cos, sin), out, sums, cu_seq, scale * 1.4426950408889634,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], 0 if cos is None else cos.stride(0),
        ROTATE=cos is not None,
        HEADS=q.shape[1], GROUP=q.shape[1] // k.shape[1], WIDTH=q.shape[2], BLOCK=BLOCK,
        num_warps=_warps(grid), num_stages=1,
    )  # fmt: skip
    return out, sums


def _attend_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    out: torch.Tensor,
    sums: torch.Tensor,
    cu_seq: torch.Tensor,
    scale: float,
    *into: torch.Tensor,
) -> None:
    """Writes ∂q, ∂k, ∂v `into` three tensors whose heads lie side by side."""
    q, k, v = (_dense(tensor) for tensor in (q, k, v))
    grid = (len(cu_seq) - 1, k.shape[1])
    _kernels()[1][grid](
        q, k, v, *_angles(q, cos, sin), out, dout.contiguous(), sums, *into, cu_seq, scale,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], 0 if cos is None else cos.stride(0),
        *(tensor.stride(0) for tensor in into), ROTATE=cos is not None,
        HEADS=q.shape[1], GROUP=q.shape[1] // k.shape[1], WIDTH=q.shape[2], BLOCK=BLOCK,
        num_warps=_warps(grid), num_stages=1,
    )  # fmt: skip


def _parts(
    qkv: torch.Tensor, heads: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views q [n, h, d], k and v [n, h_kv, d] of [n, (h + 2 h_kv) d]."""
    joined = qkv.view(len(qkv), -1, width)
    keys = (joined.shape[1] - heads) // 2
    q, k, v = joined.split([heads, keys, keys], dim=1)
    return q, k, v


def _warps(grid: tuple[int, int]) -> int:
    """The faster of 4 and 8 on an H100: few documents gain from more threads each, many from more
    of them in work. For the same reason one stage: more would fill the shared memory."""
    return 4 if grid[0] * grid[1] > 512 else 8


def _like(x: torch.Tensor) -> torch.Tensor:
    """Of x's shape, dense whatever x's strides are."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _angles(
    q: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) of one stride; something that is never read where there are none."""
    if cos is None or sin is None:
        return q, q
    assert cos.shape == sin.shape == (len(q), q.shape[2]), (
        f"angles {tuple(cos.shape)} for heads {tuple(q.shape)}"
    )
    assert cos.stride() == sin.stride() == (cos.stride(0), 1), "angles lie row by row"
    return cos, sin


@short_document_attention.register_fake
def _(q: torch.Tensor, *rest: Any) -> Any:
    return _like(q), torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)


@joined_attention.register_fake
def _(qkv: torch.Tensor, heads: int, width: int, *rest: Any) -> Any:
    tokens = qkv.shape[0]  # not len(): that would fix the number of tokens while compiling
    return qkv.new_empty(tokens, heads, width), qkv.new_empty(tokens, heads, dtype=torch.float32)


@short_document_attention_backward.register_fake
def _(dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> Any:
    return tuple(_like(part) for part in (q, k, v))


@joined_attention_backward.register_fake
def _(dout: torch.Tensor, qkv: torch.Tensor, *rest: Any) -> Any:
    return _like(qkv)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    *ctx.sizes, ctx.scale = [tensor for tensor in inputs if isinstance(tensor, int | float)]
    ctx.save_for_backward(
        *(tensor for tensor in inputs if not isinstance(tensor, int | float)), *output
    )
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: torch.Tensor, _: Any) -> Any:
    q, k, v, cos, sin, cu_seq, out, sums = ctx.saved_tensors
    return (
        *short_document_attention_backward(dout, q, k, v, cos, sin, out, sums, cu_seq, ctx.scale),
        None,
        None,
        None,
        None,
    )


def _backward_joined(ctx: Any, dout: torch.Tensor, _: Any) -> Any:
    qkv, cos, sin, cu_seq, out, sums = ctx.saved_tensors
    return (
        joined_attention_backward(dout, qkv, *ctx.sizes, cos, sin, out, sums, cu_seq, ctx.scale),
        None,
        None,
        None,
        None,
        None,
        None,
    )


short_document_attention.register_autograd(_backward, setup_context=_keep)
joined_attention.register_autograd(_backward_joined, setup_context=_keep)


@cache
def _kernels() -> tuple[Any, Any]:
    """The kernels; Triton comes with PyTorch's CUDA builds only."""
    from tsugiki.fast import short_document_kernels

    return short_document_kernels.forward, short_document_kernels.backward
