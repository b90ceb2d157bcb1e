"""What a run is made from: its provenance, and its rows as ids."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version

import torch

import tsugiki
from tsugiki.config.run import RunConfig
from tsugiki.data.chat import TEMPLATE_DATE
from tsugiki.data.prompts import Tokens
from tsugiki.data.tasks import CHAT, SPLITS, Task, task_digest, task_without_data
from tsugiki.model.loading import Base, BaseSource
from tsugiki.model.width import known_width
from tsugiki.runs.identity import SEMANTICS, recipe_of
from tsugiki.runs.preflight import longest_of, rows_of
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import Provenance, StoredNumerics, TaskNamed
from tsugiki.train.meter import device_name


def provenance_of(
    config: RunConfig, source: BaseSource, task: Task, adapter_sha256: str = ""
) -> Provenance:
    """Everything a result depends on besides the configuration."""
    return Provenance(
        semantics=SEMANTICS,
        recipe_sha256=recipe_of(config, task),
        model_sha256=source.checksum,
        settings_sha256=source.settings_checksum,
        width=known_width(config.model),
        adapter_sha256=adapter_sha256,
        task_sha256=task_digest(task),
        data={part: dict(task.files[part]) for part in SPLITS},
        numerics=StoredNumerics(**asdict(source.numerics)),
        device_type=source.device.type,
        device=device_name(source.device),
        threads=torch.get_num_threads(),
        rows={part: len(task.examples[part]) for part in SPLITS},
        task=TaskNamed(name=task.name, version=task.version, split=task.split, format=task.format),
        template_date=TEMPLATE_DATE.date().isoformat() if task.format == CHAT else "",
        versions={
            "python": platform.python_version(),
            "tsugiki": tsugiki.__version__,
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
    )


def tokens_of(
    base: Base, task: Task, config: RunConfig, part: str, left_out: list[str] | None = None
) -> list[Tokens]:
    """The rows of one part as ids: see `preflight.rows_of`."""
    return rows_of(
        base.tokenizer,
        task,
        config,
        part,
        longest=longest_of(config, base.max_positions),
        vocab_rows=base.vocab_rows,
        stops=base.stops,
        left_out=left_out,
    )


def task_of(record: RunRecord) -> Task:
    """A run's task without its data, in the version, split and format that it was made with."""
    choice, named = record.config.task, record.provenance.task
    if named is not None:
        then = named.model_dump(include={"version", "split", "format"})
        choice = choice.model_copy(update=then)
    return task_without_data(choice)
