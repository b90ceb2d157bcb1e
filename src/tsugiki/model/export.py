"""An adapter as a PEFT folder, out and in, and merged into its base. The only file that speaks
PEFT's spelling.

Adapters on column ranges of one fused weight leave as one PEFT module of rank m·r over the whole
weight: the A's stacked, each B zero outside its own range; `alpha_pattern` keeps the scale. They
come back exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import regex
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tsugiki.config.run import LoraConfig
from tsugiki.errors import ModelError, first_line
from tsugiki.model.layouts import (
    WHOLE,
    TargetSlice,
    by_module,
    every_target_slice,
    layout_of,
    out_features,
    transposed,
)
from tsugiki.model.lora import LaneAdapter, attach, lora_layers
from tsugiki.toml import Given

PREFIX = "base_model.model."
KEPT = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
# Settings of peft that say where an adapter comes from, how it was started or trained, or which
# modules it is on: the tensors tell that.
READ_OR_HARMLESS = frozenset({
    *KEPT, "r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights",
    "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out", "layers_pattern",
    "auto_mapping", "peft_version", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core",
    "qalora_group_size", "runtime_config", "ensure_weight_tying",
})  # fmt: skip
REFUSED = {  # what would change the result and is not implemented: refused by name
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "layers_to_transform": None,
    "lora_bias": False,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
    "velora_config": None,
    "use_bdlora": None,
    "use_qalora": False,
}
# Ways to start an adapter that leave the base as it is (pissa, olora, loftq do not).
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def export_adapter(
    adapter: LaneAdapter, folder: Path, base_name: str, revision: str | None = None
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        ModelError: the folder holds something already: results are never overwritten.
    """
    refuse_filled(folder)
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for path, layer in lora_layers(adapter.model):
        adapters = layer.adapters_of(adapter.lane)
        if not adapters:
            continue
        parts, factors_a, factors_b = zip(*adapters, strict=True)
        a, b = fuse(parts, factors_a, factors_b, out_features(layer.base))
        tensors[f"{PREFIX}{path}.lora_A.weight"] = a
        tensors[f"{PREFIX}{path}.lora_B.weight"] = b
        ranks[path] = a.shape[0]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    given = {**_config(adapter, ranks, base_name), "revision": revision}
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


def _config(adapter: LaneAdapter, ranks: dict[str, int], base_name: str) -> Given:
    config, layout = adapter.config, layout_of(adapter.model)
    targets = sorted({path.removeprefix(f"{layout.layers}.").split(".", 1)[1] for path in ranks})
    alpha = config.alpha or config.rank
    odd = {path: rank for path, rank in ranks.items() if rank != config.rank}
    return {
        **KEPT,
        "base_model_name_or_path": base_name,
        "r": config.rank,
        "lora_alpha": alpha,
        "rank_pattern": odd,
        "alpha_pattern": {path: alpha * rank / config.rank for path, rank in odd.items()},
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "fan_in_fan_out": any(
            transposed(layer.base) for path, layer in lora_layers(adapter.model) if path in ranks
        ),
        "inference_mode": True,
        "init_lora_weights": True,
    }


def import_adapter(model: torch.nn.Module, folder: Path) -> LaneAdapter:
    """Attaches an adapter that `export_adapter` or peft wrote; the tensors come back exactly.

    Raises:
        ModelError: the folder is incomplete or damaged, or asks for something that is not
            implemented (named).
    """
    given, tensors = read_adapter(folder)
    names, rank = _targets_and_rank(model, tensors, given, folder)
    alpha = _scale(tensors, given, folder) * rank
    adapter = attach(
        model, LoraConfig(targets="+".join(names), rank=rank, alpha=alpha, dropout=0.0), seed=0
    )
    for path, layer in lora_layers(adapter.model):
        width = rank * len(layer.slices)
        a = _take(tensors, f"{path}.lora_A.weight", (width, layer.d_in), folder, given)
        b = _take(
            tensors, f"{path}.lora_B.weight", (out_features(layer.base), width), folder, given
        )
        for index, part in enumerate(layer.slices):
            ranks = slice(index * rank, (index + 1) * rank)
            layer.lora_a[index].data.copy_(a[ranks])
            layer.lora_b[index].data.copy_(b[part.rows(len(b)), ranks])
    if tensors:
        raise ModelError(
            f"{folder}: {len(tensors)} tensors have no place in this model, the first is "
            f"{min(tensors)}"
        )
    return adapter


