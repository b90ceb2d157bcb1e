"""LoRA on a frozen model: attach, detach, and the adapted linear layer, for one lane or for many
over one base.

    h = W z + scale · B A z           W frozen, A random, B zero at the start

A fused weight (GPT-2's `c_attn`) carries one adapter for each column range that was named: true q
and v only. Adapters are kept in fp32 whatever the base is stored in; A's start depends on (seed,
target), not on the order of attaching.

Lanes share every matmul of the base and nothing else. The adapters of all lanes lie in one block,
a row for each lane:

    flat [k, P]     lane 0 | A A A | B B B | A … | B … |  by layer: A's of one input, then their B's
                    lane 1 | A A . | B B . | A … | B … |  zeros where it has less: they stay zero
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tsugiki.config.run import LoraConfig
from tsugiki.errors import ModelError
from tsugiki.model.adapter_bank import (
    NO_ADAPTERS,
    AdapterBank,
    DropoutClock,
    LayerAdapters,
    NoAdapters,
)
from tsugiki.model.layouts import (
    TargetSlice,
    by_module,
    device_of,
    every_target_slice,
    find_target_slices,
    groups_of,
    in_features,
    out_features,
    replace_module,
)
from tsugiki.model.lora_ops import dropout_mask, grouped_update, low_rank_update


class LoraLinear(nn.Module):
    """A frozen linear layer and the low-rank adapters of one or more lanes, one for each adapted
    range of its outputs.

    `lora_a`, `lora_b` hold the adapters lane after lane; `offsets` say where those of each
    target slice begin in a lane's row of the bank.
    """

    def __init__(self, base: nn.Module, slices: list[TargetSlice], bank: AdapterBank):
        super().__init__()
        self.base, self.slices, self.bank = base, slices, bank
        # A tensor, not numbers: layers that differ in a number would each be compiled anew.
        self.numbers = torch.tensor(
            [_number(f"{part.path}:{part.target}") for part in slices],
            device=device_of(base),
        )
        self.d_in = in_features(base)
        self.whole = len(slices) == 1 and slices[0].width == out_features(base)
        self.rank = max(config.rank for config in bank.configs)
        self.offsets: list[tuple[int, int]] = []
        self.lanes: list[LayerAdapters] = []
        self.lora_a, self.lora_b = nn.ParameterList(), nn.ParameterList()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[..., d_in] → [..., d_out]."""
        h: torch.Tensor = self.base(z)
        if self.bank.off:
            return h
        x = z if torch.is_autocast_enabled(z.device.type) else z.to(self.lora_a[0].dtype)
        updates = [self._update(x, number).to(h.dtype) for number in range(len(self.slices))]
        if self.whole:
            return h + updates[0]
        h = h.clone()
        for part, update in zip(self.slices, updates, strict=True):
            part.add(h, update)
        return h

    def _update(self, x: torch.Tensor, number: int) -> torch.Tensor:
        """What the adapters add to the outputs of one target slice, each lane's to its own
        tokens."""
        bank = self.bank
        if len(self.lanes) == 1:
            return self._of_lane(0, number, x, bank.rows, bank.positions)
        if bank.equal and not torch.is_grad_enabled():
            return grouped_update(x, *self.stacked(number), bank.scales)
        sizes = bank.sizes(x.shape[:-1].numel())
        parts = x.reshape(-1, self.d_in).split(sizes)
        counters: list[tuple[torch.Tensor | None, torch.Tensor | None]] = [(None, None)] * len(
            parts
        )
        if bank.rows is not None:
            assert bank.positions is not None, "rows without positions"
            rows, positions = (
                counter.expand(x.shape[:-1]).reshape(-1).split(sizes)
                for counter in (bank.rows, bank.positions)
            )
            counters = list(zip(rows, positions, strict=True))
        updates = [
            self._of_lane(lane, number, part, *counter)
            for lane, (part, counter) in enumerate(zip(parts, counters, strict=True))
            if len(part)
        ]
        return torch.cat(updates).view(*x.shape[:-1], -1)

    def _of_lane(
        self,
        lane: int,
        number: int,
        x: torch.Tensor,
        rows: torch.Tensor | None,
        positions: torch.Tensor | None,
    ) -> torch.Tensor:
        adapters = self.lanes[lane]
        own = adapters.where[number]
        if own is None:
            return x.new_zeros(*x.shape[:-1], self.slices[number].width)
        if adapters.dropout and rows is not None:
            assert positions is not None, "rows without positions"
            clock = self.bank.clocks[lane]
            mask = dropout_mask(
                clock.seed,
                clock.step,
                self.numbers[number],
                rows,
                positions,
                x.shape[-1],
                adapters.dropout,
            )
            x = x * mask.to(x.dtype)
        return low_rank_update(x, self.lora_a[own], self.lora_b[own], adapters.scale)

    def stacked(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the bank: A [k, r, d_in] and B [k, width, r] of one target slice, r the largest
        rank of any lane."""
        flat, (first_a, first_b) = self.bank.flat, self.offsets[number]
        width = self.slices[number].width
        a = flat[:, first_a : first_a + self.rank * self.d_in].view(len(flat), self.rank, self.d_in)
        b = flat[:, first_b : first_b + self.rank * width].view(len(flat), width, self.rank)
        return a, b

    def adapters_of(self, lane: int) -> list[tuple[TargetSlice, nn.Parameter, nn.Parameter]]:
        """(target slice, A, B) of one lane."""
        where = self.lanes[lane].where
        return [
            (part, self.lora_a[number], self.lora_b[number])
            for part, number in zip(self.slices, where, strict=True)
            if number is not None
        ]

    def add_lane(self, lane: int, seed: int, adapted: set[tuple[str, str]]) -> None:
        """Adds a lane's adapters on those target slices whose (path, target) is in `adapted`:
        views of its row of the bank, A drawn, B zero."""
        config = self.bank.configs[lane]
        where: list[int | None] = []
        for number, part in enumerate(self.slices):
            if (part.path, part.target) not in adapted:
                where.append(None)
                continue
            a, b = (stack[lane] for stack in self.stacked(number))
            where.append(len(self.lora_a))
            self.lora_a.append(nn.Parameter(a[: config.rank]))
            self.lora_b.append(nn.Parameter(b[:, : config.rank]))
            if self.bank.flat.device.type != "meta":
                self.lora_a[-1].data.copy_(_start_a(part, config.rank, self.d_in, seed))
        self.lanes.append(
            LayerAdapters(scale=config.scale, dropout=config.dropout, where=tuple(where))
        )


def _number(text: str) -> int:
    """A fixed number below 2^62 for a name."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def _start_a(part: TargetSlice, rank: int, d_in: int, seed: int) -> torch.Tensor:
    """Kaiming-uniform with a = √5, as in loralib and peft: U(-1/√d_in, 1/√d_in); drawn on the CPU
    from (seed, target)."""
    generator = torch.Generator().manual_seed(_number(f"{seed}:{part.path}:{part.target}"))
    bound = 1 / math.sqrt(d_in)
    return torch.empty(rank, d_in).uniform_(-bound, bound, generator=generator)


@dataclass(kw_only=True)
class LaneAdapter:
    """One lane's adapters on a model: the parameters to train by name, all of them views of its
    row of the bank."""

    model: nn.Module
    config: LoraConfig
    parameters: dict[str, nn.Parameter]
    bank: AdapterBank
    lane: int
    num_real: int = 0  # of an imported adapter: its parameters without padding

    @property
    def clock(self) -> DropoutClock:
        return self.bank.clocks[self.lane]


def attach(model: nn.Module, config: LoraConfig, seed: int) -> LaneAdapter:
    """Freezes the model and puts adapters on the layers that `config.targets` names. Undo with
    `detach`.

    Raises:
        ModelError: a target word is unknown here, or the model's layout is.
    """
    return attach_lanes(model, [(config, seed)])[0]


def adapted_slices(model: nn.Module, config: LoraConfig) -> list[TargetSlice]:
    """Where these adapters go. Raises `ModelError` for an unknown target, and for a rank that a
    matrix does not have."""
    parts = find_target_slices(model, config.targets)
    for part in parts:
        most = min(in_features(model.get_submodule(part.path)), part.width)
        if config.rank > most:
            raise ModelError(
                f"lora.rank = {config.rank}: {part.path} ({part.target}) has rank {most} at most, "
                "so a larger one only costs. Lower it"
            )
    return parts


def attach_lanes(model: nn.Module, wanted: Sequence[tuple[LoraConfig, int]]) -> list[LaneAdapter]:
    """`attach` for several (configuration, seed) at once; the lanes may differ in all they ask
    for."""
    adapted = [
        {(part.path, part.target) for part in adapted_slices(model, config)} for config, _ in wanted
    ]
    union = [
        part
        for part in every_target_slice(model)
        if any((part.path, part.target) in of_lane for of_lane in adapted)
    ]
    groups = groups_of(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    device = device_of(model.get_submodule(union[0].path))
    bank = AdapterBank(
        flat=torch.empty(0, device=device),
        scales=torch.tensor([config.scale for config, _ in wanted], device=device),
        configs=[config for config, _ in wanted],
        clocks=[DropoutClock(seed=seed) for _, seed in wanted],
        shares=(1,) * len(wanted),
    )
    for path, slices in by_module(union).items():
        base = model.get_submodule(path)
        assert not isinstance(base, LoraLinear), f"{path} has adapters already: detach them first"
        replace_module(model, path, LoraLinear(base, slices, bank))
    # A smaller rank's B is every row's first part of a wider block; autograd adds into it, and
    # says once that it is not dense.
    warnings.filterwarnings(
        "ignore", message="grad and param do not obey the gradient layout contract"
    )
    bank.flat = torch.zeros(len(wanted), _lay_out(model, groups), device=device)
    for lane, (_, seed) in enumerate(wanted):
        for _, layer in lora_layers(model):
            layer.add_lane(lane, seed, adapted[lane])
    return [adapter_of(model, lane) for lane in range(len(wanted))]


def _lay_out(model: nn.Module, groups: list[list[str]]) -> int:
    """Gives every target slice its stretch of a lane's row, in the order that the module's picture
    shows; returns the row's length."""
    end = 0
    for paths in groups:
        layers = [
            layer for layer in map(model.get_submodule, paths) if isinstance(layer, LoraLinear)
        ]
        pairs = [(layer, part) for layer in layers for part in layer.slices]
        starts_a, starts_b = [], []
        for layer, _ in pairs:
            starts_a.append(end)
            end += layer.rank * layer.d_in
        for layer, part in pairs:
            starts_b.append(end)
            end += layer.rank * part.width
        for (layer, _), first_a, first_b in zip(pairs, starts_a, starts_b, strict=True):
            layer.offsets.append((first_a, first_b))
    return end


def adapter_of(model: nn.Module, lane: int = 0) -> LaneAdapter:
    """One lane of the adapters that are attached to a model."""
    bank = lanes_on(model)
    assert isinstance(bank, AdapterBank), "no adapters are attached"
    parameters: dict[str, nn.Parameter] = {}
    for path, layer in lora_layers(model):
        for part, a, b in layer.adapters_of(lane):
            parameters[f"{path}:{part.target}.A"] = a
            parameters[f"{path}:{part.target}.B"] = b
    return LaneAdapter(
        model=model, config=bank.configs[lane], parameters=parameters, bank=bank, lane=lane
    )


def lanes_on(model: nn.Module) -> AdapterBank | NoAdapters:
    """The adapters attached to a model, or what stands for them."""
    banks = (getattr(module, "bank", None) for module in model.modules())
    return next((bank for bank in banks if isinstance(bank, AdapterBank)), NO_ADAPTERS)


def detach(model: nn.Module) -> None:
    """Takes every adapter off; the frozen layers are put back untouched."""
    for path, layer in lora_layers(model):
        replace_module(model, path, layer.base)


def lora_layers(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    return [
        (path, module) for path, module in model.named_modules() if isinstance(module, LoraLinear)
    ]


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within it an adapted model computes what its base does."""
    banks = {id(layer.bank): layer.bank for _, layer in lora_layers(model)}.values()
    try:
        for bank in banks:
            bank.off = True
        yield
    finally:
        for bank in banks:
            bank.off = False
