"""Run folders, and the only writer of them. Named by identity, written atomically, found again.

ROOT/runs/jnli-mame-lora-1a2b3c4d5e6f/
    config.json  provenance.json  outcome.json      see `runs/record`
    validations.json  history.json                  what was seen during training
    answers-PART.jsonl                              every prompt's answer, with its class
    elsewhere-*.jsonl                               the same of tasks and texts it was not tuned on
    checkpoint/ (while training)   weights/ (afterwards)
ROOT/locks/1a2b3c4d5e6f.lock

A run begins with `start`, each of its ends is written by `keep`; checkpoints, scores during
training and the hand-over of a checkpoint to another run go through the same handle.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tsugiki.config.fields import Record
from tsugiki.config.run import RunConfig
from tsugiki.errors import RunError, TsugikiError, system_reason
from tsugiki.files import file_name, new_folder, write_atomically
from tsugiki.runs.identity import identity_of, old_identity
from tsugiki.runs.reading import (
    RunRecord,
    file_of,
    is_run,
    read_outcome,
    read_record,
    run_folders,
)
from tsugiki.runs.record import Branch, Elsewhere, Outcome, Provenance, Scores, Validation
from tsugiki.train.history import History
from tsugiki.words import Message

if TYPE_CHECKING:
    from tsugiki.score.predict import Prediction
    from tsugiki.train.checkpoint import Tensors

COPIED = ("adapter_config.json", "adapter_model.safetensors")  # of an adapter that is imported


class RunBusy(RunError):
    """Another live process works on this run."""


def now() -> str:
    """The time of the clock, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Run:
    """One run folder, open for writing; nothing is written before `start`."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def status(self) -> str:
        """new, running, done, failed or pruned."""
        return self.record().status if is_run(self.folder) else "new"

    @property
    def unfinished(self) -> bool:
        return self.status in ("new", "running")

    @property
    def busy(self) -> bool:
        """Whether a live process works on it."""
        try:
            with self.lock():
                return False
        except RunBusy:
            return True

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def weights(self) -> Path:
        return self.folder / "weights"

    @property
    def outcome(self) -> Outcome:
        return read_outcome(self.folder)

    def record(self) -> RunRecord:
        return read_record(self.folder)

    def start(self, config: RunConfig, provenance: Provenance, plan: Outcome) -> None:
        """Writes what is asked and with what, and what is known before the first step.

        How earlier steps were made (by a try that was stopped, or by the run that handed over its
        checkpoint) stays: the times that are measured are of all of them.
        """
        new = not is_run(self.folder)
        before = Outcome() if new else self.outcome
        if before.steps is None:
            self._write("provenance.json", provenance)
        if new:
            self._write("config.json", config)
        names: tuple[str, ...] = ("step", "lanes", "exclusive", "branch")
        if before.branch is not None and not any(self.checkpoints.glob("step-*/state.json")):
            names = ()  # the other run was killed before its checkpoint was there
        made = {name: getattr(before, name) for name in names}
        score = {"search_score": before.search_score}
        self._write("outcome.json", plan.model_copy(update={**made, **score, "started": now()}))

    def began(self, *, step: str, lanes: int, exclusive: bool) -> None:
        """The steps to come are of this kind, shared by so many lanes. The times of a run are those
        of a device of its own only if all its steps were made so."""
        before = self.outcome
        exclusively = before.exclusive and exclusive and lanes == 1 and before.branch is None
        changes = {
            "step": before.step or step,
            "lanes": before.lanes or lanes,
            "exclusive": exclusively,
        }
        self.change(**changes)

    def keep(
        self,
        outcome: Outcome,
        *,
        history: History | None = None,
        weights: Tensors | None = None,
        answers: Sequence[Prediction] = (),
    ) -> None:
        """Writes what came of the run: what belongs to it first, the outcome itself last.

        `answers` are those of its latest scores; `weights` what was trained, by name.
        """
        if history is not None:
            self._write_text("history.json", json.dumps(asdict(history)))
        changes: dict[str, object] = {"ended": now()}
        if weights:
            from tsugiki.train.checkpoint import TENSORS, LaneState, save_checkpoint

            saved = save_checkpoint(self.weights, outcome.steps or 0, weights, LaneState())
            changes["weights_bytes"] = (saved / TENSORS).stat().st_size
        if answers:
            self._write_answers(outcome.scores[-1], answers)
        self._write("outcome.json", outcome.model_copy(update=changes))
        if outcome.finished and outcome.status != "failed":
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def add_scores(self, scores: Scores, answers: Sequence[Prediction]) -> None:
        """Adds the scores of one part to a finished run; those of the same part and key give
        way."""
        before = self.outcome
        named = scores.model_copy(update={"answers": _answers_of(scores, before.scores)})
        kept = tuple(score for score in before.scores if score.file != named.file)
        self._write_answers(named, answers)
        self._write("outcome.json", before.model_copy(update={"scores": (*kept, named)}))

    def add_elsewhere(self, entry: Elsewhere, files: Mapping[str, Iterable[object]]) -> None:
        """Adds what the run is worth on something else; `files`: lines by the names that the entry
        gives them."""
        for name, rows in files.items():
            self._write_lines(name, rows)
        before = self.outcome
        kept = (*before.elsewhere, entry)
        self._write("outcome.json", before.model_copy(update={"elsewhere": kept}))

    def change(self, **changes: object) -> None:
        """Changes some of what is kept of the outcome (fields by their names)."""
        self._write("outcome.json", Outcome.model_validate({**dict(self.outcome), **changes}))

    def watched(self, step: int, scores: Scores) -> None:
        """Adds what a sample of validation scored after so many steps."""
        earlier = [validation for validation in self.record().validations if validation.step < step]
        content = [*earlier, Validation(step=step, scores=scores)]
        kept = [entry.model_dump(mode="json", exclude_none=True) for entry in content]
        self._write_text("validations.json", json.dumps(kept, ensure_ascii=False))

    def hand_over(self, config: RunConfig, provenance: Provenance, source: Run, steps: int) -> None:
        """Starts this run as one that goes on from a checkpoint of another, which lies there."""
        there = source.outcome
        plan = Outcome(
            study=there.study,
            branch=Branch(source=source.folder.name, steps=steps),
            step=there.step,
            lanes=there.lanes,
            exclusive=False,
        )
        if not is_run(self.folder):
            self._write("provenance.json", provenance)
            self._write("config.json", config)
        kept = {"search_score": self.outcome.search_score}
        self._write("outcome.json", plan.model_copy(update=kept))

    def copy_adapter(self, source: Path) -> int:
        """Keeps a copy of an adapter that was trained elsewhere; returns its size in bytes."""
        with new_folder(self.folder / "adapter") as draft:
            for name in COPIED:
                shutil.copyfile(source / name, draft / name)
        return (self.folder / "adapter" / COPIED[1]).stat().st_size

    def read(self, name: str) -> dict[str, list[str]] | None:
        """Lists of texts by name that `write` kept, None if nothing was."""
        path = file_of(self.folder, name)
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {str(key): [str(text) for text in texts] for key, texts in content.items()}
        except (OSError, ValueError, AttributeError, TypeError) as broken:
            raise RunError(Message("error.damaged_file", path=path, reason=broken)) from None

    def write(self, name: str, content: Mapping[str, Iterable[str]]) -> None:
        kept = {key: list(texts) for key, texts in content.items()}
        self._write_text(name, json.dumps(kept, indent=1, ensure_ascii=False))

    def start_over(self) -> dict[str, bytes]:
        """Forgets what came of it; what was asked stays. Returns what was there, for `put_back`."""
        patterns = (
            "outcome.json", "happened.json", "history.json", "validations.json", "during.json",
            "answers-*.jsonl", "answer-modes-*.json", "ways-*.json", "elsewhere-*.jsonl",
        )  # fmt: skip
        paths = [path for pattern in patterns for path in self.folder.glob(pattern)]
        before = {path.name: path.read_bytes() for path in paths}
        self._write("outcome.json", Outcome())
        for path in paths:
            if path.name != "outcome.json":
                path.unlink()
        return before

    def put_back(self, before: Mapping[str, bytes]) -> None:
        """Undoes `start_over`: how the run ended last comes last."""
        for name in sorted(before, key=lambda name: name in ("outcome.json", "happened.json")):
            write_atomically(self.folder / name, before[name])
        if "outcome.json" not in before:
            (self.folder / "outcome.json").unlink(missing_ok=True)

    def drop_weights(self) -> None:
        """Deletes the trained weights (a study keeps those of the chosen cells); scores stay."""
        shutil.rmtree(self.weights, ignore_errors=True)

    def _write(self, name: str, content: Record) -> None:
        content_json = content.model_dump(mode="json", exclude_none=True)
        self._write_text(name, json.dumps(content_json, indent=1, ensure_ascii=False))

    def _write_answers(self, scores: Scores, answers: Sequence[Prediction]) -> None:
        self._write_lines(scores.file, map(asdict, answers))

    def _write_lines(self, name: str, rows: Iterable[object]) -> None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._write_text(name, "".join(lines))

    def _write_text(self, name: str, text: str) -> None:
        write_atomically(self.folder / name, text.encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; the system lets go of it when the process ends, however
        it ends.

        Raises:
            RunBusy: another process holds it.
            RunError: the folder of locks cannot be written.
        """
        name = self.folder.name.rsplit("-", 1)[-1]
        path = self.folder.parent.parent / "locks" / f"{name}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("a+", encoding="utf-8")
        except OSError as broken:
            said = system_reason(broken)
            raise RunError(Message("error.no_lock", path=path, reason=said)) from None
        with handle:
            try:
                _hold(handle)
            except OSError:
                raise RunBusy(Message("error.busy", run=self.folder)) from None
            yield


