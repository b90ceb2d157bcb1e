"""LoRA on a frozen model: attach, detach, and the adapted linear layer, for one lane or for many
over one base.

    h = W z + scale · B A z           W frozen, A random, B zero at the start

A fused weight (GPT-2's `c_attn`) carries one adapter for each column range that was named: true q
and v only. Adapters are kept in fp32 whatever the base is stored in; A's start depends on (seed,
place), not on the order of attaching.

Lanes share every product of the base and nothing else. The adapters of all lanes lie in one block,
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
    LaneAdapters,
    NoAdapters,
)
from tsugiki.model.layouts import (
    Place,
    by_module,
    every_place,
    find_places,
    groups_of,
    in_features,
    out_features,
    replace_module,
    weight_of,
)
from tsugiki.model.lora_ops import dropout_mask, grouped_update, low_rank_update


class LoraLinear(nn.Module):
    """A frozen linear layer and the low-rank adapters of one or more lanes, one for each adapted
    range of its outputs.

    `lora_a`, `lora_b` hold the adapters lane after lane; `offsets` say where those of each place
    begin in a lane's row of the bank.
    """

    def __init__(self, base: nn.Module, places: list[Place], bank: AdapterBank):
        super().__init__()
        self.base, self.places, self.bank = base, places, bank
        # A tensor, not numbers: layers that differ in a number would each be compiled anew.
        self.numbers = torch.tensor(
            [_number(f"{place.path}:{place.word}") for place in places],
            device=weight_of(base).device,
        )
        self.d_in = in_features(base)
        self.whole = len(places) == 1 and places[0].width == out_features(base)
        self.rank = max(config.rank for config in bank.configs)
        self.offsets: list[tuple[int, int]] = []
        self.lanes: list[LaneAdapters] = []
        self.lora_a, self.lora_b = nn.ParameterList(), nn.ParameterList()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[..., d_in] → [..., d_out]."""
        h: torch.Tensor = self.base(z)
        if self.bank.off:
            return h
        x = z if torch.is_autocast_enabled(z.device.type) else z.to(self.lora_a[0].dtype)
        updates = [self._update(x, number).to(h.dtype) for number in range(len(self.places))]
        if self.whole:
            return h + updates[0]
        h = h.clone()
        for place, update in zip(self.places, updates, strict=True):
            place.add(h, update)
        return h

    def _update(self, x: torch.Tensor, place: int) -> torch.Tensor:
        """What the adapters add to the outputs of one place, each lane's to its own tokens."""
        bank = self.bank
        if len(self.lanes) == 1:
            return self._of_lane(0, place, x, bank.rows, bank.positions)
        if bank.equal and not torch.is_grad_enabled():
            return grouped_update(x, *self.stacked(place), bank.scales)
        sizes = bank.sizes(x.shape[:-1].numel())
        parts = x.reshape(-1, self.d_in).split(sizes)
        counters: list[tuple[torch.Tensor | None, torch.Tensor | None]] = [(None, None)] * len(
            parts
        )
        if bank.rows is not None:
            assert bank.positions is not None, "rows without positions"
            rows, positions = (
                one.expand(x.shape[:-1]).reshape(-1).split(sizes)
                for one in (bank.rows, bank.positions)
            )
            counters = list(zip(rows, positions, strict=True))
        updates = [
            self._of_lane(lane, place, part, *counter)
            for lane, (part, counter) in enumerate(zip(parts, counters, strict=True))
            if len(part)
        ]
        return torch.cat(updates).view(*x.shape[:-1], -1)

    def _of_lane(
        self,
        lane: int,
        place: int,
        x: torch.Tensor,
        rows: torch.Tensor | None,
        positions: torch.Tensor | None,
    ) -> torch.Tensor:
        adapters = self.lanes[lane]
        number = adapters.where[place]
        if number is None:
            return x.new_zeros(*x.shape[:-1], self.places[place].width)
        if adapters.dropout and rows is not None:
            assert positions is not None, "rows without positions"
            clock = self.bank.clocks[lane]
            mask = dropout_mask(
                clock.seed,
                clock.step,
                self.numbers[place],
                rows,
                positions,
                x.shape[-1],
                adapters.dropout,
            )
            x = x * mask.to(x.dtype)
        return low_rank_update(x, self.lora_a[number], self.lora_b[number], adapters.scale)

    def stacked(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the bank: A [k, r, d_in] and B [k, width, r] of one place, r the largest rank
        of any lane."""
        flat, (first_a, first_b) = self.bank.flat, self.offsets[place]
        width = self.places[place].width
        a = flat[:, first_a : first_a + self.rank * self.d_in].view(len(flat), self.rank, self.d_in)
        b = flat[:, first_b : first_b + self.rank * width].view(len(flat), width, self.rank)
        return a, b

    def adapters_of(self, lane: int) -> list[tuple[Place, nn.Parameter, nn.Parameter]]:
        """(place, A, B) of one lane."""
        where = self.lanes[lane].where
        return [
            (place, self.lora_a[number], self.lora_b[number])
            for place, number in zip(self.places, where, strict=True)
            if number is not None
        ]

    def add_lane(self, lane: int, seed: int, adapted: set[tuple[str, str]]) -> None:
        """Adds a lane's adapters on those places whose (path, word) is in `adapted`: views of its
        row of the bank, A drawn, B zero."""
        config = self.bank.configs[lane]
        where: list[int | None] = []
        for number, place in enumerate(self.places):
            if (place.path, place.word) not in adapted:
                where.append(None)
                continue
            a, b = (stack[lane] for stack in self.stacked(number))
            where.append(len(self.lora_a))
            self.lora_a.append(nn.Parameter(a[: config.rank]))
            self.lora_b.append(nn.Parameter(b[:, : config.rank]))
            if self.bank.flat.device.type != "meta":
                self.lora_a[-1].data.copy_(_start_a(place, config.rank, self.d_in, seed))
        self.lanes.append(
            LaneAdapters(scale=config.scale, dropout=config.dropout, where=tuple(where))
        )


def _number(text: str) -> int:
    """A fixed number below 2^62 for a name."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def _start_a(place: Place, rank: int, d_in: int, seed: int) -> torch.Tensor:
    """Kaiming-uniform with a = √5, as in loralib and peft: U(-1/√d_in, 1/√d_in); drawn on the CPU
    from (seed, place)."""
    generator = torch.Generator().manual_seed(_number(f"{seed}:{place.path}:{place.word}"))
    bound = 1 / math.sqrt(d_in)
    return torch.empty(rank, d_in).uniform_(-bound, bound, generator=generator)


@dataclass(kw_only=True)
class Grafted:
    """One lane's adapters on a model: the parameters to train by name, all of them views of its
    row of the bank."""

    model: nn.Module
    config: LoraConfig
    parameters: dict[str, nn.Parameter]
    bank: AdapterBank
    lane: int

    @property
    def clock(self) -> DropoutClock:
        return self.bank.clocks[self.lane]


def attach(model: nn.Module, config: LoraConfig, seed: int) -> Grafted:
    """Freezes the model and puts adapters on the layers that `config.targets` names. Undo with
    `detach`.

    Raises:
        ModelError: a target word is unknown here, or the model's layout is.
    """
    return attach_lanes(model, [(config, seed)])[0]


def adapted_places(model: nn.Module, config: LoraConfig) -> list[Place]:
    """Where these adapters go. Raises `ModelError` for an unknown target, and for a rank that a
    matrix does not have."""
    places = find_places(model, config.targets)
    for place in places:
        most = min(in_features(model.get_submodule(place.path)), place.width)
        if config.rank > most:
            raise ModelError(
                f"lora.rank = {config.rank}: {place.path} ({place.word}) has rank {most} at most, "
                "so a larger one only costs. Lower it"
            )
    return places


def attach_lanes(model: nn.Module, asked: Sequence[tuple[LoraConfig, int]]) -> list[Grafted]:
    """`attach` for several (configuration, seed) at once; the lanes may differ in all they ask
    for."""
    adapted = [
        {(place.path, place.word) for place in adapted_places(model, config)} for config, _ in asked
    ]
    union = [
        place
        for place in every_place(model)
        if any((place.path, place.word) in words for words in adapted)
    ]
    groups = groups_of(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    device = weight_of(model.get_submodule(union[0].path)).device
    bank = AdapterBank(
        flat=torch.empty(0, device=device),
        scales=torch.tensor([config.scale for config, _ in asked], device=device),
        configs=[config for config, _ in asked],
        clocks=[DropoutClock(seed=seed) for _, seed in asked],
        shares=(1,) * len(asked),
    )
    for path, here in by_module(union).items():
        base = model.get_submodule(path)
        assert not isinstance(base, LoraLinear), f"{path} has adapters already: detach them first"
        replace_module(model, path, LoraLinear(base, here, bank))
    # A smaller rank's B is every row's first part of a wider block; autograd adds into it, and
    # says once that it is not dense.
    warnings.filterwarnings(
        "ignore", message="grad and param do not obey the gradient layout contract"
    )
    bank.flat = torch.zeros(len(asked), _lay_out(model, groups), device=device)
    for lane, (_, seed) in enumerate(asked):
        for _, layer in lora_layers(model):
            layer.add_lane(lane, seed, adapted[lane])
    return [grafted_of(model, lane) for lane in range(len(asked))]


def _lay_out(model: nn.Module, groups: list[list[str]]) -> int:
    """Gives every place its stretch of a lane's row, in the order that the module's picture shows;
    returns the row's length."""
    end = 0
    for paths in groups:
        layers = [
            layer for layer in map(model.get_submodule, paths) if isinstance(layer, LoraLinear)
        ]
        pairs = [(layer, place) for layer in layers for place in layer.places]
        starts_a, starts_b = [], []
        for layer, _ in pairs:
            starts_a.append(end)
            end += layer.rank * layer.d_in
        for layer, place in pairs:
            starts_b.append(end)
            end += layer.rank * place.width
        for (layer, _), first_a, first_b in zip(pairs, starts_a, starts_b, strict=True):
            layer.offsets.append((first_a, first_b))
    return end


def grafted_of(model: nn.Module, lane: int = 0) -> Grafted:
    """One lane of the adapters that are attached to a model."""
    bank = lanes_on(model)
    assert isinstance(bank, AdapterBank), "no adapters are attached"
    parameters: dict[str, nn.Parameter] = {}
    for path, layer in lora_layers(model):
        for place, a, b in layer.adapters_of(lane):
            parameters[f"{path}:{place.word}.A"] = a
            parameters[f"{path}:{place.word}.B"] = b
    return Grafted(
        model=model, config=bank.configs[lane], parameters=parameters, bank=bank, lane=lane
    )


def lanes_on(model: nn.Module) -> AdapterBank | NoAdapters:
    """The adapters attached to a model, or what stands for them."""
    found = (getattr(module, "bank", None) for module in model.modules())
    return next((bank for bank in found if isinstance(bank, AdapterBank)), NO_ADAPTERS)


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
