"""LoRA, full fine-tuning, an adapter that was trained elsewhere, and the untouched base: the only
place that tells them apart. A further method (an encoder with another objective) is a class here.
No torch until a method is used: what a study and a report ask (`order`, `trains`, …) needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.config.run import READ_BY_FULL, READ_UNTRAINED, LoraConfig, RunConfig
from tsugiki.config.study import MethodSpec
from tsugiki.runs.method import Method, Settings
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

# Of [train], what runs over one base must have in common to be lanes of one step.
SHARED = ("max_length", "long_rows", "precision", "step")


class _Trained:
    """What methods that train have in common."""

    trains, tuned, step_kind = True, True, ""

    def put_back(self: Method, base: Base, record: RunRecord, *, whole: bool = False) -> None:
        from tsugiki.train.checkpoint import latest_tensors

        [lane] = self.lanes(base, [record.config], num_rows=record.config.train.batch)
        lane.load_state(latest_tensors(record.folder / "weights"), step=0, steps_with_lr=0)


class Lora(_Trained):
    """Adapters over a frozen base; many train in one pass over it."""

    name, order, together, moves_base, flops = "lora", 0, True, False, 4
    grid_keys = frozenset(LoraConfig.model_fields)

    def settings_of(
        self, train: Settings, settings: Settings, spec: MethodSpec
    ) -> dict[str, object]:
        lora = {key: value for key, value in settings.items() if key in self.grid_keys}
        return {"train": {k: v for k, v in train.items() if k not in READ_BY_FULL}, "lora": lora}

    def summary(self, config: RunConfig) -> str:
        adapter = _adapter(config)
        scale = f"{'α/√r' if adapter.rslora else 'α/r'} = {adapter.scale:g}"
        plus = f", LoRA+ {adapter.loraplus:g}" if adapter.loraplus != 1 else ""
        return f"LoRA: {scale}, dropout {adapter.dropout:g}{plus}"

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

    def check_room(self, source: BaseSource, config: RunConfig) -> None:
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

    def ledger(
        self, sizes: Sizes, model: torch.nn.Module, config: RunConfig, numerics: Numerics
    ) -> Callable[[Load], Ledger]:
        from tsugiki.model.lora import adapted_slices
        from tsugiki.train.ledger import READ_BY, ledger_of_adapters

        size, parts = self.num_trained(model, config), adapted_slices(model, _adapter(config))
        reads = frozenset(READ_BY[part.target] for part in parts if part.target in READ_BY)
        return lambda load: ledger_of_adapters(sizes, numerics.base, size, reads, load)

    def most_lanes(self, base: Base, configs: Sequence[RunConfig], rows: Sequence[Tokens]) -> int:
        """As many as fit if all were the largest of them."""
        from tsugiki.train.ledger import load_of, sizes_of
        from tsugiki.train.memory import lanes_on_device

        sizes, model = sizes_of(base.model), base.model
        largest = max(configs, key=lambda config: self.num_trained(model, config))
        load = load_of(rows, [config.train for config in configs])
        of = self.ledger(sizes, model, largest, base.numerics)
        return lanes_on_device(base.device, of, load, len(configs))

    def instead(self, config: RunConfig) -> str:
        fewer = [] if config.model.base else [Message("memory.nf4")]
        return joined("list.comma", [*fewer, Message("memory.smaller_model")])

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
        """Names what differs from AdamW in fp32."""
        train = config.train
        named = {"moments": train.moments, "weights": train.weights}
        kinds = [f"{name} {kind}" for name, kind in named.items() if kind != "fp32"]
        clipped = ["clipped by the last step's norm"] if train.clip_from == "last_step" else []
        return ", ".join(["FT: dropout 0", *kinds, *clipped])

    def alike(self, config: RunConfig) -> RunConfig:
        """All but the epochs: the shorter go on from the longer."""
        train = config.train.model_copy(update={"epochs": 1.0})
        return config.model_copy(update={"train": train})

    def looks_at(self, config: RunConfig) -> object:
        train = config.train
        return (train.precision, train.micro_batch, *(getattr(train, key) for key in READ_BY_FULL))

    def look(self, model: torch.nn.Module, config: RunConfig) -> Iterator[str]:
        """Whether gradients and moments of all parameters fit."""
        from tsugiki.model.loading import num_parameters
        from tsugiki.model.numerics import pick_device, pick_numerics
        from tsugiki.train.full_weights import is_needed
        from tsugiki.train.memory import refuse_no_room

        device = pick_device()
        numerics = pick_numerics(config.method, config.train.precision, device)
        is_needed(config.train, halves=numerics.compute == "bf16")
        refuse_no_room(num_parameters(model), config.train, numerics, device)
        yield from ()

    def num_trained(self, model: torch.nn.Module, config: RunConfig) -> int:
        from tsugiki.model.loading import num_parameters

        return num_parameters(model)

    def side_by_side(self, config: RunConfig) -> str:
        return ""

    def check_room(self, source: BaseSource, config: RunConfig) -> None:
        from tsugiki.model.loading import count_parameters
        from tsugiki.train.memory import refuse_no_room

        size = count_parameters(source.folder)
        refuse_no_room(size, config.train, source.numerics, source.device)

    def lanes(self, base: Base, configs: Sequence[RunConfig], num_rows: int) -> list[Lane]:
        from tsugiki.train.full_weights import FullWeights, is_needed
        from tsugiki.train.lane import Lane

        [config] = configs
        name, parameters = f"FT {config.train.learning_rate:g}", dict(base.model.named_parameters())
        moves, halves = None, base.numerics.compute == "bf16"
        if is_needed(config.train, halves=halves):
            moves = FullWeights(base.model, config.train, halves=halves)
        return [Lane(name, parameters, config.train, num_rows, moves=moves)]

    def put_back(self, base: Base, record: RunRecord, *, whole: bool = False) -> None:
        from tsugiki.train.checkpoint import latest_tensors
        from tsugiki.train.full_weights import put_weights

        put_weights(base.model, latest_tensors(record.folder / "weights"), whole=whole)

    def most_lanes(self, base: Base, configs: Sequence[RunConfig], rows: Sequence[Tokens]) -> int:
        return 1

    def ledger(
        self, sizes: Sizes, model: torch.nn.Module, config: RunConfig, numerics: Numerics
    ) -> Callable[[Load], Ledger]:
        from tsugiki.train.ledger import ledger_in_full

        return lambda load: ledger_in_full(sizes, config.train, load)

    def instead(self, config: RunConfig) -> str:
        fewer = [] if config.train.moments == "8bit" else [Message("memory.moments_8bit")]
        return joined("list.comma", [*fewer, "LoRA", Message("memory.smaller_model")])

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

    def check_room(self, source: BaseSource, config: RunConfig) -> None:
        """See LoRA."""

    def most_lanes(self, base: Base, configs: Sequence[RunConfig], rows: Sequence[Tokens]) -> int:
        return 1

    def ledger(
        self, sizes: Sizes, model: torch.nn.Module, config: RunConfig, numerics: Numerics
    ) -> Callable[[Load], Ledger]:
        from tsugiki.train.ledger import ledger_of_weights

        return lambda load: ledger_of_weights(sizes, numerics.base)

    def instead(self, config: RunConfig) -> str:
        return LORA.instead(config)


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

    def put_back(self, base: Base, record: RunRecord, *, whole: bool = False) -> None:
        """Nothing to put."""


LORA, FULL, FROM_ELSEWHERE, UNTOUCHED = Lora(), Full(), FromElsewhere(), Untouched()
BY_KIND: dict[str, Method] = {"lora": LORA, "full": FULL, "base": UNTOUCHED}


def method_of(given: RunConfig | MethodSpec) -> Method:
    """What a run or a row of a study asks for."""
    if given.adapter is not None:
        return FROM_ELSEWHERE
    return BY_KIND[given.method if isinstance(given, RunConfig) else given.kind]


def short_name(config: RunConfig) -> str:
    """`LoRA`, `FT`, `base`."""
    return method_of(config).summary(config).partition(":")[0]


def _only(train: Settings, read: Sequence[str]) -> dict[str, object]:
    """Of a study's [train] what is read."""
    return {key: train[key] for key in read if key in train}


def _adapter(config: RunConfig) -> LoraConfig:
    assert config.lora is not None, "a LoRA run has an adapter"
    return config.lora


def _folder(config: RunConfig) -> Path:
    assert config.adapter is not None, "an imported adapter has a folder"
    return Path(config.adapter)
