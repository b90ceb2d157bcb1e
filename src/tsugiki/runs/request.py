"""What a file or a caller asks for becomes a `RunConfig`; what it leaves out of how to train is the
recipe's, which depends on the model's width. No torch here."""

from __future__ import annotations

from collections.abc import Callable

from tsugiki.config.recipe import WIDTH_UNKNOWN, fill_run, leaves_it_out
from tsugiki.config.run import ModelChoice, RunConfig
from tsugiki.model.width import width_of
from tsugiki.toml import Given, parse

WidthOf = Callable[[ModelChoice], int | None]


def run_config(given: Given, where: str, width: WidthOf = width_of) -> RunConfig:
    """The run that is asked for.

    Raises:
        ConfigError: something is wrong in what is given.
        ModelError: the rate is left to the recipe, and the model's settings cannot be read.
    """
    if not isinstance(given, dict) or not leaves_it_out(given):
        return parse(RunConfig, given, where)
    drafted = _with_rate(given)
    model = parse(RunConfig, drafted, where).model
    return parse(RunConfig, fill_run(given, width(model) or WIDTH_UNKNOWN), where)


def _with_rate(given: Given) -> Given:
    """The same with some rate: everything else of it is looked at before the model is."""
    return {**given, "train": {**(given.get("train") or {}), "learning_rate": 1.0}}
