"""The recipe: what is trained with where a file does not say. No model is read here; the caller
knows how wide it is.

    LoRA    all linear layers, rank 64 (a quarter of the width at most), α twice that;
            rate 4e-4 · (2,000 / width)^0.78 · √(16 / rank) / scale; LoRA+ moves A by the root less
    FT      rate 2.5e-5 · (2,000 / width)^0.78
    both    linear to 0 after a warm-up of 5 % of the steps

How rates follow the width is Tinker's rule for Llama (`get_lora_lr_over_full_finetune_lr`). Under
Adam an update of B moves the layer by rate · scale, in as many directions as there are ranks: the
scale divides the rate, and so does the rank's root, measured at ranks 16 and 64, as are the two
factors (benchmarks/lora_vs_ft, on validation).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tsugiki.config.run import LoraConfig, RunConfig
from tsugiki.config.study import MethodSpec, Range, Setting
from tsugiki.errors import ConfigError

SCHEDULE: dict[str, Setting] = {"schedule": "linear", "warmup": 0.05}
WIDTH, POWER = 2000, 0.781
RANK = 64
# What a listing takes where the model is not on this machine: its width is not known there.
WIDTH_UNKNOWN = 2048
MULTIPLE = re.compile(r"([0-9]*\.?[0-9]+)x")


def adapter_of(width: int) -> dict[str, Setting]:
    """What LoRA trains of a model of this width. Small models have projections of a quarter of it,
    whose rank is no more."""
    rank = max(1, min(RANK, width // 4))
    return {"targets": "all-linear", "rank": rank, "alpha": 2 * rank}


@dataclass(frozen=True, kw_only=True)
class OfKind:
    """Of a kind of method: the rate at `WIDTH`, what an adapter divides it by, and the adapter for
    a width where a file says nothing."""

    rate: float
    divisor: Callable[[LoraConfig], float]
    adapter: Callable[[int], dict[str, Setting]]


def _divisor(lora: LoraConfig) -> float:
    """1 at rank 16 and scale 1. Under LoRA+ the rate is A's: B's is above it by as much as A's lies
    below the plain one."""
    return lora.scale * math.sqrt(lora.rank / 16 * lora.loraplus)


OF_KIND = {
    "lora": OfKind(rate=4e-4, divisor=_divisor, adapter=adapter_of),
    "full": OfKind(rate=2.5e-5, divisor=lambda lora: 1.0, adapter=lambda width: {}),
}


def rate_of(kind: str, width: int, settings: Mapping[str, Setting] | None = None) -> float:
    """The learning rate for a model of this width (hidden size), to two digits; of LoRA with these
    settings, or with the recipe's."""
    own = OF_KIND[kind]
    given = own.adapter(width) if settings is None else settings
    divisor = own.divisor(LoraConfig.model_validate(given))
    return _rounded(own.rate * (WIDTH / width) ** POWER / divisor)


def recipe_rate(config: RunConfig, width: int) -> float | None:
    """What the recipe's rate of this run would be; None of a method that it does not know."""
    if config.method not in OF_KIND:
        return None
    return rate_of(config.method, width, (config.lora or LoraConfig()).model_dump())


def multiple_of(rate: object) -> float | None:
    """What a rate is of the recipe's: `"0.5x"` is half of it, and None (nothing said) all of it.
    None for a rate of its own, and for what is no rate."""
    if rate is None:
        return 1.0
    match = MULTIPLE.fullmatch(rate) if isinstance(rate, str) else None
    return float(match[1]) if match and float(match[1]) > 0 else None


def leaves_it_out(given: Mapping[str, Any]) -> bool:
    """Whether a run file leaves the rate to the recipe."""
    train = given.get("train") or {}
    trained = given.get("method", "lora") in OF_KIND and given.get("adapter") is None
    if not trained or not isinstance(train, Mapping):
        return False
    return multiple_of(train.get("learning_rate")) is not None


def fill_run(given: Mapping[str, Any], width: int) -> dict[str, Any]:
    """A run file with what it leaves out; see `leaves_it_out`."""
    kind, train = given.get("method", "lora"), given.get("train") or {}
    filled, adapter = dict(given), dict(given.get("lora") or OF_KIND[kind].adapter(width))
    if adapter:
        filled["lora"] = adapter
    multiple = multiple_of(train.get("learning_rate")) or 1.0
    rate = _rounded(multiple * rate_of(kind, width, adapter))
    filled["train"] = {**SCHEDULE, **train, "learning_rate": rate}
    return filled


def needs_width(method: MethodSpec, train: Mapping[str, object]) -> bool:
    """Whether a row of a study leaves its rate, or some of those it tries, to the recipe."""
    if method.kind not in OF_KIND or method.adapter:
        return False
    return any(multiple_of(rate) is not None for rate in _rates(method, train))


def fill_method(
    method: MethodSpec, train: Mapping[str, object], width: int
) -> tuple[MethodSpec, Mapping[str, object]]:
    """A row of a study, and its [train], with what they leave out, for a model of this width.

    Raises:
        ConfigError: a rate is a multiple of the recipe's, which depends on the adapter, and those
            that the grid tries have several.
    """
    if not needs_width(method, train):
        return method, train
    grid = dict(method.grid)
    if not LoraConfig.model_fields.keys() & grid.keys():
        grid |= {name: (value,) for name, value in OF_KIND[method.kind].adapter(width).items()}
    base = _rate_of_all(method, grid, width)
    rates = ((multiple_of(rate), rate) for rate in _rates(method, train))
    grid["learning_rate"] = tuple(
        rate if multiple is None else _rounded(multiple * base) for multiple, rate in rates
    )
    kept = {name: value for name, value in SCHEDULE.items() if name not in grid}
    rest = {name: value for name, value in train.items() if name != "learning_rate"}
    return method.model_copy(update={"grid": grid}), {**kept, **rest}


def _rates(method: MethodSpec, train: Mapping[str, object]) -> tuple[Any, ...]:
    tried = method.grid.get("learning_rate", (train.get("learning_rate"),))
    return () if isinstance(tried, Range) else tried


def _rate_of_all(
    method: MethodSpec, grid: Mapping[str, tuple[Setting, ...] | Range], width: int
) -> float:
    """The rate of whatever adapters the grid tries."""
    names = [name for name in ("rank", "alpha", "rslora", "loraplus") if name in grid]
    lists: list[Iterable[Setting]] = []
    for name in names:
        values = grid[name]
        lists.append((values.low, values.high) if isinstance(values, Range) else values)
    try:
        rates = {
            rate_of(method.kind, width, dict(zip(names, values, strict=True)))
            for values in itertools.product(*lists)
        }
    except ValidationError:
        return 1.0  # what is wrong is said where each configuration is read
    if len(rates) > 1:
        raise ConfigError(
            f'method "{method.name}": a learning rate that is left to the recipe depends on the '
            f"rank and the scale α/r, and this grid has several ({', '.join(sorted(names))}). "
            "Name the rates, or make a method for each"
        )
    return rates.pop()


def _rounded(rate: float) -> float:
    return float(f"{rate:.1e}")
