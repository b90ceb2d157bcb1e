"""LoRA, full fine-tuning, an adapter that was trained elsewhere, and the untouched base: the only
place that tells them apart. A further method (an encoder with another objective) is a class here.
No torch until a method is used: what a study and a report ask (`order`, `trains`, …) needs none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tsugiki.config.run import READ_UNTRAINED, LoraConfig, RunConfig
from tsugiki.config.study import MethodSpec
from tsugiki.runs.record import Imported, Outcome

if TYPE_CHECKING:
    import torch

    from tsugiki.data.prompts import Tokens
    from tsugiki.model.loading import Base, BaseSource
    from tsugiki.runs.reading import RunRecord
    from tsugiki.runs.store import Run
    from tsugiki.train.lane import Lane

Settings = Mapping[str, object]
# Of [train], what runs over one base must have in common to be lanes of one step.
SHARED = ("max_length", "long_rows", "precision", "step")


class Method(Protocol):
    """What the rest of the house asks of a method.

    `order` puts LoRA before full fine-tuning, and both before the untouched base, in a comparison.
    `tuned`: somebody trained something; the base that nobody touched may lie anywhere. `together`:
    many train over one base. `moves_base`: its weights are trained, so that the next run loads it
    anew, and what is kept is as large as it. `step_kind`: what the record says of its steps ("": as
    made). `flops`: of a step, a parameter of the base and a token (2 forward, 2 a gradient).
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

    def check_room(self, source: BaseSource) -> None:
        """Raises `RunError` where it cannot fit, whatever the rows are."""

    def lanes(self, base: Base, configs: Sequence[RunConfig], num_rows: int) -> list[Lane]:
        """A lane for each configuration: parameters to move, and where their rows come from."""

    def most_lanes(self, base: Base, configs: Sequence[RunConfig], rows: Sequence[Tokens]) -> int:
        """How many of these a device holds together."""

    def what_helps(self, base: Base, config: RunConfig) -> str:
        """What to do where one run alone did not fit."""

    def plan(self, base_size: int, lane: Lane, config: RunConfig, run: Run) -> Outcome:
        """What is known of its size before the first step."""

    def put_back(self, base: Base, record: RunRecord) -> None:
        """Puts what a finished run trained on its base, from the run's folder."""


class _Trained:
    """What methods that train have in common."""

    trains, tuned, step_kind = True, True, ""

    def put_back(self: Method, base: Base, record: RunRecord) -> None:
        from tsugiki.train.checkpoint import latest_checkpoint, read_checkpoint

        path = latest_checkpoint(record.folder / "weights")
        assert path is not None, "whoever loads a run refuses one whose weights were not kept"
        [lane] = self.lanes(base, [record.config], num_rows=record.config.train.batch)
        lane.load_state(read_checkpoint(path)[0], step=0, steps_with_lr=0)


