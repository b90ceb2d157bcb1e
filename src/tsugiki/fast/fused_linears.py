"""The adapted model rewired for speed: linear layers that read one input become one matmul,
adapters included.

    q = Wq x    k = Wk x    v = Wv x   →   [q | k | v] = [Wq; Wk; Wv] x  +  adapters, in one

The matmuls read a copy of the adapters in the base's dtype (`ComputeCopy`), so that nothing is
cast inside the step; the fp32 adapters stay the ones that the optimiser moves. Undone on leaving
`fused`; results equal the eager path's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation

from tsugiki.fast.swiglu import swiglu
from tsugiki.model.adapter_bank import AdapterBank
from tsugiki.model.layouts import (
    LAYOUTS,
    by_outputs,
    groups_of,
    layout_of,
    matmul_dtype,
    out_features,
    replace_module,
    store_by_outputs,
)
from tsugiki.model.lora import LoraLinear, lora_layers
from tsugiki.model.lora_ops import adapted_linear
from tsugiki.model.nf4 import Nf4Linear, joined_views, nf4_linear

FUSED_QKV = dict(pair for layout in LAYOUTS for pair in layout.whole_qkv)
SWIGLU = {name for layout in LAYOUTS for name in layout.swiglu}
READ_BY_ATTENTION = {layout.modules["q"].rsplit(".", 1)[-1] for layout in LAYOUTS}


@dataclass
class ComputeCopy:
    """The adapters in the dtype of the matmuls: `leaves` [lanes, rows, columns] are views of
    `values` [lanes, P], in the order of the fp32 `flat`."""

    flat: torch.Tensor
    values: torch.Tensor
    leaves: list[torch.Tensor]

    def refresh(self) -> None:
        """Copies the fp32 adapters. One kernel."""
        self.values.copy_(self.flat)

    def accumulate(self, gradients: Sequence[torch.Tensor], into: torch.Tensor) -> None:
        """Adds the gradients of `leaves` to the fp32 gradient `into` [lanes, P]."""
        into.add_(torch.cat([gradient.reshape(len(into), -1) for gradient in gradients], dim=1))


class FusedLinears(nn.Module):
    """Frozen linear layers over one input, called one after another, computed at the first call.

    In training the one of queries, keys and values keeps its output as a whole, too, for
    `fused_qkv_of`: what is computed from the parts alone has its gradients put together again, a
    pass over memory.
    """

    kept: Any
    qkv: Any

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        splits: list[int],
        rotary: bool | None,
        absmax: torch.Tensor | None = None,
    ):
        """`weight` and `absmax` are what `adapted_linear` reads. `rotary`: whether the attention
        that reads the whole output applies rotary embedding to it; None where nothing reads it as
        a whole."""
        super().__init__()
        self.rotary, self.qkv = rotary, None
        self.weight, self.absmax, self.bias, self.splits = weight, absmax, bias, splits
        self.dtype = weight.dtype
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
            outputs = self.joined(z)
            self.kept = outputs.split(self.splits, dim=-1)
            if self.rotary is not None and torch.is_grad_enabled():
                self.qkv = outputs
        out: torch.Tensor = self.kept[index]
        if index == len(self.splits) - 1:
            self.kept = None
        return out

    def joined(self, z: torch.Tensor) -> torch.Tensor:
        """[..., d_in] → [..., d_out], the outputs of all layers side by side."""
        z = z.to(self.dtype)
        if self.a is None and self.absmax is not None:
            out: torch.Tensor = nf4_linear(z, self.weight, self.absmax, self.bias)
            return out
        if self.a is None:
            return torch.nn.functional.linear(z, self.weight, self.bias)
        flat = z.reshape(-1, z.shape[-1])
        a, b, scales = self._adapters()
        spans = self.spans if len(a) > 1 else [0, 1] * len(self.starts)
        h, _ = adapted_linear(
            flat, self.weight, self.absmax, self.bias, a, b,
            self.starts, self.widths, spans, self.scale, scales,
        )  # fmt: skip
        return h.view(*z.shape[:-1], h.shape[-1])

    def _adapters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """A, B and scales of all lanes, or of the one lane that the whole batch belongs to."""
        assert isinstance(self.bank, AdapterBank), "no adapters here"
        if self.bank.equal:
            return self.a, self.b, self.scales
        [lane] = [number for number, share in enumerate(self.bank.shares) if share]
        own = slice(lane, lane + 1)
        return self.a[own], self.b[own], None if self.scales is None else self.scales[own]


class FusedPart(nn.Module):
    """Stands where one of the fused layers stood."""

    def __init__(self, whole: FusedLinears, index: int):
        super().__init__()
        self.whole, self.index = whole, index

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.whole(z, self.index)
        return out


class FusedMLP(nn.Module):
    """Stands where down(silu(gate(x)) * up(x)) stood: one operator between the matmul of gate and
    up and the one of down."""

    def __init__(self, mlp: Any):
        super().__init__()
        self.whole, self.down_proj = mlp.gate_proj.whole, mlp.down_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_up = self.whole.joined(x)
        out: torch.Tensor = self.down_proj(
            swiglu(gate_up.view(-1, gate_up.shape[-1])).view(*gate_up.shape[:-1], -1)
        )
        return out


def fused_qkv_of(module: nn.Module, rope_applied: bool) -> torch.Tensor | None:
    """[..., (h + 2 h_kv) d], queries, keys and values side by side as an attention module is about
    to read them: once after each matmul, and only where `rope_applied` says truly whether
    rotary embedding has been applied to what it reads."""
    for name in READ_BY_ATTENTION:
        part = getattr(module, name, None)
        if isinstance(part, FusedPart):
            qkv, part.whole.qkv = part.whole.qkv, None
            return None if part.whole.rotary and rope_applied else qkv
    return None


def can_fuse(model: nn.Module) -> bool:
    """Whether there are adapters, none drops out its input (each would drop another part: no
    matmul to share), and each adds to one range of outputs (GPT-NeoX interleaves q, k and v by
    head)."""
    adapted = [layer for _, layer in lora_layers(model)]
    if not adapted or any(config.dropout for config in adapted[0].bank.configs):
        return False
    return all(part.heads == 1 for layer in adapted for part in layer.slices)


@contextmanager
def fused(model: Any) -> Iterator[ComputeCopy]:
    """Rewires the adapted model; yields the compute copy of its adapters. With several lanes every
    one must have the same number of tokens."""
    first = lora_layers(model)[0][1]
    flat = first.bank.flat
    compute_copy = ComputeCopy(
        flat=flat, values=flat.to(matmul_dtype(first.base), copy=True), leaves=[]
    )

    def make(paths: list[str], rotary: bool | None) -> FusedLinears | None:
        modules = [model.get_submodule(path) for path in paths]
        if len(modules) == 1 and not isinstance(modules[0], LoraLinear):
            return None  # as it is: also in 4 bits
        return _fuse(modules, compute_copy, rotary)

    with _rewired(model, make):
        yield compute_copy


@contextmanager
def fused_whole(model: Any, whole: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Rewires a model whose own weights are trained; `whole` are the parameters that stand for
    those of several linear layers, by the name of the first."""

    def make(paths: list[str], rotary: bool | None) -> FusedLinears | None:
        weight = whole.get(f"{paths[0]}.weight")
        if weight is None:
            return None
        splits = [len(by_outputs(model.get_submodule(path))) for path in paths]
        return FusedLinears(weight, whole.get(f"{paths[0]}.bias"), splits, rotary)

    with _rewired(model, make) if whole else nullcontext():
        yield


