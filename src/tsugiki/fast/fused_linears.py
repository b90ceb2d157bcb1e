"""The adapted model rewired for speed: linear layers that read one input become one product,
adapters included.

    q = Wq x    k = Wk x    v = Wv x   →   [q | k | v] = [Wq; Wk; Wv] x  +  adapters, in one

The products read a copy of the adapters in the base's dtype (`Shadow`), so that nothing is cast
inside the step; the fp32 adapters stay the ones that the optimiser moves. Undone on leaving
`fused`; results equal the plain path's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation

from tsugiki.fast.swiglu import gated
from tsugiki.model.adapter_bank import AdapterBank
from tsugiki.model.layouts import (
    LAYOUTS,
    by_outputs,
    groups_of,
    layout_of,
    replace_module,
    store_by_outputs,
    weight_of,
)
from tsugiki.model.lora import LoraLinear, lora_layers
from tsugiki.model.lora_ops import adapted_linear

HANDED_ON = dict(pair for layout in LAYOUTS for pair in layout.whole_qkv)
SWIGLU = {name for layout in LAYOUTS for name in layout.swiglu}
READ_BY_ATTENTION = {layout.modules["q"].rsplit(".", 1)[-1] for layout in LAYOUTS}


@dataclass
class Shadow:
    """The adapters in the dtype of the products: `leaves` [lanes, rows, columns] are views of
    `values` [lanes, P], in the order of the fp32 `flat`."""

    flat: torch.Tensor
    values: torch.Tensor
    leaves: list[torch.Tensor]

    def refresh(self) -> None:
        """Copies the fp32 adapters. One kernel."""
        self.values.copy_(self.flat)

    def accumulate(self, gradients: Sequence[torch.Tensor], into: torch.Tensor) -> None:
        """Adds the gradients of `leaves` to the fp32 gradient `into` [lanes, P]."""
        into.add_(torch.cat([one.reshape(len(into), -1) for one in gradients], dim=1))


class FusedLinears(nn.Module):
    """Frozen linear layers over one input, called one after another, computed at the first call.

    In training the one of queries, keys and values hands its product on as a whole, too, for
    `product_behind`: what is computed from the parts alone has its gradients put together again, a
    pass over memory.
    """

    kept: Any
    product: Any

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        splits: list[int],
        rotary: bool | None,
    ):
        """`rotary`: whether the attention that the whole product is handed on to turns it; None
        where it is not handed on."""
        super().__init__()
        self.rotary, self.product = rotary, None
        self.weight, self.bias, self.splits = weight, bias, splits
        self.a: Any = None
        self.b: Any = None
        self.starts: list[int] = []
        self.widths: list[int] = []
        self.spans: list[int] = []
        self.scale = 1.0
        self.scales: torch.Tensor | None = None
        self.bank: AdapterBank | None = None
        self.kept = None

    def forward(self, z: torch.Tensor, index: int) -> torch.Tensor:
        """[..., d_in] → [..., splits[index]]; the calls come in order, with the same input."""
        if index == 0:
            product = self.joined(z)
            self.kept = product.split(self.splits, dim=-1)
            if self.rotary is not None and torch.is_grad_enabled():
                self.product = product
        out: torch.Tensor = self.kept[index]
        if index == len(self.splits) - 1:
            self.kept = None
        return out

    def joined(self, z: torch.Tensor) -> torch.Tensor:
        """[..., d_in] → [..., d_out], the outputs of all layers side by side."""
        z = z.to(self.weight.dtype)
        if self.a is None:
            return torch.nn.functional.linear(z, self.weight, self.bias)
        flat = z.reshape(-1, z.shape[-1])
        a, b, scales = self._adapters()
        spans = self.spans if len(a) > 1 else [0, 1] * len(self.starts)
        h, _ = adapted_linear(
            flat, self.weight, self.bias, a, b, self.starts, self.widths, spans, self.scale, scales
        )
        return h.view(*z.shape[:-1], h.shape[-1])

    def _adapters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """A, B and scales of all lanes, or of the one lane that the whole batch belongs to."""
        assert isinstance(self.bank, AdapterBank), "no adapters here"
        if self.bank.equal:
            return self.a, self.b, self.scales
        [lane] = [number for number, share in enumerate(self.bank.shares) if share]
        one = slice(lane, lane + 1)
        return self.a[one], self.b[one], None if self.scales is None else self.scales[one]


class FusedPart(nn.Module):
    """Stands where one of the fused layers stood."""

    def __init__(self, whole: FusedLinears, index: int):
        super().__init__()
        self.whole, self.index = whole, index

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.whole(z, self.index)
        return out


class FusedMLP(nn.Module):
    """Stands where down(silu(gate(x)) * up(x)) stood: one operator between the product of gate and
    up and the one of down."""

    def __init__(self, mlp: Any):
        super().__init__()
        self.whole, self.down_proj = mlp.gate_proj.whole, mlp.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = self.whole.joined(x)
        out: torch.Tensor = self.down_proj(
            gated(product.view(-1, product.shape[-1])).view(*product.shape[:-1], -1)
        )
        return out


def product_behind(module: nn.Module, turned: bool) -> torch.Tensor | None:
    """[..., (h + 2 h_kv) d], queries, keys and values side by side as an attention module is about
    to read them: once after each product, and only where `turned` says truly whether rotary
    embedding has been applied to what it reads."""
    for name in READ_BY_ATTENTION:
        part = getattr(module, name, None)
        if isinstance(part, FusedPart):
            product, part.whole.product = part.whole.product, None
            return None if part.whole.rotary and turned else product
    return None


def can_fuse(model: nn.Module) -> bool:
    """Whether there are adapters, none drops out its input (each would drop another part: no
    product to share), and each adds to one range of outputs (GPT-NeoX interleaves q, k and v by
    head)."""
    adapted = [layer for _, layer in lora_layers(model)]
    if not adapted or any(config.dropout for config in adapted[0].bank.configs):
        return False
    return all(place.heads == 1 for layer in adapted for place in layer.places)


@contextmanager
def fused(model: Any) -> Iterator[Shadow]:
    """Rewires the adapted model; yields the shadow of its adapters. With several lanes every one
    must have the same number of tokens."""
    first = lora_layers(model)[0][1]
    flat = first.bank.flat
    shadow = Shadow(flat=flat, values=flat.to(weight_of(first.base).dtype, copy=True), leaves=[])
    undo: list[tuple[str, nn.Module]] = []
    try:
        for paths in groups_of(model):
            modules = [model.get_submodule(path) for path in paths]
            if len(modules) == 1 and not isinstance(modules[0], LoraLinear):
                continue
            read_by_attention = paths[0].endswith(layout_of(model).modules["q"])
            whole = _join(
                modules,
                shadow,
                HANDED_ON.get(model.config.model_type) if read_by_attention else None,
            )
            for index, (path, module) in enumerate(zip(paths, modules, strict=True)):
                undo.append((path, module))
                replace_module(model, path, FusedPart(whole, index))
        for path, mlp in list(model.named_modules()):
            if type(mlp).__name__ in SWIGLU and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation):
                undo.append((path, mlp))
                replace_module(model, path, FusedMLP(mlp))
        yield shadow
    finally:
        for path, module in reversed(undo):
            replace_module(model, path, module)


def _join(modules: list[nn.Module], shadow: Shadow, rotary: bool | None) -> FusedLinears:
    bases: list[Any] = [
        module.base if isinstance(module, LoraLinear) else module for module in modules
    ]
    weights = [by_outputs(one) for one in bases]
    splits = [len(weight) for weight in weights]
    weight = weights[0].detach() if len(weights) == 1 else _one_storage(bases, weights)
    biases = [one.bias for one in bases]
    bias = None
    if any(one is not None for one in biases):
        bias = torch.cat(
            [
                weight.new_zeros(width) if one is None else one.detach()
                for one, width in zip(biases, splits, strict=True)
            ]
        )
    whole = FusedLinears(weight, bias, splits, rotary)
    _add_adapters(whole, modules, shadow)
    return whole


def _one_storage(bases: list[Any], weights: list[torch.Tensor]) -> torch.Tensor:
    """Stacks the weights and lets the layers view the stack: nothing is stored twice."""
    joined = torch.cat([weight.detach() for weight in weights])
    for base, part in zip(bases, joined.split([len(weight) for weight in weights]), strict=True):
        store_by_outputs(base, part)
    return joined


def _add_adapters(whole: FusedLinears, modules: list[nn.Module], shadow: Shadow) -> None:
    places: list[tuple[LoraLinear, int]] = []
    start = 0
    for module, width in zip(modules, whole.splits, strict=True):
        if isinstance(module, LoraLinear):
            places += [(module, number) for number in range(len(module.places))]
            whole.starts += [start + place.start for place in module.places]
            whole.widths += [place.width for place in module.places]
            for number in range(len(module.places)):
                having = [
                    lane
                    for lane, adapters in enumerate(module.lanes)
                    if adapters.where[number] is not None
                ]
                whole.spans += [min(having), max(having) + 1]
        start += width
    if not places:
        return
    whole.bank, rank = places[0][0].bank, places[0][0].rank
    scales = [config.scale for config in whole.bank.configs]
    if len(set(scales)) == 1:
        whole.scale = scales[0]
    else:
        whole.scales = whole.bank.scales  # in fp32: 10/24 is not 10/24 in bf16
    offsets = [module.offsets[number] for module, number in places]
    whole.a = _leaf(shadow, offsets[0][0], rank * len(places), places[0][0].d_in)
    whole.b = _leaf(shadow, offsets[0][1], sum(whole.widths), rank)
    assert offsets[0][0] + whole.a[0].numel() == offsets[0][1], "not laid out side by side"


def _leaf(shadow: Shadow, start: int, rows: int, columns: int) -> torch.Tensor:
    """A stretch of every lane's row of the shadow, as [lanes, rows, columns]."""
    leaf = (
        shadow.values[:, start : start + rows * columns]
        .view(-1, rows, columns)
        .detach()
        .requires_grad_()
    )
    shadow.leaves.append(leaf)
    return leaf
