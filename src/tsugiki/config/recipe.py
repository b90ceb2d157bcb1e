"""The recipe: what is trained with where a file does not say. No model is read here; the caller
knows how wide it is.

    LoRA    all linear layers, rank 16, α 32; rate 5e-4 · (2,000 / width)^0.78 / scale
    FT      a tenth of that rate (scale 2)
    both    linear to 0 after a warm-up of 5 % of the steps

The rule of the rate is Tinker's for Llama (`get_lora_lr_over_full_finetune_lr`, and "LoRA Without
Regret", Schulman 2025, for the tenth), for any scale α/r: under Adam an update of B moves the
layer by rate · scale. benchmarks/lora_vs_ft holds what it costs against a searched rate.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from tsugiki.config.run import LoraConfig, RunConfig
from tsugiki.config.study import MethodSpec, Range, Setting
from tsugiki.errors import ConfigError

ADAPTER: dict[str, Setting] = {"targets": "all-linear", "rank": 16, "alpha": 32}
# Of each kind of method: the adapter, and what its rate is of that at scale 1.
OF_KIND: dict[str, tuple[dict[str, Setting], Callable[[float], float]]] = {
    "lora": (ADAPTER, lambda scale: 1 / scale),
    "full": ({}, lambda scale: 0.1 / 2),
}
SCHEDULE: dict[str, Setting] = {"schedule": "linear", "warmup": 0.05}
RATE, WIDTH, POWER = 5e-4, 2000, 0.781
# What a listing takes where the model is not on this machine: its width is not known there.
WIDTH_UNKNOWN = 2048
MULTIPLE = re.compile(r"([0-9]*\.?[0-9]+)x")


def rate_of(kind: str, width: int, scale: float = 2.0) -> float:
    """The learning rate for a model of this width (hidden size), to two digits. `scale`: of LoRA,
    α/r (α/√r)."""
    return _rounded(RATE * (WIDTH / width) ** POWER * OF_KIND[kind][1](scale))


def recipe_rate(config: RunConfig, width: int) -> float | None:
    """What the recipe's rate of this run would be; None of a method that it does not know."""
    if config.method not in OF_KIND:
        return None
    return rate_of(config.method, width, (config.lora or LoraConfig()).scale)


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
    filled, adapter = dict(given), given.get("lora") or OF_KIND[kind][0]
    if adapter:
        filled["lora"] = dict(adapter)
    scale = LoraConfig.model_validate(adapter).scale
    multiple = multiple_of(train.get("learning_rate")) or 1.0
    rate = _rounded(multiple * rate_of(kind, width, scale))
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
        ConfigError: a rate is a multiple of the recipe's, which depends on the scale, and the grid
            tries several.
    """
    if not needs_width(method, train):
        return method, train
    grid, lora = dict(method.grid), LoraConfig.model_fields.keys()
    if not lora & grid.keys():
        grid |= {name: (value,) for name, value in OF_KIND[method.kind][0].items()}
    base = rate_of(method.kind, width, _scale_of(method, grid))
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


def _scale_of(method: MethodSpec, grid: Mapping[str, tuple[Setting, ...] | Range]) -> float:
    names = [name for name in ("rank", "alpha", "rslora") if name in grid]
    lists: list[Iterable[Setting]] = []
    for name in names:
        values = grid[name]
        lists.append((values.low, values.high) if isinstance(values, Range) else values)
    try:
        scales = {
            round(LoraConfig.model_validate(dict(zip(names, values, strict=True))).scale, 9)
            for values in itertools.product(*lists)
        }
    except ValidationError:
        return 1.0  # what is wrong is said where each configuration is read
    if len(scales) > 1:
        raise ConfigError(
            f'method "{method.name}": a learning rate that is left to the recipe depends on the '
            f"scale α/r, and this grid has several ({', '.join(f'{each:g}' for each in scales)}). "
            "Name the rates, or make a method for each"
        )
    return scales.pop()


def _rounded(rate: float) -> float:
    return float(f"{rate:.1e}")
