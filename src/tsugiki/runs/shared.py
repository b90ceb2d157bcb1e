"""What runs over one base and one task share, loaded once: model, rows, who listens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

from tsugiki.config.run import RunConfig
from tsugiki.data.batch import num_steps
from tsugiki.data.prompts import Tokens
from tsugiki.data.tasks import Task, drawn
from tsugiki.model.loading import Base, BaseSource
from tsugiki.model.lora import detach
from tsugiki.model.numerics import why_fp32
from tsugiki.runs.branching import Branches
from tsugiki.runs.events import Events
from tsugiki.runs.inputs import tokens_of
from tsugiki.runs.methods import Method
from tsugiki.runs.preflight import longest_of
from tsugiki.runs.record import Outcome
from tsugiki.train.cuda_graph_step import CudaGraphStep
from tsugiki.train.lane import Lane
from tsugiki.train.ledger import load_of, sizes_of
from tsugiki.train.memory import what_helps
from tsugiki.train.meter import free_memory
from tsugiki.train.step import EagerStep
from tsugiki.words import Message

Step = EagerStep | CudaGraphStep


@dataclass(kw_only=True)
class Shared:
    """`first` is any of the runs: they agree in what is read of it here. `exclusive` is False where
    other processes use the device."""

    first: RunConfig
    method: Method
    task: Task
    source: BaseSource
    events: Events
    exclusive: bool = True
    study: str | None = None
    prune: bool = False
    branches: Branches = field(default_factory=Branches)
    moved: bool = False
    _base: Base | None = None

    def load(self) -> Base:
        """Model and tokenizer; anew when a run trained the model's own weights."""
        if self._base is None or self.moved:
            self._base = None  # freed before the next is loaded, which may fail
            free_memory(self.source.device)
            self._base = self.method.answering.load(self.source)
        self.moved = self.method.moves_base
        return self._base

    def prepare(self) -> None:
        """The first load: refuses what must not be trained on, notes what a look found (`plan`)."""
        said = why_fp32(self.first.train.precision, self.source.numerics, self.source.device)
        if said is not None:
            self.events.note(said)
        self.method.check_room(self.source, self.first)
        self.load()
        self.moved = False
        for note in self.notes:
            self.events.note(note)

    @property
    def base(self) -> Base:
        assert self._base is not None, "prepared first"
        return self._base

    def detach(self) -> None:
        """Takes every adapter off the model, if one is loaded."""
        if self._base is not None:
            detach(self._base.model)

    def what_helps(self, config: RunConfig) -> str | None:
        """What to do where one run alone did not fit; None where not even the model did."""
        if self._base is None:
            return None
        model, numerics = self._base.model, self._base.numerics
        of = self.method.ledger(sizes_of(model), model, config, numerics)
        load = load_of(self.rows, [config.train])
        held, other = of(load), self.method.instead(config)
        # In 16 bits the gradients of a model that moves in full would have to be summed.
        smaller = any(way.tokens < load.tokens for way in self.method.smaller_loads(load))
        cut = smaller or numerics.compute == "fp32"
        return what_helps(held, other, config.train, self._base.device, cut=cut)

    @cached_property
    def left_out(self) -> list[str]:
        """Ids of training rows that do not fit and may be left out."""
        return []

    @cached_property
    def rows(self) -> list[Tokens]:
        return tokens_of(self.base, self.task, self.first, "train", self.left_out)

    @cached_property
    def validation(self) -> list[Tokens]:
        return tokens_of(self.base, self.task, self.first, "validation")

    @cached_property
    def watched(self) -> list[Tokens]:
        """Of validation, those that are answered during training."""
        few = min(self.first.score.validation_rows, len(self.validation))
        return list(drawn(self.validation, few))

    @cached_property
    def notes(self) -> list[str]:
        """What the look before the first step found."""
        base, first = self.base, self.first
        rows = {"train": self.rows, "validation": self.validation}
        folder, room = base.source.folder, base.vocab_rows
        answering = self.method.answering
        notes = answering.look_at_rows(
            folder, base.tokenizer, self.task, rows, first, vocab_rows=room
        )
        longest = longest_of(first, base.max_positions)
        if self.left_out:
            counts = {"count": len(self.left_out), "longest": longest}
            notes.append(Message("note.left_out_rows", row=self.left_out[0], **counts))
        return [*notes, *answering.notes(base, first.train.step)]

    @cached_property
    def plan(self) -> Outcome:
        """What is known before the first step: for the record of every run."""
        base, first = self.base, self.first
        size_of = self.method.answering.objective().size
        ends = base.tokenizer.convert_ids_to_tokens(sorted(self.rows[0].ending.stops))
        targets = sum(map(size_of, self.rows)) / len(self.rows)
        return Outcome(
            study=self.study,
            notes=tuple(self.notes),
            left_out=len(self.left_out),
            ends=tuple(map(str, ends)),
            target_tokens=targets,
            max_length=longest_of(first, base.max_positions),
        )

    def steps_of(self, config: RunConfig) -> int:
        return num_steps(len(self.rows), config.train.batch, config.train.epochs)

    def open_step(self, lanes: Sequence[Lane], ended: bool) -> AbstractContextManager[Step]:
        """The step; the eager one, which costs nothing to make, when every lane is at its end."""
        return self.method.answering.open_step(self.base, lanes, self.rows, ended=ended)
