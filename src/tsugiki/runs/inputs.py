"""What a run is made from: the inputs that name it, its rows as ids, and who listens to its
progress."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch

import tsugiki
from tsugiki.config.run import RunConfig
from tsugiki.data.prompts import TEMPLATE_DATE, Tokens
from tsugiki.data.tasks import CHAT, SPLITS, Task, task_digest
from tsugiki.model.loading import Base, BaseSource
from tsugiki.runs.preflight import rows_of
from tsugiki.train.engine import Progress
from tsugiki.train.meter import device_name

# What the same words in a configuration mean. Raised whenever ids, ends, drawn rows or scores of
# the same inputs change: a run of an earlier meaning is shown, and never taken as finished. 2
# (2026-11): ends and control tokens, rows drawn by a seed, files that name a run. 3 (2026-11):
# dingbats are taken out before ROUGE, as lm-evaluation-harness does.
SEMANTICS = 3


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who wants to hear of progress: runs that start (together), training steps, answers (part,
    done, all), and remarks worth keeping."""

    on_train: Callable[[Progress], None] | None = None
    on_score: Callable[[str, int, int], None] | None = None
    on_note: Callable[[str], None] | None = None
    on_start: Callable[[list[RunConfig]], None] | None = None

    def start(self, configs: list[RunConfig]) -> None:
        if self.on_start:
            self.on_start(configs)

    def note(self, text: str) -> None:
        if self.on_note:
            self.on_note(text)


def with_what(source: BaseSource, task: Task) -> dict[str, Any]:
    """Everything a result depends on besides the configuration."""
    return {
        "semantics": SEMANTICS,
        "model_sha256": source.checksum,
        "settings_sha256": source.settings_checksum,
        **with_data(task),
        "numerics": asdict(source.numerics),
        "device_type": source.device.type,
        "device": device_name(source.device),
        "threads": torch.get_num_threads(),
        "rows": {part: len(task.examples[part]) for part in SPLITS},
        "task": {
            "name": task.name,
            "version": task.version,
            "split": task.split,
            "format": task.format,
        },
        **({"template_date": TEMPLATE_DATE.date().isoformat()} if task.format == CHAT else {}),
        "versions": {
            "python": platform.python_version(),
            "tsugiki": tsugiki.__version__,
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
    }


def with_data(task: Task) -> dict[str, Any]:
    """What of the inputs comes from the task: the sense of its file, and the git blob id of every
    data file."""
    return {
        "task_sha256": task_digest(task),
        "data": {part: dict(task.files[part]) for part in SPLITS},
    }


def tokens_of(
    base: Base, task: Task, config: RunConfig, part: str, left_out: list[str] | None = None
) -> list[Tokens]:
    """The rows of one part as ids: see `preflight.rows_of`."""
    longest = longest_of(base, config)
    return rows_of(
        base.tokenizer,
        task,
        config,
        part,
        longest=longest,
        vocab_rows=base.vocab_rows,
        stops=base.stops,
        left_out=left_out,
    )


def longest_of(base: Base, config: RunConfig) -> int:
    """Tokens a row may have: what was asked, or what the model has positions for."""
    return min(config.train.max_length, base.max_positions)
