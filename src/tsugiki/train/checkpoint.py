"""Checkpoints: written whole or not at all, checked when read, one kept.

    FOLDER/step-00000120/   lane.safetensors   parameters, moments
                            state.json         counters, history, sha256 of the former

The folder is written under a hidden name and renamed; a killed process leaves the one before. What
is removed is renamed first, so that a kill while files go leaves no folder that looks like a
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from tsugiki.errors import RunError


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, torch.Tensor],
    state: dict[str, Any],
    *,
    keep: bool = False,
) -> Path:
    """Writes `FOLDER/step-…` atomically and removes older ones, unless they are to be kept."""
    final = folder / f"step-{step:08d}"
    draft = folder / f".step-{step:08d}.{os.getpid()}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
            draft / "lane.safetensors",
        )
        digest = hashlib.sha256((draft / "lane.safetensors").read_bytes()).hexdigest()
        (draft / "state.json").write_text(
            json.dumps({**state, "step": step, "sha256": digest}), encoding="utf-8"
        )
        for name in ("lane.safetensors", "state.json"):
            with (draft / name).open("r+b") as file:
                os.fsync(file.fileno())
        if final.exists():
            _remove(final)
        os.replace(draft, final)
    except (OSError, SafetensorError) as broken:
        shutil.rmtree(draft, ignore_errors=True)
        raise RunError(
            f"{folder}: the checkpoint of step {step} cannot be written: {broken}. Free some space "
            "and run again: it resumes"
        ) from None
    if not keep:
        drop_older_checkpoints(folder)
    return final


def drop_older_checkpoints(folder: Path) -> None:
    """Leaves the latest checkpoint alone, and nothing of what killed processes wrote or removed."""
    latest = latest_checkpoint(folder)
    for other in [
        *(path for path in folder.glob("step-*") if path != latest),
        *folder.glob(".step-*"),
    ]:
        _remove(other)


def _remove(path: Path) -> None:
    """Takes a checkpoint out of sight in one move, then deletes its files."""
    hidden = (
        path if path.name.startswith(".") else path.with_name(f".{path.name}.gone.{os.getpid()}")
    )
    if hidden != path:
        os.replace(path, hidden)
    shutil.rmtree(hidden)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, earliest first; those without a state (a kill while files were
    removed) only where no whole one is there."""
    found = sorted(folder.glob("step-*"))
    return [path for path in found if (path / "state.json").exists()] or found


def latest_checkpoint(folder: Path) -> Path | None:
    return next(reversed(checkpoints(folder)), None)


def step_of(path: Path) -> int:
    """The step that a checkpoint folder was written at."""
    return int(path.name.removeprefix("step-"))


def read_state(path: Path) -> dict[str, Any]:
    """The counters and history of a checkpoint. Raises `RunError` naming the damaged file."""
    try:
        return dict(json.loads((path / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as broken:
        raise RunError(
            f"{path}: checkpoint cannot be read ({broken}). Delete that folder to train from the "
            "start"
        ) from None


def read_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, state) of a checkpoint. Raises `RunError` naming the damaged file."""
    try:
        state = read_state(path)
        content = (path / "lane.safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != state["sha256"]:
            raise RunError(
                f"{path / 'lane.safetensors'}: damaged or cut short (checksum differs). Delete "
                f"{path} to train from the start"
            )
        return load(content), state
    except (OSError, ValueError, KeyError, SafetensorError) as broken:
        raise RunError(
            f"{path}: checkpoint cannot be read ({broken}). Delete that folder to train from the "
            "start"
        ) from None