def read_adapter(folder: Path) -> tuple[Given, dict[str, torch.Tensor]]:
    """Settings and tensors of a PEFT adapter folder.

    Raises:
        ModelError: a file is missing or damaged, a number is not finite, or a setting asks for
            something that is not implemented (named).
    """
    try:
        given = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except FileNotFoundError as broken:
        raise ModelError(
            f"{folder}: {Path(str(broken.filename or 'adapter_model.safetensors')).name} is "
            "missing: not a PEFT adapter folder"
        ) from None
    except (ValueError, OSError, RecursionError, SafetensorError) as broken:
        raise ModelError(f"{folder}: damaged or cut short: {first_line(broken)}") from None
    if not isinstance(given, dict):
        raise ModelError(
            f"{folder / 'adapter_config.json'}: must be a JSON object, is {type(given).__name__}"
        )
    _check_adapter_settings(given, folder)
    for name, tensor in tensors.items():
        if ".default." in name:
            raise ModelError(
                f"{folder}: its tensors are named as inside peft (“{name}”). Save it with "
                'save_pretrained, or take ".default" out of the names'
            )
        if not tensor.is_floating_point():
            raise ModelError(
                f"{folder}: {name} is of the type {str(tensor.dtype).removeprefix('torch.')}: no "
                "weights of an adapter"
            )
        if not bool(tensor.isfinite().all()):
            raise ModelError(
                f"{folder}: {name} holds values that are not finite numbers: training diverged, or "
                "the file is damaged"
            )
    return given, tensors


def _check_adapter_settings(given: Given, folder: Path) -> None:
    path = folder / "adapter_config.json"
    for key, wanted in KEPT.items():
        if given.get(key) not in (wanted, *((None,) if key != "peft_type" else ())):
            raise ModelError(
                f"{path}: {key} = {given.get(key)!r} is not implemented; only plain LoRA adapters "
                "of causal language models can be read"
            )
    for key, harmless in REFUSED.items():
        if given.get(key, harmless) not in (harmless, [], {}, None):
            raise ModelError(
                f"{folder}: {key} = {given[key]!r} is not implemented; only plain LoRA adapters "
                "can be read"
            )
    if given.get("init_lora_weights", True) not in STARTS:
        raise ModelError(
            f"{folder}: init_lora_weights = {given['init_lora_weights']!r} changes the base's own "
            "weights, which is not implemented"
        )
    for key in set(given) - READ_OR_HARMLESS - set(REFUSED):
        if given[key] not in (None, False, [], {}, ""):
            raise ModelError(
                f"{path}: {key} = {given[key]!r} is not known here, and may change what the "
                "adapter does. Remove it if it does not"
            )
    numbers = {key: given.get(key) for key in ("r", "lora_alpha")}
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = given.get(key) or {}
        if not isinstance(patterns, dict):
            raise ModelError(f"{path}: {key} must be an object of names and numbers")
        numbers |= {f"{key}.{name}": value for name, value in patterns.items()}
    for key, value in numbers.items():
        if value is None:
            raise ModelError(f"{path}: {key} is missing: not a LoRA adapter")
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or value <= 0
        ):
            raise ModelError(f"{path}: {key} = {value} must be above 0, and a number")


def _take(
    tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, int], folder: Path, given: Given
) -> torch.Tensor:
    """Takes one tensor out; raises `ModelError` when it is not there or belongs to a base of other
    sizes."""
    tensor = tensors.pop(PREFIX + name, None)
    if tensor is None:
        raise ModelError(
            f"{folder}: has no {name}, though other layers have: adapters on some layers only are "
            "not implemented"
        )
    if tuple(tensor.shape) != shape:
        made_for = given.get("base_model_name_or_path")
        raise ModelError(
            f"{folder}: {name} is {list(tensor.shape)}, this model needs {list(shape)}. The "
            f"adapter was made for {made_for}"
        )
    return tensor


