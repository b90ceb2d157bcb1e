"""A PEFT adapter folder, put on a model: our own, or what peft, LLaMA-Factory or Unsloth wrote."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import regex
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tsugiki.config.run import LoraConfig
from tsugiki.errors import ModelError, first_line
from tsugiki.model.export import KEPT, PREFIX, fuse
from tsugiki.model.layouts import (
    WHOLE,
    TargetSlice,
    by_module,
    every_target_slice,
    in_features,
    out_features,
)
from tsugiki.model.lora import LaneAdapter, attach, lora_layers
from tsugiki.toml import Given

# Settings of peft that say where an adapter comes from, how it was started or trained, or which
# modules it is on: the tensors tell that.
READ_OR_HARMLESS = frozenset({
    *KEPT, "r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights",
    "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out", "layers_pattern",
    "layers_to_transform", "use_rslora", "auto_mapping", "peft_version", "loftq_config",
    "eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core",
    "qalora_group_size", "runtime_config", "ensure_weight_tying",
})  # fmt: skip
REFUSED = {  # what would change the result and is not implemented: refused by name
    "use_dora": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "layer_replication": None,
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


@dataclass(frozen=True, kw_only=True)
class _Factors:
    """What a folder holds for one module: A [m·r, d_in] and B [d_out, m·r] without the zero rows
    that pad them, α / r, and the targets that it covers (m of them, each of rank r)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float
    covered: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.a) // len(self.covered)


def adapter_folder(folder: Path) -> Path:
    """The folder itself, or the only checkpoint one level down, as trainers leave it.

    Raises:
        ModelError: several checkpoints lie there.
    """
    if (folder / "adapter_config.json").exists():
        return folder
    below = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    if len(below) > 1:
        raise ModelError(
            f"{folder}: holds {len(below)} adapters: {', '.join(path.name for path in below)}. "
            "Name one of them"
        )
    return below[0] if below else folder


def import_adapter(model: torch.nn.Module, folder: Path) -> LaneAdapter:
    """Attaches an adapter that `export_adapter` or peft wrote; the tensors come back exactly.

    Modules of smaller rank, and layers without an adapter, are padded with zeros; where modules
    have different scales (α / r) the difference goes into their B. `num_real` of what is returned
    counts parameters without padding.

    Raises:
        ModelError: the folder is incomplete or damaged, or asks for something that is not
            implemented (named).
    """
    given, tensors = read_adapter(folder)
    parts = by_module([part for part in every_target_slice(model) if part.target != WHOLE])
    modules = _take_modules(model, list(parts), tensors, given, folder)
    if tensors:
        raise ModelError(
            f"{folder}: {len(tensors)} tensors have no place in this model, the first is "
            f"{min(tensors)}"
        )
    modules = _with_targets(modules, parts)
    targets = dict.fromkeys(target for factors in modules.values() for target in factors.covered)
    rank = max(factors.rank for factors in modules.values())
    [(scale, _)] = Counter(factors.scale for factors in modules.values()).most_common(1)
    config = LoraConfig(targets="+".join(targets), rank=rank, alpha=scale * rank, dropout=0.0)
    adapter = attach(model, config, seed=0)
    for path, layer in lora_layers(adapter.model):
        for number, part in enumerate(layer.slices):
            a, b = layer.lora_a[number].data, layer.lora_b[number].data
            a.zero_()
            factors = modules.get(path)
            if factors is None or part.target not in factors.covered:
                continue
            first = factors.covered.index(part.target) * factors.rank
            ranks = slice(first, first + factors.rank)
            own_b = factors.b[part.rows(len(factors.b)), ranks]
            a[: factors.rank] = factors.a[ranks]
            b[:, : factors.rank] = (
                own_b if factors.scale == scale else own_b.float() * (factors.scale / scale)
            )
            adapter.num_real += factors.rank * (layer.d_in + part.width)
    return adapter


def read_adapter(folder: Path) -> tuple[Given, dict[str, torch.Tensor]]:
    """Settings and tensors of a PEFT adapter folder.

    Raises:
        ModelError: a file is missing or damaged, a number is not finite, or a setting asks for
            something that is not implemented (named).
    """
    folder = adapter_folder(folder)
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
    # As they are named inside peft, where the adapter has a name.
    tensors = {name.replace(".default.weight", ".weight"): t for name, t in tensors.items()}
    for name, tensor in tensors.items():
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


MERGE = "Merge it into its base with peft (merge_and_unload) and score that folder as a model"


