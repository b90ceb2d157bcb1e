"""silu(gate) · up over one matmul output that holds both, as one operator with its own backward
pass: [gate | up] → silu(gate) · up.

On CUDA a Triton kernel each way: it writes both gradients side by side, where the matmul's
backward pass reads them. Elsewhere its twin.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

BLOCK = 1024


@torch.library.custom_op("tsugiki::swiglu", mutates_args=())
def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """[n, 2 m] → [n, m], in the input's dtype. Source: Shazeer 2020, "GLU Variants Improve
    Transformer", SwiGLU."""
    if not gate_up.is_cuda:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    _kernels()[0][_grid(out)](gate_up, out, out.shape[1], BLOCK=BLOCK)
    return out


@torch.library.custom_op("tsugiki::swiglu_backward", mutates_args=())
def swiglu_backward(dout: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """∂gate_up [n, 2 m]."""
    if not gate_up.is_cuda:
        gate, up = gate_up.float().chunk(2, dim=-1)
        share = gate.sigmoid()
        slopes = dout.float()
        return torch.cat(
            [slopes * up * share * (1 + gate * (1 - share)), slopes * gate * share], dim=-1
        ).to(gate_up.dtype)
    dgate_up = torch.empty_like(gate_up)
    _kernels()[1][_grid(dout)](dout.contiguous(), gate_up, dgate_up, dout.shape[1], BLOCK=BLOCK)
    return dgate_up


def _grid(out: torch.Tensor) -> tuple[int, int]:
    return len(out), -(-out.shape[1] // BLOCK)


@swiglu.register_fake
def _(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@swiglu_backward.register_fake
def _(dout: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gate_up)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dout: torch.Tensor) -> Any:
    return swiglu_backward(dout, *ctx.saved_tensors)


swiglu.register_autograd(_backward, setup_context=_keep)


@cache
def _kernels() -> tuple[Any, Any]:
    """The kernels; Triton comes with PyTorch's CUDA builds only."""
    from tsugiki.fast import swiglu_kernels

    return swiglu_kernels.forward, swiglu_kernels.backward
