"""Adapters added to the weights they lie on. What rounding takes away is told."""

from __future__ import annotations

import math

import torch

from tsugiki.model.layouts import by_outputs, replace_module, store_by_outputs, weight_of
from tsugiki.model.lora import lora_layers


def store_frozen(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights that adapters lie on, and all others of the base, to `dtype`; the adapters
    stay as they are."""
    adapters = {
        id(parameter)
        for _, layer in lora_layers(model)
        for parameter in (*layer.lora_a, *layer.lora_b)
    }
    for parameter in model.parameters():
        if id(parameter) not in adapters:
            parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def merge_adapter(model: torch.nn.Module, dtype: torch.dtype) -> float:
    """Adds the adapters of a model of one lane to its frozen weights: in fp32, cast to `dtype`
    last, as all of the model is then.

    Returns:
        The share of the change that rounding to `dtype` took away: |rounded - exact| / |exact| of
        all merged weights' changes.
    """
    lost = total = 0.0
    for path, layer in lora_layers(model):
        wide = by_outputs(layer.base).detach().float()  # [d_out, d_in]
        change = torch.zeros_like(wide)
        for part, a, b in layer.adapters_of(0):
            change[part.rows(len(wide)).to(wide.device)] += (
                layer.lanes[0].scale * b.detach().float() @ a.detach().float()
            )
        merged = (wide + change).to(dtype)
        lost += float((merged.float() - wide - change).norm() ** 2)
        total += float(change.norm() ** 2)
        store_by_outputs(layer.base, merged)
        weight_of(layer.base).data = weight_of(layer.base).data.contiguous()
        replace_module(model, path, layer.base)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(
            dtype
            # not the buffers: rotary embedding's frequencies stay in fp32, as they are when the
            # folder is loaded
        )
    return math.sqrt(lost / total) if total else 0.0