def _answers_of(scores: Scores, others: Sequence[Scores]) -> str:
    """The name of the file of these answers: a part's first key needs none of its own."""
    same = [other for other in others if other.part == scores.part]
    digest = scores.key.digest if scores.key else ""
    for entry in same:
        if entry.key is not None and entry.key.digest == digest:
            return entry.answers
    return f"answers-{scores.part}-{digest}.jsonl" if same else ""


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

    def open(self, config: RunConfig, provenance: Provenance) -> Run:
        """The run of this configuration with these inputs, under whatever label it was made; it
        need not exist yet."""
        for identity in (identity_of(provenance), old_identity(config, provenance)):
            known = sorted((self.root / "runs").glob(f"*-{identity}"))
            if known:
                return Run(known[0])
        task, model = Path(config.task.name).stem, config.model.label
        name = f"{task}-{model}-{config.method}-{identity_of(provenance)}"
        return Run(self.root / "runs" / file_name(name))

    def read(self) -> tuple[list[RunRecord], list[str]]:
        """Every run that can be read; and of the others, what is to be said of each."""
        records, damaged = list[RunRecord](), list[str]()
        for folder in run_folders(self.root):
            try:
                records.append(read_record(folder))
            except TsugikiError as broken:
                damaged.append(broken.message)
        return records, damaged

    def records(self) -> list[RunRecord]:
        """Every run that can be read."""
        return self.read()[0]

    def damaged(self) -> list[str]:
        """Runs with a damaged file: what is to be said of each."""
        return self.read()[1]