class Lora(_Trained):
    """Adapters over a frozen base; many train in one pass over it."""

    name, order, together, moves_base, flops = "lora", 0, True, False, 4
    grid_keys = frozenset(LoraConfig.model_fields)

    def settings_of(
        self, train: Settings, settings: Settings, spec: MethodSpec
    ) -> dict[str, object]:
        lora = {key: value for key, value in settings.items() if key in self.grid_keys}
        return {"train": train, "lora": lora}

    def summary(self, config: RunConfig) -> str:
        adapter = _adapter(config)
        return f"LoRA: α/r = {adapter.scale:g}, dropout {adapter.dropout:g}"

    def alike(self, config: RunConfig) -> RunConfig:
        """All but the adapter and its schedule."""
        kept = {name: getattr(config.train, name) for name in SHARED}
        train = type(config.train)(learning_rate=1.0, epochs=1.0, **kept)
        return config.model_copy(update={"lora": None, "train": train})

    def looks_at(self, config: RunConfig) -> object:
        return config.lora

    def look(self, model: torch.nn.Module, config: RunConfig) -> Iterator[str]:
        """Where the adapters go."""
        from tsugiki.model.lora import adapted_slices

        adapted_slices(model, _adapter(config))
        yield from ()

    def num_trained(self, model: torch.nn.Module, config: RunConfig) -> int:
        from tsugiki.model.lora import adapted_slices, in_features

        parts = adapted_slices(model, _adapter(config))
        sides = (in_features(model.get_submodule(part.path)) + part.width for part in parts)
        return _adapter(config).rank * sum(sides)

    def side_by_side(self, config: RunConfig) -> str:
        return _adapter(config).targets

    def check_room(self, source: BaseSource) -> None:
        """The frozen weights themselves show whether they fit, when they are loaded."""

    def lanes(self, base: Base, configs: Sequence[RunConfig], num_rows: int) -> list[Lane]:
        from tsugiki.model.lora import attach_lanes
        from tsugiki.train.lane import Lane, OneVector

        made = []
        adapters = [(_adapter(config), config.train.seed) for config in configs]
        for config, attached in zip(configs, attach_lanes(base.model, adapters), strict=True):
            kind = f"{attached.config.targets} r{attached.config.rank}"
            lane = Lane(
                f"LoRA {kind} {config.train.learning_rate:g}",
                attached.parameters,
                config.train,
                num_rows,
                moves=OneVector(attached),
                watched=tuple(name for name in attached.parameters if name.endswith(".B")),
            )
            made.append(lane)
        return made

    def most_lanes(self, base: Base, configs: Sequence[RunConfig], rows: Sequence[Tokens]) -> int:
        from tsugiki.train.memory import lanes_that_fit

        adapters = [_adapter(config) for config in configs]
        batch = max(config.train.micro_batch or config.train.batch for config in configs)
        return lanes_that_fit(base.model, base.device, adapters, batch, rows)

    def what_helps(self, base: Base, config: RunConfig) -> str:
        from tsugiki.train.memory import what_helps

        taken = base.num_parameters * next(base.model.parameters()).element_size()
        other = "a smaller model or more memory"
        return what_helps(taken, "frozen weights", other, config.train, base.device)

    def plan(self, base_size: int, lane: Lane, config: RunConfig, run: Run) -> Outcome:
        size = lane.num_trainable
        return Outcome(trainable=size, total=base_size + size, steps=lane.steps)


class Full(_Trained):
    """The base's own parameters, alone."""

    name, order, together, moves_base, flops = "full", 1, False, True, 6
    grid_keys = frozenset[str]()

    def settings_of(
        self, train: Settings, settings: Settings, spec: MethodSpec
    ) -> dict[str, object]:
        return {"train": train}

    def summary(self, config: RunConfig) -> str:
        return "FT: dropout 0"

    def alike(self, config: RunConfig) -> RunConfig:
        """All but the epochs: the shorter go on from the longer."""
        train = config.train.model_copy(update={"epochs": 1.0})
        return config.model_copy(update={"train": train})

    def looks_at(self, config: RunConfig) -> object:
        return config.train.precision

    def look(self, model: torch.nn.Module, config: RunConfig) -> Iterator[str]:
        """Whether gradients and moments of all parameters fit."""
        from tsugiki.model.loading import num_parameters, pick_device, pick_numerics
        from tsugiki.train.memory import refuse_no_room

        device = pick_device()
        numerics = pick_numerics(config.method, config.train.precision, device)
        refuse_no_room(num_parameters(model), numerics, device)
        yield from ()

    def num_trained(self, model: torch.nn.Module, config: RunConfig) -> int:
        from tsugiki.model.loading import num_parameters

        return num_parameters(model)

    def side_by_side(self, config: RunConfig) -> str:
        return ""

    def check_room(self, source: BaseSource) -> None:
        from tsugiki.model.loading import count_parameters
        from tsugiki.train.memory import refuse_no_room

        refuse_no_room(count_parameters(source.folder), source.numerics, source.device)

    def lanes(self, base: Base, configs: Sequence[RunConfig], num_rows: int) -> list[Lane]:
        from tsugiki.train.lane import Lane

        [config] = configs
        name, parameters = f"FT {config.train.learning_rate:g}", base.model.named_parameters()
        return [Lane(name, dict(parameters), config.train, num_rows)]

    def most_lanes(self, base: Base, configs: Sequence[RunConfig], rows: Sequence[Tokens]) -> int:
        return 1

    def what_helps(self, base: Base, config: RunConfig) -> str:
        from tsugiki.train.memory import FULL_BYTES, what_helps

        taken = base.num_parameters * FULL_BYTES[base.numerics.compute]
        kind, other = "weights, gradients and moments", "LoRA, a smaller model or more memory"
        return what_helps(taken, kind, other, config.train, base.device)

    def plan(self, base_size: int, lane: Lane, config: RunConfig, run: Run) -> Outcome:
        return Outcome(trainable=lane.num_trainable, total=base_size, steps=lane.steps)


