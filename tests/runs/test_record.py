"""What is kept of a run: read back as it was written; what is damaged or of the future is one line;
each lane's end is kept as it is scored; labels do not name a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.build import TRAIN, run_config
from tsugiki.errors import RunError
from tsugiki.runs.reading import file_of, read_record
from tsugiki.runs.record import Outcome
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Run, Store
from tsugiki.score import evaluate

KEPT = Path(__file__).parents[1] / "kept" / "out"


def test_a_record_is_read_back_as_it_was_written(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    [record] = run_group([run_config(model_folder, task_file)], Store(tmp_path))
    outcome = record.outcome
    assert outcome.started <= outcome.ended
    assert outcome.cost is not None
    assert outcome.scores[0].key is not None
    again = read_record(record.folder)
    assert (again.outcome, again.provenance) == (outcome, record.provenance)
    run = Run(record.folder)
    run.keep(outcome)
    ended = {"ended": run.outcome.ended}
    assert run.outcome == outcome.model_copy(update=ended)
    with pytest.raises(ValueError, match="frozen"):
        outcome.status = "failed"  # type: ignore[misc]


def test_records_of_earlier_versions_are_read() -> None:
    records = Store(KEPT).records()
    assert len(records) == 29
    assert Store(KEPT).damaged() == []
    kinds = {record.status for record in records}
    assert kinds == {"done", "failed", "pruned"}
    branched = [record for record in records if record.outcome.branch is not None]
    assert len(branched) == 4
    assert {record.outcome.lanes for record in records} >= {1, 3}
    for record in records:
        if record.status == "done":
            assert len(record.answers("validation")) == record.scored("validation").main.n == 24
            assert record.outcome.cost is not None
            assert record.losses or record.outcome.adapter is not None
        else:
            assert record.outcome.reason


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "damaged or cut short"),
        ("[1]", "holds no object but list"),
        ('{"status": "gone"}', r"status: Input should be 'running'"),
        ('{"format": 2, "status": "done"}', r"later version of tsugiki \(format 2, this one"),
        ('{"status": "done", "surprise": 1}', "surprise: Extra inputs"),
        ('{"status": "done", "scores": [{"key": {"decode": []}}]}', r"scores\.0\.key\.part: Field"),
    ],
)
def test_a_damaged_or_future_record_is_one_line_and_stops_no_other(
    content: str, said: str, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    configs = [
        run_config(model_folder, task_file, train={**TRAIN, "epochs": epochs}) for epochs in (1, 2)
    ]
    first, second = run_group(configs, Store(tmp_path))
    file_of(second.folder, "outcome.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=said) as caught:
        read_record(second.folder)
    assert len(str(caught.value).splitlines()) == 1
    records, damaged = Store(tmp_path).read()
    assert [record.folder for record in records] == [first.folder]
    assert damaged == [str(caught.value)]
    listed = subprocess.run(
        [sys.executable, "-m", "tsugiki", "ls", "--out", str(tmp_path), "--json"],
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0
    assert [row["run"] for row in json.loads(listed.stdout)] == [first.folder.name]
    assert str(second.folder) in listed.stderr


def test_a_kill_while_lanes_are_scored_leaves_the_outcomes_of_those_before(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = [1e-3 * number for number in range(1, 9)]
    configs = [
        run_config(model_folder, task_file, train={**TRAIN, "learning_rate": rate})
        for rate in rates
    ]
    real, scored = evaluate.summarise, []

    def killed(*given: Any) -> Any:
        scored.append(given)
        if len(scored) == 7:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "summarise", killed)
        with pytest.raises(KeyboardInterrupt):
            run_group(configs, Store(tmp_path), lanes=8)
    done = [record for record in Store(tmp_path).records() if record.status == "done"]
    kept = sorted(record.config.train.learning_rate for record in done)
    assert kept == pytest.approx(rates[:6])
    assert all(record.answers("validation") for record in done)
    again = run_group(configs, Store(tmp_path), lanes=8)
    assert {record.status for record in again} == {"done"}
    whole = run_group(configs, Store(tmp_path / "whole"), lanes=8)
    for one, other in zip(again, whole, strict=True):
        assert one.losses == other.losses
        assert one.scored("validation").scores == other.scored("validation").scores


def test_another_label_batch_or_watch_is_the_same_run(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    [first] = run_group([run_config(model_folder, task_file)], Store(tmp_path))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for change in (
        {"model": {"path": str(model_folder), "name": "another"}},
        {"score": {"batch": 4}},
        {"score": {"validations": 2, "validation_rows": 3}},
        {"task": {"name": str(task_file), "data_dir": str(task_file.parent)}},
    ):
        config = run_config(model_folder, task_file, **change)
        [again] = run_group([config], Store(tmp_path))
        assert again.folder == first.folder
        assert again.config == config, "under the labels that it was asked for with"
        assert again.outcome == first.outcome
    now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert now == stamps, "nothing was trained, and nothing written"


def test_other_rows_of_validation_are_scored_from_the_kept_weights(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    [first] = run_group([run_config(model_folder, task_file)], Store(tmp_path))
    fewer = {"name": str(task_file), "eval_rows": 5}
    [again] = run_group([run_config(model_folder, task_file, task=fewer)], Store(tmp_path))
    assert again.folder == first.folder
    assert (first.scored("validation").main.n, again.scored("validation").main.n) == (9, 5)
    assert len(again.outcome.scores) == 2
    assert len(again.answers("validation")) == 5
    [once_more] = run_group([run_config(model_folder, task_file)], Store(tmp_path))
    assert once_more.scored("validation") == first.scored("validation")


def test_an_outcome_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="surprise"):
        Outcome(surprise=1)  # type: ignore[call-arg]
