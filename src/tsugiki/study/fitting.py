"""Which configurations fit on a device, said before anything is loaded: what each holds, item by
item, how it is made to fit, the largest batch, or the line to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tsugiki.config.run import RunConfig
from tsugiki.data.prompts import Tokens
from tsugiki.model.numerics import Numerics, numerics_of, pick_device
from tsugiki.runs.methods import method_of, short_name
from tsugiki.train.ledger import (
    Ledger,
    Load,
    first_that_fits,
    lanes_that_fit,
    load_of,
    rows_that_fit,
    sizes_of,
)
from tsugiki.train.memory import USABLE, NoRoom, in_words, room, what_helps
from tsugiki.words import Message, joined

GIB = 2**30
SURE = 1.1  # of the room: what is foretold beyond it does not fit


@dataclass(frozen=True, kw_only=True)
class Device:
    """Bytes of a device, and what it is called. `there`: it is this machine's."""

    name: str
    total: float
    there: bool


def device_for(gib: float | None) -> Device:
    """The one of this machine; or one with so many GiB, for which is planned here."""
    device = pick_device()
    if gib is not None:
        name = Message("memory.a_device_of", gib=gib)
        return Device(name=name, total=gib * GIB, there=False)
    if device.type == "cuda":
        return Device(name=str(device), total=room(device)[1], there=True)
    return Device(name=Message("memory.a_device"), total=float("inf"), there=False)


@dataclass(frozen=True, kw_only=True)
class Fits:
    """What configurations that hold the same hold, in bytes, and how they fit: None where they do
    not."""

    configs: tuple[RunConfig, ...]
    whole: Ledger
    load: Load
    way: Load | None
    ledger: Ledger
    least: Ledger
    lanes: int
    rows: int


def fits_of(
    model: Any, configs: Sequence[RunConfig], rows: Sequence[Tokens], device: Device
) -> Iterator[Fits]:
    """Each kind of configurations over these rows; those of a kind hold the same."""
    sizes, free = sizes_of(model), USABLE * device.total
    kinds: dict[tuple[object, ...], list[RunConfig]] = {}
    for config in configs:
        train, method = config.train, method_of(config)
        key = (type(method), method.looks_at(config), config.model.base, train.batch)
        kinds.setdefault((*key, train.micro_batch), []).append(config)
    for alike in kinds.values():
        config = max(alike, key=lambda each: each.train.epochs)
        method = method_of(config)
        load = replace(load_of(rows, [each.train for each in alike]), lanes=1)
        of = method.ledger(sizes, model, config, _numerics(config))
        tried = list(method.smaller_loads(load))
        way = first_that_fits(of, iter(tried), free)
        yield Fits(
            configs=tuple(alike),
            whole=of(load),
            load=load,
            way=way,
            ledger=of(way or load),
            least=of(tried[-1]),
            lanes=lanes_that_fit(of, load, free, len(alike)) if method.together else 1,
            rows=rows_that_fit(of, load, free) if method.trains and free < float("inf") else 0,
        )


def _numerics(config: RunConfig) -> Numerics:
    """As on a CUDA device with bf16, whatever is here."""
    precision = config.train.precision
    wanted = "bf16" if precision == "auto" else precision
    return numerics_of(config.method, wanted, config.model.base)


def fits_text(fits: Fits, device: Device) -> str:
    """`LoRA, 3 configurations: 3.6 GiB (…) of 24 on cuda`, and how."""
    first, count = fits.configs[0], len(fits.configs)
    name = _called(first)
    if count > 1:
        name = Message("memory.many", name=name, count=count)
    values: dict[str, object] = {"name": name, "device": device.name}
    gib = {"gib": device.total / GIB} if device.there else {}
    if fits.way is None:
        if device.there:
            values["device"] = Message("memory.device_of", device=device.name, **gib)
        less = method_of(first).instead(first)
        return Message("memory.no_fit", held=in_words(fits.whole), less=less, **values)
    line = "memory.line_of" if device.there else "memory.line"
    said: list[str] = [Message(line, held=in_words(fits.ledger), **values, **gib)]
    if how := _how(fits):
        said.append(Message("memory.fits_with", how=joined("list.comma", how)))
    if fits.lanes > 1:
        said.append(Message("memory.together", lanes=fits.lanes))
    if fits.rows and device.total != float("inf"):
        said.append(Message("memory.rows", rows=fits.rows))
    return joined("list.semicolon", said)


def _called(config: RunConfig) -> str:
    name, base = short_name(config), config.model.base
    return Message("memory.over", name=name, base=base) if base else name


def _how(fits: Fits) -> list[str]:
    """What a step has to do to fit."""
    way, load = fits.way, fits.load
    if way is None or way == load:
        return []
    said = list[str]()
    if way.tokens < load.tokens:
        said.append(Message("memory.smaller", tokens=way.tokens, whole=load.tokens))
    if way.recomputed:
        said.append(Message("memory.recomputed"))
    if way.by_layer:
        said.append(Message("memory.by_layer"))
    return said


def refuse(fits: Fits, device: Device) -> None:
    """Raises `NoRoom` where these configurations are beyond this machine's device for certain,
    whatever is done."""
    if not device.there or fits.least.total < SURE * device.total:
        return
    config, there = fits.configs[0], pick_device()
    method = method_of(config)
    helps = what_helps(fits.least, method.instead(config), config.train, there)
    raise NoRoom(Message("error.kind_does_not_fit", name=_called(config), reason=helps))
