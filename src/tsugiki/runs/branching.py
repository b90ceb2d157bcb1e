"""Runs that differ in their epochs alone share their first steps: the longest of each family is
trained from the beginning, and hands its checkpoint over to the shorter ones where they part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tsugiki.config.run import RunConfig
from tsugiki.train.lane import shared_steps


@dataclass(frozen=True, kw_only=True)
class Branches:
    """`longest`: the runs that begin at the beginning. `of`: for each of them, after which of its
    steps which others go on from its checkpoint."""

    longest: tuple[RunConfig, ...] = ()
    of: dict[RunConfig, dict[int, list[RunConfig]]] = field(default_factory=dict)

    def at(self, config: RunConfig, step: int) -> list[RunConfig]:
        """The runs that go on from this one after so many steps."""
        return self.of.get(config, {}).get(step, [])

    def steps(self, config: RunConfig) -> list[int]:
        """After which of its steps a run hands over."""
        return list(self.of.get(config, {}))

    def behind(self, configs: Sequence[RunConfig]) -> set[RunConfig]:
        """All runs that go on from one of these."""
        return {
            branch
            for config in configs
            for some in self.of.get(config, {}).values()
            for branch in some
        }


def find_branches(wanted: Sequence[RunConfig], steps_of: Callable[[RunConfig], int]) -> Branches:
    """Which runs share how many first steps with a longer one. Half of its own at least, and none
    that is watched during training: it would lack what came before."""
    longest: list[RunConfig] = []
    families: dict[RunConfig, RunConfig] = {}
    of: dict[RunConfig, dict[int, list[RunConfig]]] = {}
    for config in sorted(wanted, key=lambda config: -config.train.epochs):
        train = config.train.model_copy(update={"epochs": 1.0})
        family = config.model_copy(update={"train": train})
        first = families.setdefault(family, config)
        steps = steps_of(config)
        shared = shared_steps(config.train, steps, first.train, steps_of(first))
        if first is config or 2 * shared < steps or config.score.validations:
            longest.append(config)
        else:
            of.setdefault(first, {}).setdefault(shared, []).append(config)
    return Branches(longest=tuple(config for config in wanted if config in longest), of=of)
