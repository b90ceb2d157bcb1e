"""What names a run: content by checksum, and what moves weights. No torch here.

    recipe     what of a configuration moves weights, with the training rows as they are read
    identity   recipe + weights and settings of the model + precision + kind of device

Labels, paths, folders of data, how answers are scored and what is watched meanwhile describe a run
and do not name it: the same work under another label is the same run. Its scores have a key of
their own (`key_of`): part, rows, decoding, length limit, format.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

from tsugiki.config.fields import Record
from tsugiki.config.old_spellings import in_old_spelling
from tsugiki.config.run import READ_BY_FULL, RunConfig
from tsugiki.data.tasks import CHAT, Task, task_digest
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import Provenance, ScoreKey

# What the same words in a configuration mean. Raised whenever ids, ends, drawn rows or scores of
# the same inputs change: a run of an earlier meaning is shown, and never taken as finished.
# 2 (2026-11): ends and control tokens, rows drawn by a seed, files that name a run.
# 3 (2026-11): dingbats are taken out before ROUGE, as lm-evaluation-harness does.
SEMANTICS = 3
# Of [train]: what it resolves to stands in the numerics, or is given by the rows themselves.
_DESCRIBED = {"precision"}


def recipe_of(config: RunConfig, task: Task) -> str:
    """sha256 of what of the configuration moves weights, and of the training rows."""
    spec = task.spec
    shortened = spec.cut is not None or config.train.long_rows == "leave_out"
    recipe = {
        "method": config.method,
        # Without defaults: a field that is added later must not rename what does not use it.
        "lora": _dumped(config.lora),
        "train": in_old_spelling("train", _dumped(config.train, exclude=_DESCRIBED)),
        "prompt": [task.template, task.format == CHAT, spec.cut],
        # The room that is kept for an answer decides where a long text is cut.
        "room": (config.score.max_new_tokens or spec.max_new_tokens) if shortened else None,
        "rows": rows_sha256(task, "train"),
        **({"shots": config.shots} if config.shots else {}),
    }
    return _sha256(recipe)


def rows_sha256(task: Task, part: str) -> str:
    """sha256 of the rows of a part, by content and in their order."""
    return _rows(_Held(task), part)


class _Held:
    """A task as a key of a cache: by itself, not by what it holds."""

    def __init__(self, task: Task):
        self.task = task

    def __hash__(self) -> int:
        return id(self.task)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.task is self.task


@lru_cache(maxsize=256)
def _rows(held: _Held, part: str) -> str:
    """Training reads texts and answers; scores are paired by id and group, too."""
    scored = part != "train"
    return _sha256(
        [
            (
                sorted(row.fields.items()),
                row.target,
                row.turns,
                (row.id, row.group, row.candidates) if scored else None,
            )
            for row in held.task.examples[part]
        ]
    )


def identity_of(provenance: Provenance) -> str:
    """12 hexadecimal digits that name the run that is made with this."""
    naming = {
        "semantics": provenance.semantics,
        "recipe": provenance.recipe_sha256,
        "model": provenance.model_sha256,
        "settings": provenance.settings_sha256,
        "adapter": provenance.adapter_sha256,
        "numerics": provenance.numerics.model_dump(),
        "device_type": provenance.device_type,
        "template_date": provenance.template_date,
    }
    return _sha256(naming)[:12]


def key_of(config: RunConfig, task: Task, part: str) -> ScoreKey:
    """What the scores of a part depend on when this configuration asks for them."""
    return ScoreKey(
        part=part,
        rows_sha256=rows_sha256(task, part),
        format=task.format,
        decode=config.score.decode,
        max_new_tokens=config.score.max_new_tokens or task.spec.max_new_tokens,
    )


def keys_of(config: RunConfig, task: Task) -> dict[str, ScoreKey]:
    """`key_of` for every part."""
    return {part: key_of(config, task, part) for part in task.examples}


def is_of(record: RunRecord, config: RunConfig, task: Task) -> bool:
    """Whether a record is of this configuration over these training rows (its model aside).

    A record from before recipes is, when it was asked in the same words over the same files.
    """
    if record.provenance.recipe_sha256:
        return record.provenance.recipe_sha256 == recipe_of(config, task)
    return record.config == config and made_from(record, task)


def made_from(record: RunRecord, task: Task) -> bool:
    """Whether a record from before recipes is of today's task file and data."""
    there = record.provenance
    same_files = there.data == {part: dict(files) for part, files in task.files.items()}
    return there.task_sha256 == task_digest(task) and same_files


def old_identity(config: RunConfig, provenance: Provenance) -> str:
    """The digits that versions before recipes named the same run by: their finished runs are
    kept."""
    # Runs kept the names that they had before adapters could be imported, and bases be scored.
    given = {
        name: in_old_spelling(name, value) if name in ("train", "score") else value
        for name, value in config.model_dump(mode="json").items()
    }
    later = (("adapter", None), ("shots", 0))
    written = {name: value for name, value in given.items() if (name, value) not in later}
    written["model"] = {
        name: value for name, value in given["model"].items() if (name, value) != ("base", None)
    }
    later_of_lora = (("rslora", False), ("loraplus", 1.0))
    written["lora"] = written["lora"] and {
        name: value for name, value in written["lora"].items() if (name, value) not in later_of_lora
    }
    written["train"] = {
        name: value for name, value in given["train"].items() if name not in READ_BY_FULL
    }
    what: dict[str, object] = {
        "semantics": provenance.semantics,
        "model_sha256": provenance.model_sha256,
        "settings_sha256": provenance.settings_sha256,
        "task_sha256": provenance.task_sha256,
        "data": provenance.data,
        "numerics": provenance.numerics.model_dump(),
        "device_type": provenance.device_type,
    }
    if provenance.adapter_sha256:
        what["adapter_sha256"] = provenance.adapter_sha256
    return _sha256({"asked": written, "with": what})[:12]


def _dumped(schema: Record | None, exclude: set[str] | None = None) -> dict[str, object]:
    return (
        {}
        if schema is None
        else schema.model_dump(mode="json", exclude_defaults=True, exclude=exclude)
    )


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
