"""Frozen linear layers in 4 bits: `[model] base = "nf4"`, what QLoRA trains adapters over.

    weight [d_out, d_in]  →  codes  [d_out, d_in / 2]    uint8, two values a byte
                             absmax [d_out · d_in / 64]  fp32, the largest of each block of 64

bitsandbytes makes the codes, and makes them dense again before each matmul: on CUDA always into
one buffer as large as the largest layer, so that never more than one layer is dense. Backward
passes make it dense anew: nothing dense is kept. Embeddings, norms and the output layer stay as
they are.

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from tsugiki.errors import ModelError, needs

BLOCK = 64
KIND = "nf4"
_BUFFERS: WeakValueDictionary[tuple[torch.device, torch.dtype], torch.Tensor] = (
    WeakValueDictionary()
)


def load_library() -> None:
    """Imports bitsandbytes. On CPUs with fast bf16 it would fetch a compiled kernel from the Hub
    where the package `kernels` is installed: nothing of ours calls it, and no code comes from
    there.

    Raises:
        ModelError: bitsandbytes is not there.
    """
    if "bitsandbytes" in sys.modules:
        return
    said = logging.getLogger("bitsandbytes.backends.cpu.ops")
    before, hidden = said.level, sys.modules.get("kernels")
    said.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise ModelError(needs('model.base = "nf4"', "bitsandbytes")) from None
    finally:
        said.setLevel(before)
        del sys.modules["kernels"]
        if hidden is not None:
            sys.modules["kernels"] = hidden


class Nf4Linear(nn.Module):
    """A frozen linear layer in 4 bits. `dtype` is what its matmuls are in; `transposed` says that
    it was one of GPT-2's, which keep their weight as [in, out]."""

    codes: torch.Tensor
    absmax: torch.Tensor

    def __init__(
        self,
        codes: torch.Tensor,
        absmax: torch.Tensor,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
        *,
        transposed: bool,
    ):
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.bias, self.dtype, self.transposed = bias, dtype, transposed
        self.buffer: torch.Tensor | None = None  # held, so that it lives as long as the layer

    @property
    def in_features(self) -> int:
        return 2 * self.codes.shape[1]

    @property
    def out_features(self) -> int:
        return len(self.codes)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[..., d_in] → [..., d_out]."""
        out: torch.Tensor = nf4_linear(z.to(self.dtype), self.codes, self.absmax, self.bias)
        return out

    def dense(self) -> torch.Tensor:
        """The weight [d_out, d_in] that its codes stand for; a copy."""
        return dense(self.codes, self.absmax, self.dtype).clone()


def dense(weight: torch.Tensor, absmax: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """[d_out, d_in] for a matmul on the current stream: the weight itself, or what codes stand
    for. On CUDA the next call overwrites it."""
    if absmax is None:
        return weight
    shape = (len(weight), 2 * weight.shape[1])
    blocks = (absmax.numel(), BLOCK)
    op = torch.ops.bitsandbytes.dequantize_4bit
    if not weight.is_cuda:
        made: torch.Tensor = op(weight, absmax, BLOCK, KIND, blocks, dtype)
        return made.view(shape)
    buffer = _BUFFERS.get((weight.device, dtype))
    if buffer is None or buffer.numel() < absmax.numel() * BLOCK:
        buffer = torch.empty(absmax.numel() * BLOCK, dtype=dtype, device=weight.device)
    out = buffer[: absmax.numel() * BLOCK].view(blocks)
    op.out(weight, absmax, BLOCK, KIND, blocks, dtype, out=out)
    return out.view(shape)


def quantised(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, absmax) of a weight [d_out, d_in], on its device; only their sizes on the meta
    device."""
    d_out, d_in = weight.shape
    if weight.is_meta:
        return (
            torch.empty(d_out, d_in // 2, dtype=torch.uint8, device="meta"),
            torch.empty(weight.numel() // BLOCK, device="meta"),
        )
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(
        weight.detach().reshape(-1, BLOCK), blocksize=BLOCK, compress_statistics=False,
        quant_type=KIND,
    )  # fmt: skip
    return codes.view(d_out, d_in // 2), state.absmax


def joined_views(
    parts: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """(all stacked by their first dimension, views of the parts); nothing is copied where they lie
    so already."""
    first, sizes = parts[0], [len(part) for part in parts]
    ends = list(accumulate((part.numel() for part in parts), initial=first.storage_offset()))
    adjacent = not first.is_meta and all(
        part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and part.is_contiguous()
        and part.storage_offset() == start
        for part, start in zip(parts, ends[:-1], strict=True)
    )
    if adjacent:
        return first.as_strided((sum(sizes), *first.shape[1:]), first.stride()), tuple(parts)
    stacked = torch.cat([part.detach() for part in parts])
    return stacked, stacked.split(sizes)


def hold_buffer(layers: list[Nf4Linear], size: int, device: torch.device) -> None:
    """Makes the buffer that layers of at most `size` values are dense in, unless there is one."""
    if device.type != "cuda":
        return
    key = (device, layers[0].dtype)
    buffer = _BUFFERS.get(key)
    if buffer is None or buffer.numel() < size:
        buffer = _BUFFERS[key] = torch.empty(size, dtype=layers[0].dtype, device=device)
    for layer in layers:
        layer.buffer = buffer


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights as they are stored, tied ones counted once; no buffers but
    codes."""
    own = [*model.parameters()]
    for module in model.modules():
        if isinstance(module, Nf4Linear):
            own += [module.codes, module.absmax]  # type: ignore[list-item]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


@torch.library.custom_op("tsugiki::nf4_linear", mutates_args=())
def nf4_linear(
    x: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """W x + bias for x [..., d_in], W being what the codes stand for; x's gradient alone."""
    return torch.nn.functional.linear(
        x, dense(codes, absmax, x.dtype), None if bias is None else bias.to(x.dtype)
    )


@torch.library.custom_op("tsugiki::nf4_linear_backward", mutates_args=())
def nf4_linear_backward(
    dh: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor
) -> torch.Tensor:
    """∂x [..., d_in] from ∂h [..., d_out]."""
    return dh @ dense(codes, absmax, dh.dtype)


@nf4_linear.register_fake
def _(x: torch.Tensor, codes: torch.Tensor, absmax: Any, bias: Any) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


@nf4_linear_backward.register_fake
def _(dh: torch.Tensor, codes: torch.Tensor, absmax: Any) -> torch.Tensor:
    return dh.new_empty(*dh.shape[:-1], 2 * codes.shape[1])


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    _, codes, absmax, _ = inputs
    ctx.save_for_backward(codes, absmax)


def _backward(ctx: Any, dh: torch.Tensor) -> Any:
    return nf4_linear_backward(dh, *ctx.saved_tensors), None, None, None


nf4_linear.register_autograd(_backward, setup_context=_keep)
