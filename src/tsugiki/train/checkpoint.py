"""Checkpoints: written whole or not at all, checked when read, one kept.

    FOLDER/step-00000120/   lane.safetensors   parameters, moments
                            state.json         counters, history, sha256 of the former

The folder is written under a hidden name and renamed; a killed process leaves the one before. What
is removed is renamed first; a folder without a state was on its way out or never got in, and is
passed over. Tensors are written and read as a stream (`train/tensor_file`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

from tsugiki.config.old_spellings import STATE_KEYS
from tsugiki.errors import RunError
from tsugiki.files import new_folder, remove_folder, sha256_of
from tsugiki.train.history import History
from tsugiki.train.tensor_file import TensorFile, write_tensors
from tsugiki.words import Message

Tensors = Mapping[str, torch.Tensor]
TENSORS, STATE = "lane.safetensors", "state.json"


@dataclass(frozen=True, kw_only=True)
class LaneState:
    """Where a lane is besides its tensors. `group` and `group_step` say which lanes it trained with
    and at which of their steps, so that lanes of one group resume from one of them."""

    step: int = 0
    steps_with_lr: int = 0
    failure: str | None = None
    pruned: bool = False
    group: str | None = None
    group_step: int = 0
    sha256: str = ""
    history: History = field(default_factory=History)


def save_checkpoint(
    folder: Path, step: int, tensors: Tensors, state: LaneState, *, keep: bool = False
) -> Path:
    """Writes `FOLDER/step-…` atomically and removes older ones, unless they are to be kept."""
    final = folder / f"step-{step:08d}"
    try:
        with new_folder(final) as draft:
            digest = write_tensors(draft / TENSORS, tensors)
            content = asdict(replace(state, step=step, sha256=digest))
            (draft / STATE).write_text(
                json.dumps(content | content.pop("history")), encoding="utf-8"
            )
    except OSError as broken:
        values = {"folder": folder, "step": step, "reason": broken}
        raise RunError(Message("error.no_checkpoint_room", **values)) from None
    if not keep:
        drop_older_checkpoints(folder)
    return final


def drop_older_checkpoints(folder: Path) -> None:
    """Leaves the latest checkpoint alone, and nothing of what killed processes wrote or removed."""
    latest = latest_checkpoint(folder)
    others = [path for path in folder.glob("step-*") if path != latest]
    for other in [*others, *folder.glob(".step-*")]:
        remove_folder(other)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, earliest first; those without a state are none."""
    return [path for path in sorted(folder.glob("step-*")) if (path / STATE).exists()]


def latest_checkpoint(folder: Path) -> Path | None:
    return next(reversed(checkpoints(folder)), None)


def step_of(path: Path) -> int:
    """The step that a checkpoint folder was written at."""
    return int(path.name.removeprefix("step-"))


def read_state(path: Path) -> LaneState:
    """The counters and history of a checkpoint. Raises `RunError` naming the damaged file."""
    try:
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
        content = {STATE_KEYS.get(key, key): value for key, value in content.items()}
        history = History(**{field.name: content.get(field.name, []) for field in fields(History)})
        names = {field.name for field in fields(LaneState)} & set(content)
        return LaneState(**{name: content[name] for name in names}, history=history)
    except (OSError, ValueError, TypeError, AttributeError) as broken:
        raise _damaged(path, broken) from None


def read_checkpoint(path: Path) -> tuple[TensorFile, LaneState]:
    """(tensors, state) of a checkpoint, whole by its checksum. Raises `RunError` naming the damaged
    file."""
    state = read_state(path)
    file = path / TENSORS
    try:
        if sha256_of(file) != state.sha256:
            raise RunError(Message("error.damaged_checkpoint", file=file, folder=path))
        return TensorFile(file), state
    except (OSError, ValueError, KeyError, TypeError) as broken:
        raise _damaged(path, broken) from None


def latest_tensors(folder: Path) -> TensorFile:
    """The tensors of the latest checkpoint of a folder that has one."""
    path = latest_checkpoint(folder)
    assert path is not None, "whoever loads a run refuses one whose weights were not kept"
    return read_checkpoint(path)[0]


def _damaged(path: Path, broken: Exception) -> RunError:
    return RunError(
        f"{path}: checkpoint cannot be read ({broken}). Delete that folder to train from the start"
    )
