"""silu(gate) · up over one product that holds both, as one operator with its own backward pass:
[gate | up] → silu(gate) · up.

On CUDA a Triton kernel each way: it writes both gradients side by side, where the product's
backward pass reads them. Elsewhere its twin.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

BLOCK = 1024


@torch.library.custom_op("tsugiki::gated", mutates_args=())
def gated(product: torch.Tensor) -> torch.Tensor:
    """[n, 2 m] → [n, m], in the product's dtype. Source: Shazeer 2020, "GLU Variants Improve
    Transformer", SwiGLU."""
    if not product.is_cuda:
        gate, up = product.chunk(2, dim=-1)
        return F.silu(gate) * up
    out = product.new_empty(len(product), product.shape[1] // 2)
    _kernels()[0][_grid(out)](product, out, out.shape[1], BLOCK=BLOCK)
    return out


@torch.library.custom_op("tsugiki::gated_backward", mutates_args=())
def gated_backward(dout: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    """∂product [n, 2 m]."""
    if not product.is_cuda:
        gate, up = product.float().chunk(2, dim=-1)
        share = gate.sigmoid()
        slopes = dout.float()
        return torch.cat(
            [slopes * up * share * (1 + gate * (1 - share)), slopes * gate * share], dim=-1
        ).to(product.dtype)
    dproduct = torch.empty_like(product)
    _kernels()[1][_grid(dout)](dout.contiguous(), product, dproduct, dout.shape[1], BLOCK=BLOCK)
    return dproduct


def _grid(out: torch.Tensor) -> tuple[int, int]:
    return len(out), -(-out.shape[1] // BLOCK)


@gated.register_fake
def _(product: torch.Tensor) -> torch.Tensor:
    return product.new_empty(product.shape[0], product.shape[1] // 2)


@gated_backward.register_fake
def _(dout: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(product)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dout: torch.Tensor) -> Any:
    return gated_backward(dout, *ctx.saved_tensors)


gated.register_autograd(_backward, setup_context=_keep)


@cache
def _kernels() -> tuple[Any, Any]:
    """The kernels; Triton comes with PyTorch's CUDA builds only."""
    from tsugiki.fast import swiglu_kernels

    return swiglu_kernels.forward, swiglu_kernels.backward
