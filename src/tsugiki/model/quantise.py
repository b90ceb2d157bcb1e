"""A model's linear layers put into 4 bits (`model/nf4`), and back into ordinary ones of the same
values."""

from __future__ import annotations

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
    joined_views,
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
    layers, largest = [], 0
    for paths in groups_of(model):
        group = []
        for path in paths:
            module = model.get_submodule(path)
            made = _of_checkpoint(module, path, device, dtype) or _of_dense(
                module, path, device, dtype
            )
            replace_module(model, path, made)
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