@contextmanager
def _rewired(
    model: Any, make: Callable[[list[str], bool | None], FusedLinears | None]
) -> Iterator[None]:
    """Within it the linear layers that `make` makes one of are called as one, given whether the
    attention that reads them rotates them."""
    undo: list[tuple[str, nn.Module]] = []
    try:
        for paths in groups_of(model):
            modules = [model.get_submodule(path) for path in paths]
            read_by_attention = paths[0].endswith(layout_of(model).modules["q"])
            rotary = FUSED_QKV.get(model.config.model_type) if read_by_attention else None
            if (whole := make(paths, rotary)) is None:
                continue
            for index, (path, module) in enumerate(zip(paths, modules, strict=True)):
                undo.append((path, module))
                replace_module(model, path, FusedPart(whole, index))
        for path, mlp in list(model.named_modules()):
            if _is_swiglu(mlp):
                undo.append((path, mlp))
                replace_module(model, path, FusedMLP(mlp))
        yield
    finally:
        for path, module in reversed(undo):
            replace_module(model, path, module)


def _is_swiglu(mlp: Any) -> bool:
    return (
        type(mlp).__name__ in SWIGLU
        and isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)
        and isinstance(mlp.gate_proj, FusedPart)
    )


def _fuse(modules: list[nn.Module], compute_copy: ComputeCopy, rotary: bool | None) -> FusedLinears:
    bases: list[Any] = [
        module.base if isinstance(module, LoraLinear) else module for module in modules
    ]
    splits = [out_features(base) for base in bases]
    weight, absmax = _joined(bases)
    biases = [base.bias for base in bases]
    bias, dtype = None, matmul_dtype(bases[0])
    if any(own is not None for own in biases):
        bias = torch.cat(
            [
                weight.new_zeros(width, dtype=dtype) if own is None else own.detach()
                for own, width in zip(biases, splits, strict=True)
            ]
        )
    whole = FusedLinears(weight, bias, splits, rotary, absmax)
    whole.dtype = dtype
    _add_adapters(whole, modules, compute_copy)
    return whole


