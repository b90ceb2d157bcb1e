"""Where the linear layers of a model are, by the names of LoRA targets: `q k v o` and the MLP's.

    Llama      q_proj k_proj v_proj o_proj · gate_proj up_proj down_proj   one weight each
    GPT-2      c_attn = [q | k | v] in one weight, c_proj · c_fc c_proj    q, k, v: its outputs
    GPT-NeoX   query_key_value = [q0 k0 v0 | q1 k1 v1 | …], head by head   q: of each head's

A layout is told by the modules that are there, not by the model's name: Mistral, Qwen2, Qwen3 and
Gemma are of the Llama layout. `qkv` names a fused weight as a whole, as adapters made elsewhere
have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tsugiki.errors import ModelError, did_you_mean
from tsugiki.model.nf4 import Nf4Linear


@dataclass(frozen=True, kw_only=True)
class TargetSlice:
    """One adaptable linear map: outputs `[start, stop)` of the module `path`, or of each of its
    `heads`; the whole module unless it is fused."""

    target: str
    path: str
    start: int
    stop: int
    heads: int = 1

    @property
    def width(self) -> int:
        return (self.stop - self.start) * self.heads

    def rows(self, total: int) -> torch.Tensor:
        """Numbers of its outputs among the module's `total`, ascending."""
        return torch.arange(total).view(self.heads, -1)[:, self.start : self.stop].reshape(-1)

    def add(self, outputs: torch.Tensor, update: torch.Tensor) -> None:
        """Adds an update [..., width] to its part of the module's outputs [..., total], in
        place."""
        if self.heads == 1:
            outputs[..., self.start : self.stop] += update
        else:
            outputs.unflatten(-1, (self.heads, -1))[..., self.start : self.stop] += (
                update.unflatten(-1, (self.heads, -1))
            )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Module paths inside one layer, by target; `fused` targets share one module, in this order, in
    equal parts: of the whole, or of each head's outputs where they are `interleaved`.

    `together` names the targets whose modules read the same input, in the order they are called;
    `whole_qkv` the model types whose attention gets queries, keys and values as the matmul gave
    them, and whether it applies rotary embedding to them; `swiglu` the classes whose MLP is
    down(silu(gate(x)) * up(x)); `old_buffers` the constants that older versions of transformers
    wrote beside the weights.
    """

    name: str
    layers: str
    modules: dict[str, str]
    fused: tuple[str, ...] = ()
    interleaved: bool = False
    together: tuple[tuple[str, ...], ...] = ()
    swiglu: tuple[str, ...] = ()
    old_buffers: tuple[str, ...] = ()
    whole_qkv: tuple[tuple[str, bool], ...] = ()


LLAMA = Layout(
    name="Llama",
    layers="model.layers",
    modules={
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    together=(("q", "k", "v"), ("gate", "up")),
    swiglu=("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"),
    old_buffers=("rotary_emb.inv_freq",),
    whole_qkv=(("llama", True), ("mistral", True), ("qwen2", True), ("gemma", True)),
)
GPT2 = Layout(
    name="GPT-2",
    layers="transformer.h",
    modules={
        "q": "attn.c_attn",
        "k": "attn.c_attn",
        "v": "attn.c_attn",
        "o": "attn.c_proj",
        "fc": "mlp.c_fc",
        "proj": "mlp.c_proj",
    },
    fused=("q", "k", "v"),
    old_buffers=("masked_bias",),
    whole_qkv=(("gpt2", False),),
)
NEOX = Layout(
    name="GPT-NeoX",
    layers="gpt_neox.layers",
    modules={
        "q": "attention.query_key_value",
        "k": "attention.query_key_value",
        "v": "attention.query_key_value",
        "o": "attention.dense",
        "fc": "mlp.dense_h_to_4h",
        "proj": "mlp.dense_4h_to_h",
    },
    fused=("q", "k", "v"),
    interleaved=True,
    old_buffers=("masked_bias", "rotary_emb.inv_freq"),
)
LAYOUTS = (LLAMA, GPT2, NEOX)
WHOLE = "qkv"  # the fused weight as one
LINEAR = (nn.Linear, Conv1D, Nf4Linear)


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def layout_of(model: nn.Module) -> Layout:
    """The layout whose modules the first layer has; raises `ModelError` naming the linear layers
    that are there."""
    for layout in LAYOUTS:
        if all(
            _submodule(model, f"{layout.layers}.0.{path}") is not None
            for path in layout.modules.values()
        ):
            return layout
    there = sorted(
        {
            name.rsplit(".", 1)[-1]
            for name, module in model.named_modules()
            if isinstance(module, LINEAR)
        }
    )
    raise ModelError(
        f"{type(model).__name__}: of none of the layouts that LoRA knows (Llama, GPT-2, GPT-NeoX). "
        f"Its linear layers: {', '.join(there)}. "
        'Full fine-tuning (method = "full") does not need to know the layout'
    )


def missing_targets(model: nn.Module, layout: Layout) -> dict[str, str]:
    """Targets of the layout that cannot be had in every layer, and why: no such linear layer, or a
    fused weight of unequal parts."""
    missing: dict[str, str] = {}
    for index in range(num_layers(model, layout)):
        for target, inner in layout.modules.items():
            path = f"{layout.layers}.{index}.{inner}"
            module = _submodule(model, path)
            module = getattr(module, "base", module)  # adapters may be on it
            if not isinstance(module, LINEAR):
                missing.setdefault(target, f"layer {index} has no linear layer {inner}")
            elif target in layout.fused and out_features(module) != len(layout.fused) * in_features(
                module
            ):
                missing.setdefault(
                    target,
                    f"{path} has {out_features(module):,} outputs, not {len(layout.fused)} equal "
                    f"parts of {in_features(module):,}",
                )
    return missing


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight matrix of a linear layer that keeps one."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor), f"{type(module).__name__} is no linear layer"
    assert weight.ndim == 2, f"{type(module).__name__} is no linear layer"
    return weight


def device_of(module: nn.Module) -> torch.device:
    """Where a linear layer's weight lies."""
    return module.codes.device if isinstance(module, Nf4Linear) else weight_of(module).device