def _check_adapter_settings(given: Given, folder: Path) -> None:
    path = folder / "adapter_config.json"
    for key, wanted in KEPT.items():
        if given.get(key) not in (wanted, *((None,) if key != "peft_type" else ())):
            raise ModelError(
                f"{path}: {key} = {given.get(key)!r} is not implemented; only plain LoRA adapters "
                f"of causal language models can be read. {MERGE}"
            )
    for key, harmless in REFUSED.items():
        if given.get(key, harmless) not in (harmless, [], {}, None):
            raise ModelError(
                f"{folder}: {key} = {given[key]!r} is not implemented; only plain LoRA adapters "
                f"can be read. {MERGE}"
            )
    if given.get("init_lora_weights", True) not in STARTS:
        raise ModelError(
            f"{folder}: init_lora_weights = {given['init_lora_weights']!r} changes the base's own "
            f"weights, which is not implemented. {MERGE}"
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


def _take_modules(
    model: torch.nn.Module,
    paths: Sequence[str],
    tensors: dict[str, torch.Tensor],
    given: Given,
    folder: Path,
) -> dict[str, _Factors]:
    """Takes the tensors of all modules out. Raises `ModelError` where one of a pair is missing,
    or both are and the settings put an adapter there."""
    present = {path for path in paths if f"{PREFIX}{path}.lora_A.weight" in tensors}
    made_for = given.get("base_model_name_or_path")
    if not present:
        raise ModelError(
            f"{folder}: none of its tensors has a place in this model. The adapter was made for "
            f"{made_for}"
        )
    known = {_kind(path) for path in present}
    modules = {}
    for path in paths:
        if path not in present and not _is_asked(path, given, known):
            continue
        both = []
        for name in (f"{path}.lora_A.weight", f"{path}.lora_B.weight"):
            tensor = tensors.pop(PREFIX + name, None)
            if tensor is None:
                raise ModelError(
                    f"{folder}: has no {name}, though its settings put an adapter there: the file "
                    "is damaged, or not all of it"
                )
            both.append(tensor)
        a, b = both
        module = model.get_submodule(path)
        sizes = ("A", a, (len(a), in_features(module))), ("B", b, (out_features(module), len(a)))
        for letter, tensor, shape in sizes:
            if tuple(tensor.shape) != shape:
                raise ModelError(
                    f"{folder}: {path}.lora_{letter}.weight is {list(tensor.shape)}, this model "
                    f"needs {list(shape)}. The adapter was made for {made_for}"
                )
        scale = _scale(path, len(a), given, folder)
        used = (a.any(1) | b.any(0)).nonzero()
        rows = int(used.max()) + 1 if len(used) else 1
        modules[path] = _Factors(a=a[:rows], b=b[:, :rows], scale=scale)
    return modules


def _kind(path: str) -> str:
    """A module's name within its layer."""
    return regex.sub(r".*\.\d+\.", "", path)


def _is_asked(path: str, given: Given, known: set[str]) -> bool:
    """Whether peft would put an adapter on this module; `known`: the kinds of modules that have
    one, for settings that name none."""
    layers, pattern = given.get("layers_to_transform"), given.get("layers_pattern") or r"[^.]*"
    if layers is not None and layers != []:
        pattern = "|".join(pattern) if isinstance(pattern, list) else pattern
        number = _match(rf".*\.({pattern})\.(\d+)\.", path)
        if number and int(number[2]) not in ([layers] if isinstance(layers, int) else layers):
            return False
    if _is_named(path, given.get("exclude_modules") or []):
        return False
    wanted = given.get("target_modules")
    return _kind(path) in known if wanted in (None, [], "all-linear") else _is_named(path, wanted)


def _is_named(path: str, names: Any) -> bool:
    """As peft compares: a regular expression of the whole path, or ends of it."""
    if isinstance(names, str):
        return _match(rf"({names})$", path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _scale(path: str, rows: int, given: Given, folder: Path) -> float:
    """α / r (rsLoRA: α / √r) as peft computes it for a module, patterns included; raises
    `ModelError` when r is not the tensor's."""
    alpha, rank = (
        _by_pattern(given.get(f"{key}_pattern") or {}, path, given[default_key])
        for key, default_key in (("alpha", "lora_alpha"), ("rank", "r"))
    )
    if rows != rank:
        raise ModelError(
            f"{folder}: {path}.lora_A.weight has {rows} rows, but adapter_config.json says rank "
            f"{rank:g}: peft would scale it otherwise"
        )
    return float(alpha / math.sqrt(rank) if given.get("use_rslora") else alpha / rank)


def _by_pattern(patterns: Mapping[str, float], path: str, default: float) -> float:
    """The value of the first pattern that a module's path ends with, as peft looks it up."""
    for pattern, value in patterns.items():
        if _match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _match(pattern: str, path: str) -> Any:
    try:
        return regex.match(pattern, path, timeout=1.0)
    except (regex.error, TimeoutError):
        raise ModelError(
            f"adapter_config.json: the pattern “{pattern}” is no regular expression, or runs away"
        ) from None


def _with_targets(
    modules: Mapping[str, _Factors], parts: Mapping[str, Sequence[TargetSlice]]
) -> dict[str, _Factors]:
    """Says which targets each module's factors cover: of a fused weight the ranges that
    `export_adapter` stacked, or the whole as `qkv`. A fused module whose B is zero (before
    training) covers what the others do."""
    covered = {path: _covered(parts[path], factors) for path, factors in modules.items()}
    fused = [names for path, names in covered.items() if len(parts[path]) > 1 and names]
    usual = Counter(fused).most_common(1)[0][0] if fused else (WHOLE,)
    named = {}
    for path, factors in modules.items():
        names = covered[path] or usual
        if len(factors.a) % len(names) or (len(parts[path]) > 1 and (WHOLE,) in fused):
            names = (WHOLE,)
        named[path] = replace(factors, covered=names)
    return named


def _covered(parts: Sequence[TargetSlice], factors: _Factors) -> tuple[str, ...]:
    """The targets of one module's factors, where they can be seen: each B that was stacked is zero
    outside its own range."""
    a, b = factors.a, factors.b
    if len(parts) == 1:
        return (parts[0].target,)
    used = [part for part in parts if b[part.rows(len(b))].any()]
    if not used:
        return ()
    rank = len(a) // len(used)
    own = [b[part.rows(len(b)), n * rank : (n + 1) * rank] for n, part in enumerate(used)]
    stacked = len(a) % len(used) == 0 and torch.equal(
        fuse(used, [a] * len(used), own, len(b))[1], b.float().cpu()
    )
    return tuple(part.target for part in used) if stacked else (WHOLE,)
