"""Which settings of a method are tried: every combination of its grid, a random sample, or
Optuna's TPE in rounds. No torch here.

TPE's choice is a function of (seed, scores of the rounds before): a resumed study, and a report
made later, ask the same questions again and find the same cells in the records.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tsugiki.config.run import RunConfig
from tsugiki.config.study import MethodSpec, Range, Setting
from tsugiki.errors import ConfigError, how_to_install
from tsugiki.runs.reading import RunRecord

Lookup = Callable[[RunConfig], RunRecord | None]
Settings = dict[str, Setting]
ConfigOf = Callable[[Settings], RunConfig]
TRIALS, ROUNDS = 24, 3


def nothing_known(config: RunConfig) -> None:
    """The lookup of a study that has not begun."""


def settings_of(method: MethodSpec, config_of: ConfigOf, lookup: Lookup) -> Iterator[Settings]:
    """The settings of every cell that is known by now, each once. Under TPE a round is known when
    all before it have records."""
    if method.search.kind == "grid":
        lists = [values for values in method.grid.values() if not isinstance(values, Range)]
        yield from (
            dict(zip(method.grid, values, strict=True)) for values in itertools.product(*lists)
        )
    elif method.search.kind == "random":
        yield from _sample(method)
    else:
        yield from _learnt(method, config_of, lookup)


def _sample(method: MethodSpec) -> Iterator[Settings]:
    dice = random.Random(method.search.seed or 0)
    seen: list[Settings] = []
    for _ in range(100 * (method.search.trials or TRIALS)):
        drawn = {name: _draw(dice, values) for name, values in method.grid.items()}
        if drawn not in seen:
            seen.append(drawn)
            yield drawn
        if len(seen) == (method.search.trials or TRIALS):
            return


def _draw(dice: random.Random, values: tuple[Setting, ...] | Range) -> Setting:
    if not isinstance(values, Range):
        return dice.choice(values)
    even = (
        dice.uniform(math.log(values.low), math.log(values.high))
        if values.log
        else dice.uniform(values.low, values.high)
    )
    return _plain(math.exp(even) if values.log else even, values)


def _plain(value: float, values: Range) -> float | int:
    """Three digits are enough, and a cell's name stays readable."""
    if isinstance(values.low, int) and isinstance(values.high, int):
        return round(value)
    return float(f"{value:.3g}")


def _learnt(method: MethodSpec, config_of: ConfigOf, lookup: Lookup) -> Iterator[Settings]:
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            f'method "{method.name}": search.kind = "tpe" needs Optuna. {how_to_install("optuna")}'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials, rounds = (
        method.search.trials or TRIALS,
        min(method.search.rounds or ROUNDS, method.search.trials or TRIALS),
    )
    sizes = [trials // rounds + (number < trials % rounds) for number in range(rounds)]
    sampler = optuna.samplers.TPESampler(
        seed=method.search.seed or 0, n_startup_trials=sizes[0], constant_liar=True
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    seen: list[Settings] = []
    for size in sizes:
        proposed = []
        for _ in range(size):
            trial = study.ask()
            proposed.append(
                (trial, {name: _ask(trial, name, values) for name, values in method.grid.items()})
            )
        for _, settings in proposed:
            if settings not in seen:  # asked for twice: its score is told twice
                seen.append(settings)
                yield settings
        if not all(
            _report_score(study, trial, lookup(config_of(settings))) for trial, settings in proposed
        ):
            return


class Trial(Protocol):
    """What we ask of a trial of Optuna's."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float: ...


def _ask(trial: Trial, name: str, values: tuple[Setting, ...] | Range) -> Setting:
    if not isinstance(values, Range):
        picked: Setting = trial.suggest_categorical(name, values)
        return picked
    if isinstance(values.low, int) and isinstance(values.high, int):
        return trial.suggest_int(name, values.low, values.high, log=values.log)
    return _plain(trial.suggest_float(name, values.low, values.high, log=values.log), values)


def _report_score(study: Any, trial: Any, record: RunRecord | None) -> bool:
    """Tells the sampler how a cell did; False while that is not known. A cell that did not learn
    scored nothing."""
    if record is None or not record.outcome.finished:
        return False
    outcome, score = record.outcome, None
    if record.status == "done":
        score = record.main_score("validation")
    elif outcome.pruned_score is not None:
        score = outcome.pruned_score.value
    if outcome.search_score is not None:
        # What was told before it was trained again: the later rounds follow from it.
        score = outcome.search_score
    study.tell(trial, score or 0.0)
    return True