class _NotTrained:
    """What methods that train nothing share: one lane that is at its end, over frozen weights."""

    trains, together, moves_base, flops = False, False, False, 0
    grid_keys = frozenset[str]()

    def num_trained(self, model: torch.nn.Module, config: RunConfig) -> int:
        return 0

    def alike(self, config: RunConfig) -> RunConfig:
        return config

    def side_by_side(self, config: RunConfig) -> str:
        return ""

    def check_room(self, source: BaseSource) -> None:
        """See LoRA."""

    def most_lanes(self, base: Base, configs: Sequence[RunConfig], rows: Sequence[Tokens]) -> int:
        return 1

    def what_helps(self, base: Base, config: RunConfig) -> str:
        return LORA.what_helps(base, config)


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
        from tsugiki.model.export import import_adapter
        from tsugiki.model.lora import detach
        from tsugiki.runs.imported import adapter_checksum, other_base

        adapter_checksum(config)
        if (said := other_base(config)) is not None:
            yield said
        import_adapter(model, _folder(config))
        detach(model)

    def lanes(self, base: Base, configs: Sequence[RunConfig], num_rows: int) -> list[Lane]:
        from tsugiki.model.export import import_adapter
        from tsugiki.train.lane import Lane, OneVector

        [config] = configs
        attached = import_adapter(base.model, _folder(config))
        name = f"adapter {_folder(config).name}"
        lane = Lane(name, attached.parameters, config.train, num_rows, moves=OneVector(attached))
        lane.steps = 0
        return [lane]

    def plan(self, base_size: int, lane: Lane, config: RunConfig, run: Run) -> Outcome:
        from tsugiki.train.lane import OneVector

        assert isinstance(lane.moves, OneVector), "adapters are one vector"
        size, kind, name = lane.num_trainable, lane.moves.config, _folder(config).name
        alpha = kind.scale * kind.rank
        imported = Imported(targets=kind.targets, rank=kind.rank, alpha=alpha, source=name)
        total, kept = base_size + size, run.copy_adapter(_folder(config))
        return Outcome(trainable=size, total=total, steps=0, adapter=imported, weights_bytes=kept)

    def put_back(self, base: Base, record: RunRecord) -> None:
        from tsugiki.model.export import import_adapter

        import_adapter(base.model, record.folder / "adapter")


class Untouched(_NotTrained):
    """The base as it is: a lane that moves nothing. With `shots` it sees worked examples before
    every prompt (`data/prompts`)."""

    name, order, tuned = "base", 2, False
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

    def put_back(self, base: Base, record: RunRecord) -> None:
        """Nothing to put."""


LORA, FULL, FROM_ELSEWHERE, UNTOUCHED = Lora(), Full(), FromElsewhere(), Untouched()
BY_KIND: dict[str, Method] = {"lora": LORA, "full": FULL, "base": UNTOUCHED}


def method_of(given: RunConfig | MethodSpec) -> Method:
    """What a run or a row of a study asks for."""
    if given.adapter is not None:
        return FROM_ELSEWHERE
    return BY_KIND[given.method if isinstance(given, RunConfig) else given.kind]


def _only(train: Settings, read: Sequence[str]) -> dict[str, object]:
    """Of a study's [train] what is read."""
    return {key: train[key] for key in read if key in train}


def _adapter(config: RunConfig) -> LoraConfig:
    assert config.lora is not None, "a LoRA run has an adapter"
    return config.lora


def _folder(config: RunConfig) -> Path:
    assert config.adapter is not None, "an imported adapter has a folder"
    return Path(config.adapter)
