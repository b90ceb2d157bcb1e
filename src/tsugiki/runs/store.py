"""Run folders: what was asked, with what, what happened. Named by fingerprint, written atomically,
found again.

ROOT/runs/jnli-mame-lora-1a2b3c4d5e6f/
    asked.json       the RunConfig
    with_what.json   versions, checksums, device, precision
    happened.json    status, scores, cost
    answers-PART.jsonl   every prompt's answer, with its class
    history.json     loss, norm, rate by step
    checkpoint/ (while training)   weights/ (afterwards)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tsugiki.config.run import RunConfig
from tsugiki.errors import RunError, TsugikiError
from tsugiki.files import write_atomically
from tsugiki.toml import parse

# What names a run besides its configuration.
NAMING = (
    "semantics",
    "model_sha256",
    "settings_sha256",
    "task_sha256",
    "data",
    "numerics",
    "device_type",
    "adapter_sha256",
)


class RunBusy(RunError):
    """Another live process works on this run."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as it stands on disk. `happened["status"]` is running, done or failed (with
    `reason`)."""

    folder: Path
    config: RunConfig
    with_what: Mapping[str, Any]
    happened: Mapping[str, Any]

    @property
    def status(self) -> str:
        return str(self.happened.get("status", "running"))

    @property
    def semantics(self) -> int:
        """By which rules it was made: see `inputs.SEMANTICS`."""
        return int(self.with_what.get("semantics", 1))

    def evaluation(self, part: str) -> Mapping[str, Any] | None:
        return self.happened.get("evaluations", {}).get(part)

    def main_score(self, part: str) -> float | None:
        """The score that chooses, None when this part was not scored."""
        evaluation = self.evaluation(part)
        return None if evaluation is None else float(evaluation["main"]["value"])

    @property
    def during(self) -> list[dict[str, Any]]:
        """Scores of a sample of validation during training, step by step."""
        path = self.folder / "during.json"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []

    @property
    def losses(self) -> list[float]:
        """Mean loss a target token, step by step."""
        path = self.folder / "history.json"
        return list(json.loads(path.read_text(encoding="utf-8"))["loss"]) if path.exists() else []

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

    @property
    def busy(self) -> bool:
        """Whether a live process works on it."""
        try:
            with self.lock():
                return False
        except RunBusy:
            return True

    def begin(self, config: RunConfig, with_what: Mapping[str, Any]) -> None:
        """Writes what is asked and with what, unless it stands there from an earlier try that got
        anywhere."""
        new = self.status == "new"
        if new or "steps" not in self.record().happened:
            self.write("with_what.json", dict(with_what))
        if new:
            self.write("asked.json", config.model_dump(mode="json", exclude_none=True))

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    def write(self, name: str, content: Any) -> None:
        write_atomically(
            self.folder / name, json.dumps(content, indent=1, ensure_ascii=False).encode()
        )

    def read(self, name: str) -> Any:
        """What `write` kept under this name, None if nothing was. Raises `RunError` for a damaged
        file."""
        path = self.folder / name
        return _read(path) if path.exists() else None

    def during(self) -> list[dict[str, Any]]:
        """What was scored during training, step by step."""
        return self.record().during

    def write_answers(self, part: str, rows: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(self.folder / f"answers-{part}.jsonl", text.encode())

    def start_over(self) -> dict[str, bytes]:
        """Forgets what happened; what was asked stays. Returns what was there, for `put_back`."""
        patterns = (
            "happened.json",
            "history.json",
            "during.json",
            "answers-*.jsonl",
            "ways-*.json",
        )
        paths = [path for pattern in patterns for path in self.folder.glob(pattern)]
        before = {path.name: path.read_bytes() for path in paths}
        self.write("happened.json", {"status": "running"})
        for path in paths:
            if path.name != "happened.json":
                path.unlink()
        return before

    def put_back(self, before: Mapping[str, bytes]) -> None:
        """Undoes `start_over`: how the run ended last comes last."""
        for name in sorted(before, key=lambda name: name == "happened.json"):
            write_atomically(self.folder / name, before[name])

    def update(self, **changes: Any) -> None:
        """Changes `happened.json`."""
        path = self.folder / "happened.json"
        now = _read(path) if path.exists() else {}
        self.write("happened.json", {**now, **changes})

    def record(self) -> RunRecord:
        return read_record(self.folder)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; the system lets go of it when the process ends, however
        it ends.

        Raises:
            RunBusy: another process holds it.
            RunError: the folder of locks cannot be written.
        """
        path = self.folder.parent.parent / "locks" / f"{self.folder.name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("a+")
        except OSError as broken:
            raise RunError(
                f"{path}: cannot be made: {broken.strerror}. Choose another folder with --out"
            ) from None
        with handle:
            try:
                _hold(handle)
            except OSError:
                raise RunBusy(f"{self.folder}: another process is working on this run") from None
            yield


def _hold(handle: IO[str]) -> None:
    """An exclusive lock of the system on an open file; raises `OSError` at once when it is
    taken."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Store:
    """All runs under one root folder."""

    def __init__(self, root: Path):
        self.root = root

    def open(self, config: RunConfig, with_what: Mapping[str, Any]) -> Run:
        """The run folder of this configuration with these inputs; it need not exist yet."""
        print_of_it = config.fingerprint(
            {key: with_what[key] for key in NAMING if key in with_what}
        )
        name = f"{Path(config.task.name).stem}-{config.model.label}-{config.method}-{print_of_it}"
        return Run(self.root / "runs" / name.replace("/", "_"))

    def records(self) -> list[RunRecord]:
        """Every run that can be read; `damaged` has the others."""
        return [one for one in self._read_all() if isinstance(one, RunRecord)]

    def damaged(self) -> list[str]:
        """Runs with a damaged file: what is to be said of each."""
        return [one for one in self._read_all() if isinstance(one, str)]

    def _read_all(self) -> Iterator[RunRecord | str]:
        for path in sorted((self.root / "runs").glob("*/asked.json")):
            try:
                yield read_record(path.parent)
            except TsugikiError as broken:
                yield str(broken)


def read_record(folder: Path) -> RunRecord:
    """Reads a run folder. Raises `RunError` naming the file that is missing or damaged."""
    if not (folder / "asked.json").exists():
        what = "not a run folder" if folder.exists() else "no such folder"
        raise RunError(
            f"{folder}: {what}. tsugiki ls lists the runs; name their folder with --out there"
        )
    happened = (
        _read(folder / "happened.json")
        if (folder / "happened.json").exists()
        else {"status": "running"}
    )
    config = parse(RunConfig, _read(folder / "asked.json"), str(folder / "asked.json"))
    return RunRecord(
        folder=folder, config=config, with_what=_read(folder / "with_what.json"), happened=happened
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"holds no object but {type(content).__name__}")
        return content
    except (OSError, ValueError) as broken:
        raise RunError(
            f"{path}: damaged or cut short ({broken}). Restore it, or delete the folder "
            f"{path.parent} to run again"
        ) from None
