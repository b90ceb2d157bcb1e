"""What the rest of the house asks of a method: `runs/methods` has one class for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from tsugiki.config.run import RunConfig
from tsugiki.config.study import MethodSpec
from tsugiki.runs.answering import Answering
from tsugiki.runs.record import Outcome

if TYPE_CHECKING:
    import torch

    from tsugiki.data.prompts import Tokens
    from tsugiki.model.loading import Base, BaseSource
    from tsugiki.model.numerics import Numerics
    from tsugiki.runs.reading import RunRecord
    from tsugiki.runs.store import Run
    from tsugiki.train.lane import Lane
    from tsugiki.train.ledger import Ledger, Load, Sizes

Settings = Mapping[str, object]


class Method(Protocol):
    """`order` puts LoRA before an encoder, both before full fine-tuning, and all before the
    untouched base. `tuned`:
    somebody trained something; the base that nobody touched may lie anywhere. `together`: many
    train over one base. `moves_base`: its weights are trained, so that the next run loads it
    anew, and what is kept is as large as it. `step_kind`: what the record says of its steps ("": as
    made). `flops`: of a step, a parameter of the base and a token (2 forward, 2 a gradient).
    `answering`: how its model is read, trained and asked.
    """

    name: str
    order: int
    grid_keys: frozenset[str]
    trains: bool
    tuned: bool
    together: bool
    moves_base: bool
    step_kind: str
    flops: int
    answering: Answering

    def settings_of(
        self, train: Settings, settings: Settings, spec: MethodSpec
    ) -> dict[str, object]:
        """What a row of a study asks for besides model, task and scoring: its [train], and what is
        the method's own."""

    def summary(self, config: RunConfig) -> str:
        """Its own settings in a line, for the report."""

    def alike(self, config: RunConfig) -> RunConfig:
        """What runs must have in common to train together."""

    def looks_at(self, config: RunConfig) -> object:
        """What `look` looks at: configurations that agree in it need one look."""

    def look(self, model: torch.nn.Module, config: RunConfig) -> Iterator[str]:
        """Looks at a model whose weights were not read; yields remarks. Raises `TsugikiError` for
        what cannot be trained on it."""

    def num_trained(self, model: torch.nn.Module, config: RunConfig) -> int:
        """How many parameters it trains of a model, or adds to it."""

    def side_by_side(self, config: RunConfig) -> str:
        """Lanes next to each other in this order skip what none of them adapts."""

    def check_room(self, source: BaseSource, config: RunConfig) -> None:
        """Raises `RunError` where it cannot fit, whatever the rows are."""

    def lanes(self, base: Base, configs: Sequence[RunConfig], num_rows: int) -> list[Lane]:
        """A lane for each configuration: parameters to move, and where their rows come from."""

    def ledger(
        self, sizes: Sizes, model: torch.nn.Module, config: RunConfig, numerics: Numerics
    ) -> Callable[[Load], Ledger]:
        """What training holds on a device, given the largest backward pass."""

    def smaller_loads(self, load: Load) -> Iterator[Load]:
        """How a step of so much is made to fit, the fastest first (`train/ledger`)."""

    def most_lanes(self, base: Base, configs: Sequence[RunConfig], rows: Sequence[Tokens]) -> int:
        """How many of these a device holds together."""

    def instead(self, config: RunConfig) -> str:
        """What takes less memory than it, in words."""

    def plan(self, base_size: int, lane: Lane, config: RunConfig, run: Run) -> Outcome:
        """What is known of its size before the first step."""

    def put_back(self, base: Base, record: RunRecord, *, whole: bool = False) -> None:
        """Puts what a finished run trained on its base, from the run's folder; `whole`: all bits
        of it, where training and scoring read fewer."""