def matmul_dtype(module: nn.Module) -> torch.dtype:
    """What a linear layer's weight is in when it is read."""
    return module.dtype if isinstance(module, Nf4Linear) else weight_of(module).dtype


def transposed(module: nn.Module) -> bool:
    """Whether a linear layer's weight is [in, out] in its folder, as GPT-2's is."""
    return module.transposed if isinstance(module, Nf4Linear) else isinstance(module, Conv1D)


def by_outputs(module: nn.Module) -> torch.Tensor:
    """The weight as [out, in], a view of it."""
    weight = weight_of(module)
    return weight.t() if transposed(module) else weight


def store_by_outputs(module: nn.Module, weight: torch.Tensor) -> None:
    """Gives the layer a weight [out, in], which it keeps in its own order."""
    weight_of(module).data = weight.t() if transposed(module) else weight


def out_features(module: nn.Module) -> int:
    """Outputs of a linear layer; GPT-2's `Conv1D` keeps its weight as [in, out]."""
    return module.out_features if isinstance(module, Nf4Linear) else by_outputs(module).shape[0]


def in_features(module: nn.Module) -> int:
    return module.in_features if isinstance(module, Nf4Linear) else by_outputs(module).shape[1]


def target_names(targets: str, layout: Layout) -> list[str]:
    """`q+v` → [q, v]; `all-linear` → every linear layer of the layout. Raises `ModelError` for an
    unknown target."""
    if targets == "all-linear":
        return list(layout.modules)
    names = [target.strip() for target in targets.split("+")]
    whole = [WHOLE] if layout.fused else []
    for target in names:
        if target not in (*layout.modules, *whole):
            known = [*layout.modules, *whole, "all-linear"]
            raise ModelError(
                f'lora.targets "{targets}": a model of the {layout.name} layout has no '
                f'"{target}".{did_you_mean(target, known)}'
            )
    if len(set(names)) != len(names) or (WHOLE in names and set(names) & set(layout.fused)):
        raise ModelError(f'lora.targets "{targets}": names a layer twice')
    return names


def num_layers(model: nn.Module, layout: Layout) -> int:
    return len(model.get_submodule(layout.layers))  # type: ignore[arg-type]


def find_target_slices(model: nn.Module, targets: str) -> list[TargetSlice]:
    """Every linear map that `targets` names, layer by layer. Raises `ModelError` for an unknown
    target or layout."""
    layout = layout_of(model)
    names = target_names(targets, layout)
    missing = missing_targets(model, layout)
    wanted = [target for target in (layout.fused if WHOLE in names else names) if target in missing]
    if wanted:
        left = "+".join(target for target in layout.modules if target not in missing) or "none"
        raise ModelError(
            f'lora.targets "{targets}": {type(model).__name__}: {missing[wanted[0]]}. Targets that '
            f"every layer has: {left}"
        )
    return _target_slices(model, layout, names)


def every_target_slice(model: nn.Module) -> list[TargetSlice]:
    """Every linear map that could be named, layer by layer; a fused weight in its parts and as a
    whole."""
    layout = layout_of(model)
    missing = missing_targets(model, layout)
    names = [
        target
        for target in (*layout.modules, *([WHOLE] if layout.fused else []))
        if target not in missing
    ]
    return _target_slices(
        model,
        layout,
        names
        if not set(layout.fused) & set(missing)
        else [target for target in names if target != WHOLE],
    )


def _target_slices(model: nn.Module, layout: Layout, names: Sequence[str]) -> list[TargetSlice]:
    parts = []
    for index in range(num_layers(model, layout)):
        for target in names:
            path = (
                f"{layout.layers}.{index}."
                f"{layout.modules[layout.fused[0] if target == WHOLE else target]}"
            )
            width = out_features(model.get_submodule(path))
            config: Any = model.config
            by_head = layout.interleaved and target in layout.fused
            heads = int(config.num_attention_heads) if by_head else 1
            parts.append(
                TargetSlice(
                    target=target, path=path, heads=heads, **_range(layout, target, width // heads)
                )
            )
    return parts


def groups_of(model: nn.Module) -> list[list[str]]:
    """Paths of all linear layers, layer by layer; those that read the same input stand in one
    group, in calling order."""
    layout = layout_of(model)
    missing = missing_targets(model, layout)
    groups: list[list[str]] = []
    for index in range(num_layers(model, layout)):
        done: set[str] = set()
        for target in (name for name in layout.modules if name not in missing):
            names = next((group for group in layout.together if target in group), (target,))
            paths = list(
                dict.fromkeys(
                    f"{layout.layers}.{index}.{layout.modules[name]}"
                    for name in names
                    if name not in missing
                )
            )
            if paths[0] not in done:
                groups.append(paths)
            done.update(paths)
    return groups


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _range(layout: Layout, target: str, width: int) -> dict[str, int]:
    if target not in layout.fused:
        return {"start": 0, "stop": width}
    part = width // len(layout.fused)
    index = layout.fused.index(target)
    return {"start": index * part, "stop": (index + 1) * part}


def by_module(parts: Sequence[TargetSlice]) -> dict[str, list[TargetSlice]]:
    """Target slices by module path: a fused module is replaced once, with one adapter for each of
    its slices."""
    gathered: dict[str, list[TargetSlice]] = {}
    for part in parts:
        gathered.setdefault(part.path, []).append(part)
    return gathered
