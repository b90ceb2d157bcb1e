"""Causal attention over packed short documents as one Triton kernel forward and one backward; its twin is `attention.by_document`.

Flash attention's variable-length kernels are made for long documents: of forty tokens each they spend most of the time on
clearing and converting buffers. Here one program reads a document (of one key head) once, and writes all its gradients.

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
WARPS = (8, 4)  # of the forward and of the backward kernel: the faster of 2, 4 and 8 on an H100


def serves(q: torch.Tensor, longest: int) -> bool:
    """Whether the kernel takes heads of this width and documents of this length."""
    return longest <= LONGEST and q.shape[-1] in WIDTHS and q.dtype in (torch.bfloat16, torch.float16)


@torch.library.custom_op("tsugiki::short_attention", mutates_args=())
def short_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seq: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each document attends causally to itself.

    Args:
        q: [n, h, d]; k, v: [n, h_kv, d], fp16 or bf16
        cu_seq: int32 [documents + 1], ascending from 0 to n; equal neighbours are empty documents
        scale: of the scores

    Returns:
        [n, h, d] in q's dtype, and log2 of each row's sum of exponentials [n, h], which the backward pass reads.

    Source: Dao 2023, "FlashAttention-2", algorithms 1 and 2, for documents of a block or two.
    """
    q, k, v = (_dense(one) for one in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    sums = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    grid = (len(cu_seq) - 1, q.shape[1])
    _kernels()[0][grid](
        q, k, v, out, sums, cu_seq, scale * 1.4426950408889634,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        HEADS=q.shape[1], GROUP=q.shape[1] // k.shape[1], WIDTH=q.shape[2], BLOCK=BLOCK, num_warps=WARPS[0],
    )  # fmt: skip
    return out, sums


@torch.library.custom_op("tsugiki::short_attention_backward", mutates_args=())
def short_attention_backward(
    dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, sums: torch.Tensor, cu_seq: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(∂q, ∂k, ∂v), shaped as q, k, v."""
    q, k, v = (_dense(one) for one in (q, k, v))
    dout = dout.contiguous()
    dq, dk, dv = (torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in (q, k, v))
    grid = (len(cu_seq) - 1, k.shape[1])
    _kernels()[1][grid](
        q, k, v, out, dout, sums, dq, dk, dv, cu_seq, scale,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        HEADS=q.shape[1], GROUP=q.shape[1] // k.shape[1], WIDTH=q.shape[2], BLOCK=BLOCK, num_warps=WARPS[1],
    )  # fmt: skip
    return dq, dk, dv


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@short_attention.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seq: torch.Tensor, scale: float) -> Any:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)


@short_attention_backward.register_fake
def _(dout: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> Any:
    return tuple(torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in (q, k, v))


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, cu_seq, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seq)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: torch.Tensor, _: Any) -> Any:
    q, k, v, out, sums, cu_seq = ctx.saved_tensors
    return *short_attention_backward(dout, q, k, v, out, sums, cu_seq, ctx.scale), None, None


short_attention.register_autograd(_backward, setup_context=_keep)


@cache
def _kernels() -> tuple[Any, Any]:
    """The kernels; Triton comes with PyTorch's CUDA builds only."""
    from tsugiki.model import short_kernels

    return short_kernels.forward, short_kernels.backward
