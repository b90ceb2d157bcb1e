"""Runs in TensorBoard, Weights & Biases and MLflow, read back by the services' own readers from
real files; a package that is not there is a reason to skip."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.build import TRAIN, run_config, study_of
from tsugiki.config.run import RunConfig
from tsugiki.errors import ConfigError
from tsugiki.runs.events import SILENT, Listener, listening
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.study.cells import StudyResult, parse_study
from tsugiki.study.sweep import run_study
from tsugiki.trackers import known
from tsugiki.trackers.known import TRACKERS, listener_of, listeners_of
from tsugiki.trackers.tracker import key_of, scores_of, study_key
from tsugiki.train.engine import Interrupted


class StopAfter(Listener):
    """Ctrl-C after that step."""

    def __init__(self, step: int):
        self.step = step

    def on_values(self, config: RunConfig, step: int, values: Mapping[str, float]) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def stopped_and_resumed(config: RunConfig, root: Path, tracker: str) -> RunRecord:
    """A run that is stopped after step 20 of 30, and goes on."""
    given = [listener_of(tracker), StopAfter(20)]
    with pytest.raises(Interrupted), listening(SILENT, given, pytest.fail) as events:
        run_group([config], Store(root), events, study="a study")
    time.sleep(1)  # event files are read in the order of their seconds
    with listening(SILENT, [listener_of(tracker)], pytest.fail) as events:
        [record] = run_group([config], Store(root), events, study="a study")
    return record


def tracked_study(tmp_path: Path, model: Path, task: Path, tracker: str) -> StudyResult:
    """LoRA and FT, one of them diverging, the chosen with two seeds on test."""
    spec = parse_study({**study_of(model, task), "seeds": 2}, "test")
    for _ in range(2):  # the second only reads
        with listening(SILENT, [listener_of(tracker)], pytest.fail) as events:
            result = run_study(spec, Store(tmp_path), events)
    return result


def ten_epochs(model: Path, task: Path) -> RunConfig:
    return run_config(
        model, task, train={**TRAIN, "epochs": 10, "seed": 3}, score={"validations": 1}
    )


def losses(record: RunRecord) -> dict[int, float]:
    """At every tenth step."""
    history = json.loads((record.folder / "history.json").read_text(encoding="utf-8"))
    return {step: history["loss"][step - 1] for step in range(10, len(history["loss"]) + 1, 10)}


def every_run(result: StudyResult) -> dict[str, RunRecord]:
    runs = [*result.records.values(), *(run for some in result.repeats.values() for run in some)]
    return {run.folder.name: run for run in runs}


def events_in(folder: Path) -> Any:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return loader.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def test_tensorboard_has_the_lanes_own_values_once(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    record = stopped_and_resumed(ten_epochs(model_folder, task_file), tmp_path, "tensorboard")
    read = events_in(tmp_path / "tensorboard" / "a study" / record.folder.name)
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert [entry.step for entry in read.Scalars(f"train/{name}")] == [10, 20, 30]
    told = {entry.step: entry.value for entry in read.Scalars("train/loss")}
    assert told == pytest.approx(losses(record), rel=1e-6)
    [seen] = record.validations
    curve = [(own.step, own.value) for own in read.Scalars("sample/accuracy")]
    assert curve == [(seen.step, pytest.approx(seen.scores.main.value))]
    for name, value in scores_of(record.scored("validation"), "validation").items():
        assert read.Scalars(name)[-1].value == pytest.approx(value), name
    assert read.Scalars("cost/trainable_parameters")[-1].value == record.outcome.trainable
    assert read.Scalars("cost/step_s")[-1].value == pytest.approx(record.outcome.cost.step_s_median)
    texts = [entry.tensor_proto.string_val[0] for entry in read.Tensors("status/text_summary")]
    assert texts == [b"stopped", b"done"]
    settings = read.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "train.learning_rate = 0.005" in settings
    assert "train.seed = 3" in settings
    assert "lora.rank = 2" in settings


def test_tensorboard_hides_what_a_killed_run_wrote_after_its_checkpoint(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tsugiki.trackers.tensorboard import TensorBoard

    [record] = run_group([ten_epochs(model_folder, task_file)], Store(tmp_path / "out"))
    for after, steps, loss in ((0, (10, 20, 30), 1.0), (10, (20, 30), 2.0)):
        time.sleep(after / 9)  # event files are read in the order of their seconds
        tracker = TensorBoard(tmp_path / "logs")
        tracker.on_begin(record, after)
        for step in steps:
            tracker.on_values(record.config, step, {"loss": loss})
        tracker.close()
    read = events_in(tmp_path / "logs" / record.folder.name)
    assert [(own.step, own.value) for own in read.Scalars("train/loss")] == [
        (10, 1.0),
        (20, 2.0),
        (30, 2.0),
    ]


def test_tensorboard_has_every_run_of_a_study(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    result = tracked_study(tmp_path, model_folder, task_file, "tensorboard")
    runs = every_run(result)
    folders = {path.name: path for path in (tmp_path / "tensorboard" / "tiny").iterdir()}
    assert folders.keys() == runs.keys()
    for name, record in runs.items():
        read = events_in(folders[name])
        test, status = record.scores("test"), read.Tensors("status/text_summary")
        assert len(status) == (1 if test is None else 2)
        said = status[0].tensor_proto.string_val[0].decode()
        assert said.startswith("failed: " if record.status == "failed" else "done")
        assert ("test/accuracy" in read.Tags()["scalars"]) == (test is not None)
        if test is not None:
            assert [own.value for own in read.Scalars("test/accuracy")] == [
                pytest.approx(test.main.value)
            ]


@pytest.mark.slow
def test_workers_log_too(model_folder: Path, task_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    study = tmp_path / "tiny.toml"
    study.write_text(
        f"""
        name = "tiny"
        models = [{{ path = "{model_folder}", name = "tiny" }}]
        tasks = [{{ name = "{task_file}" }}]
        train = {{ epochs = 2, precision = "fp32" }}
        methods = [
          {{ name = "LoRA", kind = "lora", grid = {{ learning_rate = [1e-3], rank = [2] }} }},
          {{ name = "FT", kind = "full", grid = {{ learning_rate = [1e-3] }} }},
        ]
        """,
        encoding="utf-8",
    )
    options = ["--out", str(tmp_path / "out"), "--jobs", "2", "--track", "tensorboard"]
    command = [sys.executable, "-m", "tsugiki", "study", str(study), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    folders = sorted((tmp_path / "out" / "tensorboard" / "tiny").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert {"train/loss", "test/accuracy"} <= set(events_in(folder).Tags()["scalars"])


@pytest.mark.filterwarnings("ignore")  # the service's own
def test_mlflow_has_a_study_with_its_runs(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    pytest.importorskip("alembic", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = tracked_study(tmp_path, model_folder, task_file, "mlflow")
    _, own = mlflow_runs(tmp_path)
    [parent] = [run for run in own if run.data.tags.get("tsugiki.key", "").startswith("study-")]
    nested = {run.info.run_name: run for run in own if run is not parent}
    assert parent.info.run_name == "tiny"
    assert nested.keys() == every_run(result).keys()
    for name, record in every_run(result).items():
        run = nested[name]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["tsugiki.key"] == key_of(record)
        assert run.info.status == ("FAILED" if record.status == "failed" else "FINISHED")
        assert run.data.params["train.seed"] == str(record.config.train.seed)
        assert run.data.params["train.learning_rate"] == str(record.config.train.learning_rate)
        test = record.scores("test")
        if test is not None:
            assert run.data.metrics["test/accuracy_low"] == pytest.approx(test.main.low)
    failed = next(run for run in nested.values() if run.info.status == "FAILED")
    assert "training diverged" in failed.data.tags["tsugiki.status"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_with_its_run(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    pytest.importorskip("alembic", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record = stopped_and_resumed(ten_epochs(model_folder, task_file), tmp_path, "mlflow")
    client, own = mlflow_runs(tmp_path)
    [run] = [run for run in own if run.info.run_name == record.folder.name]
    kept = client.get_metric_history(run.info.run_id, "train/loss")
    assert {entry.step: entry.value for entry in kept} == pytest.approx(losses(record))
    assert len(kept) == 3
    assert run.info.status == "FINISHED"


def mlflow_runs(root: Path) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tsugiki")
    return client, list(client.search_runs([experiment.experiment_id]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_a_study_offline(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = tracked_study(tmp_path, model_folder, task_file, "wandb")
    kept = wandb_files(tmp_path)
    assert {name for _, name, _, _ in kept} == every_run(result).keys()
    assert {group for group, _, _, _ in kept} == {"tiny"}
    for name, record in every_run(result).items():
        mine = [rows for _, own, _, rows in kept if own == name]
        ids = {key for _, own, key, _ in kept if own == name}
        assert ids == {key_of(record)}
        test = record.scores("test")
        assert len(mine) == (1 if test is None else 2), "scored on test later, in the same run"
        if test is not None:
            scored = [
                float(row["test/accuracy"])
                for rows in mine
                for row in rows
                if "test/accuracy" in row
            ]
            assert scored == [test.main.value]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_goes_on_with_its_run(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    record = stopped_and_resumed(ten_epochs(model_folder, task_file), tmp_path, "wandb")
    kept = wandb_files(tmp_path)
    assert {key for _, _, key, _ in kept} == {key_of(record)}
    rows = [row for *_, rows in kept for row in rows if "train/loss" in row]
    assert {int(row["step"]): float(row["train/loss"]) for row in rows} == losses(record)


def wandb_files(root: Path) -> list[tuple[str, str, str, list[dict[str, str]]]]:
    """(group, name, id, rows of its history) of every file that was kept offline."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted((root / "wandb").glob("offline-run-*/*.wandb")):
        rows, run = list[dict[str, str]](), None
        for data in log_records(path.read_bytes()[7:]):
            entry = Record()
            entry.ParseFromString(data)
            if entry.WhichOneof("record_type") == "run":
                run = entry.run
            if entry.WhichOneof("record_type") == "history":
                rows.append(
                    {
                        item.key or ".".join(item.nested_key): item.value_json
                        for item in entry.history.item
                    }
                )
        assert run is not None
        found.append((run.run_group, run.display_name, run.run_id, rows))
    return found


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format: pieces with a header of 7 bytes (checksum, length, kind:
    whole, first, middle, last) in blocks of 32 KiB; the file's own header counts as part of the
    first block."""
    position, kept = 0, b""
    while position + 7 <= len(content):
        room = 32768 - (position + 7) % 32768
        if room < 7:
            position += room
            continue
        size, kind = struct.unpack_from("<HB", content, position + 4)
        kept += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            yield kept
            kept = b""


def test_a_tracker_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRACKERS, "tensorboard", ("tsugiki.trackers.not_there", "TensorBoard"))
    with pytest.raises(ConfigError, match=r"pip install tensorboard"):
        listener_of("tensorboard")
    with pytest.raises(ConfigError, match='Did you mean "tensorboard"'):
        listener_of("tensorbord")
    own = Listener()
    assert listeners_of([own]) == [own]
    assert known.listener_of(own) is own


def test_wandb_without_a_key_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="wandb login; or set WANDB_MODE=offline"):
        listener_of("wandb")


def test_a_run_in_another_folder_is_another_run(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    config = run_config(model_folder, task_file)
    first, second = (run_group([config], Store(tmp_path / name))[0] for name in "ab")
    assert first.folder.name == second.folder.name
    assert key_of(first) != key_of(second)
    assert study_key(first) != study_key(second)