def _joined(bases: list[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(weight, absmax) of all, the layers being views of them: nothing is stored twice."""
    if isinstance(bases[0], Nf4Linear):
        codes, own_codes = joined_views([base.codes for base in bases])
        absmax, own_absmax = joined_views([base.absmax for base in bases])
        for base, part, scales in zip(bases, own_codes, own_absmax, strict=True):
            base.codes, base.absmax = part, scales
        return codes, absmax
    weights = [by_outputs(base).detach() for base in bases]
    if len(weights) == 1:
        return weights[0], None
    joined, parts = joined_views(weights)
    for base, part in zip(bases, parts, strict=True):
        store_by_outputs(base, part)
    if joined.is_cuda:
        # What the parts were is of sizes that nothing else asks for: it would be kept in vain.
        del weights
        torch.cuda.empty_cache()
    return joined, None


def _add_adapters(whole: FusedLinears, modules: list[nn.Module], compute_copy: ComputeCopy) -> None:
    slices: list[tuple[LoraLinear, int]] = []
    start = 0
    for module, width in zip(modules, whole.splits, strict=True):
        if isinstance(module, LoraLinear):
            slices += [(module, number) for number in range(len(module.slices))]
            whole.starts += [start + part.start for part in module.slices]
            whole.widths += [part.width for part in module.slices]
            for number in range(len(module.slices)):
                having = [
                    lane
                    for lane, adapters in enumerate(module.lanes)
                    if adapters.where[number] is not None
                ]
                whole.spans += [min(having), max(having) + 1]
        start += width
    if not slices:
        return
    whole.bank, rank = slices[0][0].bank, slices[0][0].rank
    scales = [config.scale for config in whole.bank.configs]
    if len(set(scales)) == 1:
        whole.scale = scales[0]
    else:
        whole.scales = whole.bank.scales  # in fp32: 10/24 is not 10/24 in bf16
    offsets = [module.offsets[number] for module, number in slices]
    whole.a = _leaf(compute_copy, offsets[0][0], rank * len(slices), slices[0][0].d_in)
    whole.b = _leaf(compute_copy, offsets[0][1], sum(whole.widths), rank)
    assert offsets[0][0] + whole.a[0].numel() == offsets[0][1], "not laid out side by side"


def _leaf(compute_copy: ComputeCopy, start: int, rows: int, columns: int) -> torch.Tensor:
    """A stretch of every lane's row of the compute copy, as [lanes, rows, columns]."""
    leaf = (
        compute_copy.values[:, start : start + rows * columns]
        .view(-1, rows, columns)
        .detach()
        .requires_grad_()
    )
    compute_copy.leaves.append(leaf)
    return leaf
