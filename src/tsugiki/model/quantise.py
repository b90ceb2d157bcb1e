"""A model's linear layers put into 4 bits (`model/nf4`), and back into ordinary ones of the same
values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tsugiki.errors import ModelError
from tsugiki.model.layouts import (
    by_outputs,
    groups_of,
    replace_module,
    transposed,
)
from tsugiki.model.nf4 import (
    BLOCK,
    KIND,
    Nf4Linear,
    hold_buffer,
    load_library,
    quantised,
)


def quantise_layers(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Puts 4 bits in the place of every linear layer of the layers, one by one on `device`: no more
    than one of them lies there dense. Matmuls will be in `dtype`.

    Raises:
        ModelError: bitsandbytes is absent, the model's layout is unknown, or a weight cannot be cut
            into blocks.
    """
    load_library()
    groups = groups_of(model)
    sizes = [[math.prod(_shape(model.get_submodule(path))) for path in paths] for paths in groups]
    layers, room = [], _Room(sum(map(sum, sizes)), _device_of(model, device))
    for paths in groups:
        for path in paths:
            module = model.get_submodule(path)
            made = _of_checkpoint(module, path, device, dtype) or _of_dense(
                module, path, device, dtype
            )
            made.codes, made.absmax = room.put(made.codes), room.put(made.absmax)
            replace_module(model, path, made)
            layers.append(made)
    _refuse_others(model)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what was dense there: of sizes that nothing else asks for
    hold_buffer(layers, max(map(sum, sizes)), device)


class _Room:
    """The codes of all layers one after another in one allocation, and so their scales: layers that
    become one matmul are joined without a copy, and no hole is left between what was dense."""

    def __init__(self, values: int, device: torch.device):
        self.kept = {
            torch.uint8: torch.empty(values // 2, dtype=torch.uint8, device=device),
            torch.float32: torch.empty(values // BLOCK, device=device),
        }
        self.used = dict.fromkeys(self.kept, 0)

    def put(self, made: torch.Tensor) -> torch.Tensor:
        """A copy, where it stays."""
        start = self.used[made.dtype]
        self.used[made.dtype] = start + made.numel()
        out = self.kept[made.dtype][start : start + made.numel()].view(made.shape)
        return out.copy_(made)


def dense_layers(model: Any, dtype: torch.dtype) -> None:
    """Puts the weights that the codes stand for in their place, as ordinary layers."""
    for path, module in [*model.named_modules()]:
        if not isinstance(module, Nf4Linear):
            continue
        made: nn.Module
        weight = module.dense().to(dtype)
        with torch.device("meta"):
            if module.transposed:
                made, weight = Conv1D(module.out_features, module.in_features), weight.t()
            else:
                made = nn.Linear(module.in_features, module.out_features, bias=False)
        made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        made.bias = module.bias  # type: ignore[assignment]
        replace_module(model, path, made)


def _shape(module: Any) -> tuple[int, int]:
    """(d_out, d_in) of a layer, dense or of a 4-bit checkpoint."""
    state: Any = getattr(getattr(module, "weight", None), "quant_state", None)
    d_out, d_in = by_outputs(module).shape if state is None else state.shape
    return d_out, d_in


def _device_of(model: Any, device: torch.device) -> torch.device:
    """Where codes lie: nowhere for a model of sizes alone."""
    return torch.device("meta") if next(model.parameters()).is_meta else device


def _of_dense(module: Any, path: str, device: torch.device, dtype: torch.dtype) -> Nf4Linear:
    weight = by_outputs(module)
    if weight.numel() % BLOCK or weight.shape[1] % 2:
        raise ModelError(
            f'model.base = "nf4": {path} is {list(weight.shape)}, which cannot be cut into blocks '
            f"of {BLOCK}. Leave base out"
        )
    there = weight if weight.is_meta else weight.to(device)
    codes, absmax = quantised(there)
    return Nf4Linear(codes, absmax, module.bias, dtype, transposed=transposed(module))


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
