"""LoRA on a frozen model: attach, detach, and the adapted linear layer.

    h = W z + scale · B A z           W frozen, A random, B zero at the start

A fused weight (GPT-2's `c_attn`) carries one adapter for each column range that was named: true q and v only.
Adapters are kept in fp32 whatever the base is stored in; A's start depends on (seed, place), not on the order of attaching.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tsugiki.config import LoraConfig
from tsugiki.model.layouts import Place, by_module, find_places, groups_of, in_features, out_features, replace_module, weight_of
from tsugiki.model.lora_ops import dropout_mask, low_rank_update


@dataclass
class DropoutClock:
    """What the dropout masks of one forward pass are drawn from; `rows` is None when nothing is dropped.

    `rows` [b, 1] and `positions` [1, t] of a padded batch, both [1, n] of a packed one. `step` may live on the device.
    """

    seed: int = 0
    step: int | torch.Tensor = 0
    rows: torch.Tensor | None = None
    positions: torch.Tensor | None = None


class LoraLinear(nn.Module):
    """A frozen linear layer and its low-rank adapters, one for each adapted range of its outputs."""

    def __init__(self, base: nn.Module, places: list[Place], config: LoraConfig, seed: int, clock: DropoutClock):
        super().__init__()
        self.base = base
        self.places = places
        self.scale = config.scale
        self.dropout = config.dropout
        self.clock = clock
        device = weight_of(base).device
        # A tensor, not numbers: layers that differ in a number would each be compiled anew.
        self.numbers = torch.tensor([_number(f"{place.path}:{place.word}") for place in places], device=device)
        d_in = in_features(base)
        self.whole = len(places) == 1 and places[0].start == 0 and places[0].stop == out_features(base)
        self.lora_a = nn.ParameterList([_start_a(place, config.rank, d_in, seed, device) for place in places])
        self.lora_b = nn.ParameterList([nn.Parameter(torch.zeros(place.stop - place.start, config.rank, device=device)) for place in places])

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """[..., d_in] → [..., d_out]."""
        h = self.base(z)
        x = z
        if not torch.is_autocast_enabled(z.device.type):
            x = z.to(self.lora_a[0].dtype)
        updates = []
        for index, (place, a, b) in enumerate(zip(self.places, self.lora_a, self.lora_b, strict=True)):
            updates.append((place, low_rank_update(self._dropped(x, index), a, b, self.scale).to(h.dtype)))
        if self.whole:
            return h + updates[0][1]
        h = h.clone()
        for place, update in updates:
            h[..., place.start : place.stop] += update
        return h

    def _dropped(self, x: torch.Tensor, index: int) -> torch.Tensor:
        clock = self.clock
        if not self.dropout or clock.rows is None:
            return x
        assert clock.positions is not None, "rows without positions"
        mask = dropout_mask(clock.seed, clock.step, self.numbers[index], clock.rows, clock.positions, x.shape[-1], self.dropout)
        return x * mask.to(x.dtype)


def _number(text: str) -> int:
    """A fixed number below 2^62 for a name."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def _start_a(place: Place, rank: int, d_in: int, seed: int, device: torch.device) -> nn.Parameter:
    """Kaiming-uniform with a = √5, as in loralib and peft: U(-1/√d_in, 1/√d_in); drawn on the CPU from (seed, place)."""
    generator = torch.Generator().manual_seed(_number(f"{seed}:{place.path}:{place.word}"))
    bound = 1 / math.sqrt(d_in)
    if device.type == "meta":
        return nn.Parameter(torch.empty(rank, d_in, device=device))
    start = torch.empty(rank, d_in).uniform_(-bound, bound, generator=generator)
    return nn.Parameter(start.to(device))


@dataclass(kw_only=True)
class Grafted:
    """A model with adapters attached: the parameters to train by name, and the clock of their dropout.

    Every parameter is a view of `flat`, one fp32 vector: layer by layer the A's of what reads one input, then their B's.
    """

    model: nn.Module
    config: LoraConfig
    parameters: dict[str, nn.Parameter]
    clock: DropoutClock
    flat: torch.Tensor


def attach(model: nn.Module, config: LoraConfig, seed: int) -> Grafted:
    """Freezes the model and puts adapters on the layers that `config.targets` names. Undo with `detach`.

    Raises:
        ModelError: a target word is unknown here, or the model's layout is.
    """
    places = find_places(model, config.targets)
    groups = groups_of(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    clock = DropoutClock(seed=seed)
    for path, here in by_module(places).items():
        base = model.get_submodule(path)
        assert not isinstance(base, LoraLinear), f"{path} has adapters already: detach them first"
        replace_module(model, path, LoraLinear(base, here, config, seed, clock))
    return Grafted(model=model, config=config, parameters=_named(model), clock=clock, flat=_flatten(model, groups))


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters: dict[str, nn.Parameter] = {}
    for path, layer in lora_layers(model):
        for place, a, b in zip(layer.places, layer.lora_a, layer.lora_b, strict=True):
            parameters[f"{path}:{place.word}.A"] = a
            parameters[f"{path}:{place.word}.B"] = b
    return parameters


def _flatten(model: nn.Module, groups: list[list[str]]) -> torch.Tensor:
    """Moves the adapters into one vector, in the order that `Grafted` tells."""
    ordered: list[nn.Parameter] = []
    for paths in groups:
        layers = [layer for layer in map(model.get_submodule, paths) if isinstance(layer, LoraLinear)]
        ordered += [a for layer in layers for a in layer.lora_a]
        ordered += [b for layer in layers for b in layer.lora_b]
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in ordered])
    for parameter, part in zip(ordered, flat.split([parameter.numel() for parameter in ordered]), strict=True):
        parameter.data = part.view(parameter.shape)
    return flat


def detach(model: nn.Module) -> None:
    """Takes every adapter off; the frozen layers are put back untouched."""
    for path, layer in lora_layers(model):
        replace_module(model, path, layer.base)


def lora_layers(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    return [(path, module) for path, module in model.named_modules() if isinstance(module, LoraLinear)]


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Within it the adapted model computes what its base does."""
    layers = [layer for _, layer in lora_layers(model)]
    scales = [layer.scale for layer in layers]
    try:
        for layer in layers:
            layer.scale = 0.0
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale


def grafted_of(model: nn.Module, config: LoraConfig) -> Grafted:
    """The adapters that are attached to a model already."""
    layers = [layer for _, layer in lora_layers(model)]
    return Grafted(model=model, config=config, parameters=_named(model), clock=layers[0].clock, flat=_flatten(model, groups_of(model)))