def _scale(tensors: dict[str, torch.Tensor], given: Given, folder: Path) -> float:
    """α / r as peft computes it for each module, patterns included; raises `ModelError` when
    modules differ, or r is not the tensors'."""
    scales = set()
    for name, tensor in tensors.items():
        if name.endswith(".lora_A.weight"):
            path = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            alpha, rank = (
                _by_pattern(given.get(f"{key}_pattern") or {}, path, given[default_key])
                for key, default_key in (("alpha", "lora_alpha"), ("rank", "r"))
            )
            if tensor.ndim != 2 or tensor.shape[0] != rank:
                raise ModelError(
                    f"{folder}: {name} has the shape {list(tensor.shape)}, but adapter_config.json "
                    f"says rank {rank:g}: peft would scale it otherwise"
                )
            scales.add(alpha / tensor.shape[0])
    if len(scales) != 1:
        raise ModelError(
            f"{folder}: modules of different scales (α / r: "
            f"{', '.join(f'{scale:g}' for scale in sorted(scales))}) are not implemented"
        )
    return float(scales.pop())


def _by_pattern(patterns: dict[str, float], path: str, default: float) -> float:
    """The value of the first pattern that a module's path ends with, as peft looks it up."""
    for pattern, value in patterns.items():
        try:
            if regex.match(rf"(.*\.)?({pattern})$", path, timeout=1.0):
                return value
        except (regex.error, TimeoutError):
            raise ModelError(
                f"adapter_config.json: the pattern “{pattern}” is no regular expression, or runs "
                "away"
            ) from None
    return default


def _stacked_ranges(
    parts: Sequence[TargetSlice], a: torch.Tensor, b: torch.Tensor, rank: int
) -> list[str]:
    """The targets whose adapters were stacked into one: each B is zero outside its own range. None
    for an adapter of the whole weight."""
    used = [part for part in parts if b[part.rows(len(b))].any()]
    if not used:  # B is zero: before training
        used = list(parts) if len(a) == rank * len(parts) else []
    if not used or len(a) % len(used):
        return []
    rank_each = len(a) // len(used)
    from_slices = fuse(
        used,
        [a] * len(used),
        [b[part.rows(len(b)), n * rank_each : (n + 1) * rank_each] for n, part in enumerate(used)],
        len(b),
    )[1]
    return [part.target for part in used] if torch.equal(from_slices, b.float().cpu()) else []


def _targets_and_rank(
    model: torch.nn.Module, tensors: dict[str, torch.Tensor], given: Given, folder: Path
) -> tuple[list[str], int]:
    """Which targets the adapter covers, and the rank of each: of a fused weight the ranges that
    `export_adapter` stacked, or the whole as `qkv`."""
    targets: list[str] = []
    ranks: set[int] = set()
    for path, parts in by_module(
        [part for part in every_target_slice(model) if part.target != WHOLE]
    ).items():
        a = tensors.get(f"{PREFIX}{path}.lora_A.weight")
        if a is None:
            continue
        covered = [part.target for part in parts]
        if len(parts) > 1:
            b = tensors.get(f"{PREFIX}{path}.lora_B.weight")
            if b is None or len(b) != out_features(model.get_submodule(path)):
                raise ModelError(
                    f"{folder}: {path}.lora_B.weight is missing or of another size. The adapter "
                    f"was made for {given.get('base_model_name_or_path')}"
                )
            covered = _stacked_ranges(parts, a, b, given["r"]) or [WHOLE]
        targets.extend(target for target in covered if target not in targets)
        ranks.add(a.shape[0] // len(covered))
    if not targets:
        raise ModelError(
            f"{folder}: none of its tensors has a place in this model. The adapter was made for "
            f"{given.get('base_model_name_or_path')}"
        )
    if len(ranks) != 1:
        raise ModelError(
            f"{folder}: adapters of different ranks ({sorted(ranks)}) in one folder are not "
            "implemented"
        )
    return targets, ranks.pop()
