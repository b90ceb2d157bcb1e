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
from transformers.pytorch_utils import Conv1D

from tsugiki.errors import ModelError

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
        raise ModelError(
            'model.base = "nf4": needs bitsandbytes: pip install "tsugiki[nf4]"'
        ) from None
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


def quantise_layers(
    model: Any, groups: list[list[str]], device: torch.device, dtype: torch.dtype
) -> None:
    """Puts 4 bits in the place of every linear layer that `groups` names (those of one group may
    become one matmul), layer by layer on `device`: no more than one of them lies there dense.
    Matmuls will be in `dtype`.

    Raises:
        ModelError: bitsandbytes is absent, or a weight cannot be cut into blocks.
    """
    load_library()
    layers, largest = [], 0
    for paths in groups:
        group = []
        for path in paths:
            module = model.get_submodule(path)
            made = _of_checkpoint(module, path, device, dtype) or _of_dense(
                module, path, device, dtype
            )
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, made)
            group.append(made)
        # One after another in memory, so that nothing is copied where they become one matmul.
        for name in ("codes", "absmax"):
            joined = joined_views([getattr(layer, name) for layer in group])
            for layer, part in zip(group, joined[1], strict=True):
                setattr(layer, name, part)
        layers += group
        largest = max(largest, sum(layer.in_features * layer.out_features for layer in group))
    _refuse_others(model)
    hold_buffer(layers, largest, device)


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


def dense_layers(model: Any, dtype: torch.dtype) -> None:
    """Puts the weights that the codes stand for in their place, as ordinary layers."""
    for path, module in [*model.named_modules()]:
        if not isinstance(module, Nf4Linear):
            continue
        weight = nn.Parameter(module.dense().to(dtype), requires_grad=False)
        made: nn.Module
        with torch.device("meta"):
            if module.transposed:
                made = Conv1D(module.out_features, module.in_features)
                weight = nn.Parameter(weight.t().contiguous(), requires_grad=False)
            else:
                made = nn.Linear(module.in_features, module.out_features, bias=False)
        made.weight, made.bias = weight, module.bias  # type: ignore[assignment]
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, made)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights as they are stored, tied ones counted once; no buffers but
    codes."""
    own = [*model.parameters()]
    for module in model.modules():
        if isinstance(module, Nf4Linear):
            own += [module.codes, module.absmax]  # type: ignore[list-item]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def _of_dense(module: Any, path: str, device: torch.device, dtype: torch.dtype) -> Nf4Linear:
    weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
    if weight.numel() % BLOCK or weight.shape[1] % 2:
        raise ModelError(
            f'model.base = "nf4": {path} is {list(weight.shape)}, which cannot be cut into blocks '
            f"of {BLOCK}. Leave base out"
        )
    there = weight if weight.is_meta else weight.to(device)
    codes, absmax = quantised(there)
    return Nf4Linear(codes, absmax, module.bias, dtype, transposed=isinstance(module, Conv1D))


def _of_checkpoint(
    module: Any, path: str, device: torch.device, dtype: torch.dtype
) -> Nf4Linear | None:
    """A layer that transformers read from a 4-bit checkpoint; None for another."""
    from bitsandbytes.functional import dequantize_blockwise
    from bitsandbytes.nn import Linear4bit

    if not isinstance(module, Linear4bit):
        return None
    state: Any = module.weight.quant_state  # type: ignore[attr-defined]
    if state.quant_type != KIND or state.blocksize != BLOCK:
        raise ModelError(
            f"{path}: is kept in {state.quant_type} blocks of {state.blocksize}; only nf4 in "
            f"blocks of {BLOCK} is read"
        )
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    d_out, d_in = state.shape
    codes = module.weight.data.view(d_out, d_in // 2).to(device)
    return Nf4Linear(codes, absmax.float().to(device), module.bias, dtype, transposed=False)


def _refuse_others(model: Any) -> None:
    """Raises `ModelError` for a layer of another 4-bit kind that is left."""
    from bitsandbytes.nn import Linear4bit

    left = [path for path, module in model.named_modules() if isinstance(module, Linear4bit)]
    if left:
        raise ModelError(f"its {left[0]} is in 4 bits too, which is read of its layers alone")


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
