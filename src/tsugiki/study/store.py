"""Run folders: what was asked, with what, what happened. Named by fingerprint, written atomically, found again.

ROOT/runs/jnli-mame-lora-1a2b3c4d5e6f/
    asked.json       the RunConfig                with_what.json   versions, checksums, device, precision
    happened.json    status, scores, cost         answers-PART.jsonl   every prompt's answer, with its class
    history.json     loss, norm, rate by step     checkpoint/ (while training)   weights/ (afterwards)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tsugiki.config import RunConfig, parse
from tsugiki.data.sources import write_atomically
from tsugiki.errors import RunError


class RunBusy(RunError):
    """Another live process works on this run."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as it stands on disk. `happened["status"]` is running, done or failed (with `reason`)."""

    folder: Path
    config: RunConfig
    with_what: Mapping[str, Any]
    happened: Mapping[str, Any]

    @property
    def status(self) -> str:
        return str(self.happened.get("status", "running"))

    def evaluation(self, part: str) -> Mapping[str, Any] | None:
        return self.happened.get("evaluations", {}).get(part)

    def main_score(self, part: str) -> float | None:
        """The score that chooses, None when this part was not scored."""
        evaluation = self.evaluation(part)
        return None if evaluation is None else float(evaluation["main"]["value"])

    def answers(self, part: str) -> list[dict[str, Any]]:
        path = self.folder / f"answers-{part}.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Run:
    """One run folder, open for writing; nothing is written before `begin`."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def status(self) -> str:
        """new, running, done or failed."""
        return self.record().status if (self.folder / "asked.json").exists() else "new"

    def begin(self, config: RunConfig, with_what: Mapping[str, Any]) -> None:
        """Writes what is asked and with what, unless it stands there from an earlier try."""
        if self.status == "new":
            self.write("with_what.json", dict(with_what))
            self.write("asked.json", config.model_dump(mode="json", exclude_none=True))

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    def write(self, name: str, content: Any) -> None:
        write_atomically(self.folder / name, json.dumps(content, indent=1, ensure_ascii=False).encode())

    def write_answers(self, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self.folder / f"answers-{part}.jsonl", text.encode())

    def update(self, **changes: Any) -> None:
        """Changes `happened.json`."""
        path = self.folder / "happened.json"
        now = _read(path) if path.exists() else {}
        self.write("happened.json", {**now, **changes})

    def record(self) -> RunRecord:
        return read_record(self.folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for this process. Raises `RunBusy` when another live process holds it."""
        path = self.folder / "lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as broken:
            raise RunError(f"{self.folder}: cannot be made: {broken.strerror}. Choose another folder with --out") from None
        if (holder := held_by(self.folder)) is not None:
            raise RunBusy(f"{self.folder}: process {holder} is working on this run")
        path.unlink(missing_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            raise RunBusy(f"{self.folder}: another process has just taken this run") from None
        try:
            os.write(handle, f"{os.getpid()} {psutil.Process().create_time()}".encode())
            os.close(handle)
            yield
        finally:
            path.unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()  # it failed before it began: nothing is left behind


def held_by(folder: Path) -> int | None:
    """The live process that holds the lock of a run folder; a dead one's lock does not count."""
    try:
        number, born = (folder / "lock").read_text(encoding="utf-8").split()
        process = psutil.Process(int(number))
        return int(number) if abs(process.create_time() - float(born)) < 1 else None
    except (FileNotFoundError, ValueError, psutil.Error):
        return None


class Store:
    """All runs under one root folder."""

    def __init__(self, root: Path):
        self.root = root

    def open(self, config: RunConfig, with_what: Mapping[str, Any]) -> Run:
        """The run folder of this configuration with these inputs; it need not exist yet."""
        print_of_it = config.fingerprint({key: with_what[key] for key in ("model_sha256", "data", "numerics", "device_type")})
        name = f"{Path(config.task.name).stem}-{config.model.label}-{config.method}-{print_of_it}"
        return Run(self.root / "runs" / name.replace("/", "_"))

    def records(self) -> list[RunRecord]:
        return [read_record(path.parent) for path in sorted((self.root / "runs").glob("*/asked.json"))]


def read_record(folder: Path) -> RunRecord:
    """Reads a run folder. Raises `RunError` naming the file that is missing or damaged."""
    if not (folder / "asked.json").exists():
        raise RunError(f"{folder}: no asked.json there: not a run folder")
    happened = _read(folder / "happened.json") if (folder / "happened.json").exists() else {"status": "running"}
    config = parse(RunConfig, _read(folder / "asked.json"), str(folder / "asked.json"))
    return RunRecord(folder=folder, config=config, with_what=_read(folder / "with_what.json"), happened=happened)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as broken:
        raise RunError(f"{path}: damaged or cut short ({broken}). Restore it, or delete the folder {path.parent} to run again") from None
