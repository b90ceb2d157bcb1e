"""Methods that train nothing: an adapter that was trained elsewhere, and the untouched base. No
torch until one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.config.run import READ_UNTRAINED, RunConfig
from tsugiki.config.study import MethodSpec
from tsugiki.runs.answering import WRITES, Answering
from tsugiki.runs.method import Settings
from tsugiki.runs.record import Imported, Outcome
from tsugiki.words import Message, joined

if TYPE_CHECKING:
    import torch

    from tsugiki.data.prompts import Tokens
    from tsugiki.model.loading import Base, BaseSource
    from tsugiki.model.numerics import Numerics
    from tsugiki.runs.reading import RunRecord
    from tsugiki.runs.store import Run
    from tsugiki.train.lane import Lane
    from tsugiki.train.ledger import Ledger, Load, Sizes


class _NotTrained:
    """What methods that train nothing share: one lane that is at its end, over frozen weights."""

    trains, together, moves_base, flops = False, False, False, 0
    answering: Answering = WRITES
    grid_keys = frozenset[str]()

    def num_trained(self, model: torch.nn.Module, config: RunConfig) -> int:
        return 0

    def alike(self, config: RunConfig) -> RunConfig:
        return config

    def side_by_side(self, config: RunConfig) -> str:
        return ""

    def check_room(self, source: BaseSource, config: RunConfig) -> None:
        """See LoRA."""

    def most_lanes(self, base: Base, configs: Sequence[RunConfig], rows: Sequence[Tokens]) -> int:
        return 1

    def ledger(
        self, sizes: Sizes, model: torch.nn.Module, config: RunConfig, numerics: Numerics
    ) -> Callable[[Load], Ledger]:
        from tsugiki.train.ledger import ledger_of_weights

        return lambda load: ledger_of_weights(sizes, numerics.base)

    def smaller_loads(self, load: Load) -> Iterator[Load]:
        yield load

    def instead(self, config: RunConfig) -> str:
        return less_than_the_base(config)


class FromElsewhere(_NotTrained):
    """An adapter that was trained elsewhere: a lane that is at its end."""

    name, order, tuned = "lora", 0, True
    step_kind = "none: trained elsewhere"

    def settings_of(
        self, train: Settings, settings: Settings, spec: MethodSpec
    ) -> dict[str, object]:
        """Of [train] what is read for scoring; the rest is of the other methods."""
        return {"train": _only(train, READ_UNTRAINED), "adapter": spec.adapter}

    def summary(self, config: RunConfig) -> str:
        return "LoRA: trained elsewhere"

    def looks_at(self, config: RunConfig) -> object:
        return config.adapter

    def look(self, model: torch.nn.Module, config: RunConfig) -> Iterator[str]:
        """Whether it can be put on the model."""
        from tsugiki.model.lora import detach
        from tsugiki.model.read_adapter import import_adapter
        from tsugiki.runs.imported import adapter_checksum, other_base

        adapter_checksum(config)
        if (said := other_base(config)) is not None:
            yield said
        import_adapter(model, _folder(config))
        detach(model)

    def lanes(self, base: Base, configs: Sequence[RunConfig], num_rows: int) -> list[Lane]:
        from tsugiki.model.read_adapter import import_adapter
        from tsugiki.train.lane import Lane, OneVector

        [config] = configs
        attached = import_adapter(base.model, _folder(config))
        name = f"adapter {_folder(config).name}"
        lane = Lane(name, attached.parameters, config.train, num_rows, moves=OneVector(attached))
        lane.steps = 0
        return [lane]

    def plan(self, base_size: int, lane: Lane, config: RunConfig, run: Run) -> Outcome:
        from tsugiki.model.read_adapter import adapter_folder
        from tsugiki.train.lane import OneVector

        assert isinstance(lane.moves, OneVector), "adapters are one vector"
        size, kind, name = lane.moves.num_real, lane.moves.config, _folder(config).name
        alpha = kind.scale * kind.rank
        imported = Imported(targets=kind.targets, rank=kind.rank, alpha=alpha, source=name)
        total, kept = base_size + size, run.copy_adapter(adapter_folder(_folder(config)))
        return Outcome(trainable=size, total=total, steps=0, adapter=imported, weights_bytes=kept)

    def put_back(self, base: Base, record: RunRecord, *, whole: bool = False) -> None:
        from tsugiki.model.read_adapter import import_adapter

        import_adapter(base.model, record.folder / "adapter")


class Untouched(_NotTrained):
    """The base as it is: a lane that moves nothing. With `shots` it sees worked examples before
    every prompt (`data/prompts`)."""

    name, order, tuned = "base", 3, False
    step_kind = "none: not trained"

    def settings_of(
        self, train: Settings, settings: Settings, spec: MethodSpec
    ) -> dict[str, object]:
        read = (*READ_UNTRAINED, *(["seed"] if spec.shots else []))  # which draws the shots
        return {"train": _only(train, read), "shots": spec.shots}

    def summary(self, config: RunConfig) -> str:
        return f"base: not trained, {config.shots} shots"

    def looks_at(self, config: RunConfig) -> object:
        return None

    def look(self, model: torch.nn.Module, config: RunConfig) -> Iterator[str]:
        yield from ()

    def lanes(self, base: Base, configs: Sequence[RunConfig], num_rows: int) -> list[Lane]:
        from tsugiki.train.lane import Lane

        [config] = configs
        lane = Lane(f"base, {config.shots} shots", {}, config.train, num_rows)
        lane.steps = 0
        return [lane]

    def plan(self, base_size: int, lane: Lane, config: RunConfig, run: Run) -> Outcome:
        return Outcome(trainable=0, total=base_size, steps=0)

    def put_back(self, base: Base, record: RunRecord, *, whole: bool = False) -> None:
        """Nothing to put."""


def less_than_the_base(config: RunConfig) -> str:
    """What takes less memory than a frozen base, in words."""
    fewer = [] if config.model.base else [Message("memory.nf4")]
    return joined("list.comma", [*fewer, Message("memory.smaller_model")])


def _only(train: Settings, read: Sequence[str]) -> dict[str, object]:
    """Of a study's [train] what is read."""
    return {key: train[key] for key in read if key in train}


def _folder(config: RunConfig) -> Path:
    assert config.adapter is not None, "an imported adapter has a folder"
    return Path(config.adapter)
