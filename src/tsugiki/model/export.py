"""An adapter as a PEFT folder.

Adapters on column ranges of one fused weight leave as one PEFT module of rank m·r over the whole
weight: the A's stacked, each B zero outside its own range. All modules have one rank, the smaller
ones padded with zero rows: so one α serves all, and programs that divide it by a tensor's rows
(llama.cpp) scale as those that divide it by the configured rank (peft, vLLM). `model/read_adapter`
reads them back exactly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import pad

from tsugiki.errors import ModelError
from tsugiki.model.layouts import TargetSlice, layout_of, out_features, transposed
from tsugiki.model.lora import LaneAdapter, lora_layers
from tsugiki.toml import Given

PREFIX = "base_model.model."
KEPT = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}


def export_adapter(
    adapter: LaneAdapter, folder: Path, base_name: str, revision: str | None = None
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ModelError: the folder holds something already: results are never overwritten.
    """
    refuse_filled(folder)
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for path, layer in lora_layers(adapter.model):
        adapters = layer.adapters_of(adapter.lane)
        if not adapters:
            continue
        parts, factors_a, factors_b = zip(*adapters, strict=True)
        pairs[path] = fuse(parts, factors_a, factors_b, out_features(layer.base))
    rank = max(len(a) for a, _ in pairs.values())
    tensors: dict[str, torch.Tensor] = {}
    for path, (a, b) in pairs.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = pad(a, (0, 0, 0, rank - len(a)))
        tensors[f"{PREFIX}{path}.lora_B.weight"] = pad(b, (0, rank - len(a)))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    given = {**_config(adapter, rank, list(pairs), base_name), "revision": revision}
    (folder / "adapter_config.json").write_text(
        json.dumps(given, indent=2, ensure_ascii=False), encoding="utf-8"
    )


def refuse_filled(folder: Path) -> None:
    """Raises `ModelError` when something is there already: results are never overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder}: not an empty folder. Choose a new one: nothing is overwritten")


def fuse(
    parts: Sequence[TargetSlice], a: Sequence[Any], b: Sequence[Any], width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(A [m·r, d_in], B [width, m·r]) of the adapters on one module; B is zero outside each
    adapter's range."""
    stacked = torch.cat([factor.detach() for factor in a]).contiguous().cpu()
    rank = b[0].shape[1]
    wide = torch.zeros(width, rank * len(parts))
    for index, (part, factor) in enumerate(zip(parts, b, strict=True)):
        wide[part.rows(width), index * rank : (index + 1) * rank] = factor.detach().cpu()
    return stacked, wide


def _config(adapter: LaneAdapter, rank: int, paths: Sequence[str], base_name: str) -> Given:
    config, layout = adapter.config, layout_of(adapter.model)
    targets = sorted({path.removeprefix(f"{layout.layers}.").split(".", 1)[1] for path in paths})
    alpha = config.scale * rank
    return {
        **KEPT,
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "fan_in_fan_out": any(
            transposed(layer.base) for path, layer in lora_layers(adapter.model) if path in paths
        ),
        "inference_mode": True,
        "init_lora_weights": True,
    }
