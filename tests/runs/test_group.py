"""A grid in one pass: lanes, shared epochs, failures, memory, a kill in the middle; the records
equal those of single runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.build import TRAIN, run_config, study_of
from tsugiki.config.run import RunConfig
from tsugiki.report.material import gather
from tsugiki.report.write import write_report
from tsugiki.runs.events import Events
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import Branch
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Run, Store
from tsugiki.study.cells import parse_study
from tsugiki.study.sweep import run_study
from tsugiki.train import open_step as step_module
from tsugiki.train.checkpoint import latest_checkpoint, read_checkpoint
from tsugiki.train.lane import DoesNotFit, Lane
from tsugiki.words import say


def weights(record: RunRecord) -> dict[str, torch.Tensor]:
    path = latest_checkpoint(record.folder / "weights")
    assert path is not None
    return read_checkpoint(path)[0]


def losses(record: RunRecord) -> list[float]:
    return list(json.loads((record.folder / "history.json").read_text(encoding="utf-8"))["loss"])


def grid(model: Path, task: Path, **train: Any) -> list[RunConfig]:
    """Six cells: two sets of targets and ranks at three rates."""
    adapters = [{"targets": "q+v", "rank": 2}, {"targets": "all-linear", "rank": 4, "alpha": 8}]
    return [
        run_config(model, task, lora=lora, train={**TRAIN, **train, "learning_rate": rate})
        for lora in adapters
        for rate in (1e-3, 5e-3, 1e-2)
    ]


def test_lanes_leave_the_records_of_single_runs(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    configs = grid(model_folder, task_file)
    heard: list[int] = []
    together = run_group(
        configs,
        Store(tmp_path / "group"),
        Events(on_start=lambda some: heard.append(len(some))),
        lanes=4,
    )
    assert heard == [3, 3], "six in rounds of at most four: evenly filled"
    for config, record in zip(configs, together, strict=True):
        [alone] = run_group([config], Store(tmp_path / "alone"))
        assert record.folder.name == alone.folder.name
        assert losses(record) == pytest.approx(losses(alone), rel=1e-5)
        assert record.answers("validation") == alone.answers("validation")
        assert record.scored("validation").scores == alone.scored("validation").scores
        for key in ("trainable", "total", "steps", "step", "status"):
            assert getattr(record.outcome, key) == getattr(alone.outcome, key), key
        assert (record.outcome.exclusive, alone.outcome.exclusive) == (False, True)
        assert (record.outcome.lanes, record.outcome.cost.lanes) == (3, 3)
        mine, theirs = weights(record), weights(alone)
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("method", "train", "shared"),
    [
        ("lora", {}, [6, 12]),
        ("full", {}, [6, 12]),
        ("lora", {"schedule": "wsd", "decay": 0.3}, [5, 9]),
        ("lora", {"schedule": "linear"}, [0, 0]),
    ],
)
def test_epochs_come_from_one_run_where_the_schedule_allows_it(
    method: str, train: dict, shared: list[int], model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """To the same bits as training each from the start; three steps make an epoch here."""
    changes: dict[str, Any] = {"method": "full", "lora": None} if method == "full" else {}
    configs = [
        run_config(model_folder, task_file, **changes, train={**TRAIN, **train, "epochs": epochs})
        for epochs in (2, 4, 6)
    ]
    records = run_group(configs, Store(tmp_path / "group"))
    assert [record.outcome.steps for record in records] == [6, 12, 18]
    gifts = [
        record.outcome.branch or Branch(steps=0, source=records[2].folder.name)
        for record in records
    ]
    assert [gift.steps for gift in gifts] == [*shared, 0]
    assert {gift.source for gift in gifts} == {records[2].folder.name}
    for config, record in zip(configs, records, strict=True):
        [alone] = run_group([config], Store(tmp_path / "alone"))
        assert losses(record) == losses(alone)
        assert record.answers("validation") == alone.answers("validation")
        assert all(
            torch.equal(tensor, weights(alone)[name]) for name, tensor in weights(record).items()
        )


def in_english(key: str, values: Mapping[str, object]) -> str:
    return say("en", f"progress.{key}", **values)


def test_epochs_and_lanes_together_in_a_study(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """A grid with epochs: only the longest are trained, the shorter finish with the step they were
    handed; test is scored once."""
    given = study_of(model_folder, task_file)
    cells = {"learning_rate": [1e-3, 1e-2], "targets": ["q+v"], "rank": [2, 3], "epochs": [1, 2]}
    study = parse_study(
        {**given, "lanes": 8, "methods": [{"name": "LoRA", "kind": "lora", "grid": cells}]}, "study"
    )
    said: list[str] = []
    result = run_study(
        study, Store(tmp_path), on_cell=lambda key, values: said.append(in_english(key, values))
    )
    assert said[:2] == [
        f"configurations {numbers} of 8, 4 together: {first.label} … {last.label}"
        for numbers, first, last in (
            ("2 … 8", result.cells[1], result.cells[7]),
            ("1 … 7", result.cells[0], result.cells[6]),
        )
    ]
    records = list(result.records.values())
    assert {record.status for record in records} == {"done"}
    assert [record.outcome.branch is not None for record in records] == [True, False] * 4
    chosen = result.records[next(iter(result.chosen.values())).label]
    assert chosen.scores("test") is not None
    assert set(chosen.outcome.exclusive_cost) == {8}, (
        "measured alone, whatever it cost among others"
    )
    assert sum(record.scores("test") is not None for record in records) == 1


def test_a_lane_that_diverges_leaves_the_others(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    configs = [
        run_config(model_folder, task_file, train={**TRAIN, "learning_rate": rate})
        for rate in (1e-3, 1e6, 1e-2)
    ]
    first, broken, last = run_group(configs, Store(tmp_path), lanes=3)
    assert (first.status, broken.status, last.status) == ("done", "failed", "done")
    assert "training diverged" in broken.outcome.reason
    assert broken.scores("validation") is None


def test_a_group_that_does_not_fit_is_split(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = step_module.open_step, []

    def open_step(
        model: Any, lanes: Sequence[Lane], *others: Any, **named: Any
    ) -> AbstractContextManager[Any]:
        sizes.append(len(lanes))
        if len(lanes) > 2:
            raise DoesNotFit(f"{len(lanes)} lanes do not fit")
        return real(model, lanes, *others, **named)

    monkeypatch.setattr(step_module, "open_step", open_step)
    notes: list[str] = []
    records = run_group(
        grid(model_folder, task_file), Store(tmp_path), Events(on_note=notes.append), lanes=6
    )
    assert sizes == [6, 3, 2, 2, 2]
    assert notes == [
        "6 runs do not fit together; going on with 3 at a time",
        "3 runs do not fit together; going on with 2 at a time",
    ]
    assert {record.status for record in records} == {"done"}
    assert [(record.outcome.lanes, record.outcome.cost.lanes) for record in records] == [
        (2, 2)
    ] * 6, "as it was, not as it was tried"


def test_what_may_train_together(model_folder: Path, task_file: Path) -> None:
    one = run_config(model_folder, task_file)
    same = [
        {"lora": {"rank": 8}},
        {
            "train": {
                **TRAIN,
                "learning_rate": 1e-5,
                "epochs": 9,
                "batch": 3,
                "schedule": "cosine",
                "seed": 4,
            }
        },
    ]
    other = [
        {"train": {**TRAIN, "max_length": 64}},
        {"method": "full", "lora": None},
        {"score": {"batch": 3}},
        {"task": {"name": str(task_file), "train_rows": 5}},
    ]
    assert all(
        alike(run_config(model_folder, task_file, **change)) == alike(one) for change in same
    )
    assert all(
        alike(run_config(model_folder, task_file, **change)) != alike(one) for change in other
    )
    full = [
        run_config(
            model_folder, task_file, method="full", lora=None, train={**TRAIN, "epochs": epochs}
        )
        for epochs in (1, 2)
    ]
    assert alike(full[0]) == alike(full[1])


def alike(config: RunConfig) -> RunConfig:
    return method_of(config).alike(config)


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_group_resumes_to_the_same_bits(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """A real process, killed for real once every lane's first checkpoint is there."""
    configs = [
        config.model_dump(mode="json", exclude_none=True)
        for config in grid(model_folder, task_file, epochs=16)
    ]
    (tmp_path / "configs.json").write_text(json.dumps(configs), encoding="utf-8")
    code = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path; import tsugiki.train.engine as engine\n"
        "engine.fit.__kwdefaults__['checkpoint_every_s'] = 0.0\n"
        "from tsugiki.config.run import RunConfig; from tsugiki.runs.rounds import run_group; from "
        "tsugiki.runs.store import Store\n"
        "run_group([RunConfig(**one) for one in json.loads(Path(sys.argv[1]).read_text())], "
        "Store(Path(sys.argv[2])), lanes=6)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "configs.json")]
    killed = subprocess.Popen([*command, str(tmp_path / "killed")])
    deadline = time.monotonic() + 60
    while (
        len({path.parents[1] for path in (tmp_path / "killed").rglob("step-*/state.json")}) < 6
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert {record.status for record in Store(tmp_path / "killed").records()} == {"running"}
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True)
    resumed, straight = (
        {record.folder.name: record for record in Store(tmp_path / name).records()}
        for name in ("killed", "whole")
    )
    assert resumed.keys() == straight.keys()
    for name, record in straight.items():
        assert losses(resumed[name]) == losses(record)
        assert all(
            torch.equal(tensor, weights(resumed[name])[key])
            for key, tensor in weights(record).items()
        )
        assert resumed[name].answers("validation") == record.answers("validation")


def test_a_worker_leaves_a_busy_runs_heirs_alone(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """Side by side (--jobs): the shorter runs will be handed their steps by the process that
    trains the longest."""
    configs = [
        run_config(
            model_folder, task_file, train={**TRAIN, "epochs": epochs, "learning_rate": rate}
        )
        for rate in (1e-3, 1e-2)
        for epochs in (1, 3)
    ]
    store = Store(tmp_path)
    [longest] = run_group([configs[3]], Store(tmp_path / "names"))
    busy = store.root / "runs" / longest.folder.name
    with Run(busy).lock():
        records = run_group(configs, store, skip_busy=True)
    assert {(record.config.train.learning_rate, record.status) for record in records} == {
        (1e-3, "done")
    }
    assert len(list((store.root / "runs").glob("*/config.json"))) == 2
    assert {record.status for record in run_group(configs, store)} == {"done"}


def test_a_runs_times_are_never_taken_for_solo_when_others_trained_for_it(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    configs = [
        run_config(
            model_folder, task_file, train={**TRAIN, "epochs": epochs, "learning_rate": rate}
        )
        for rate in (1e-3, 1e-2)
        for epochs in (1, 2)
    ]
    records = run_group(configs, Store(tmp_path), lanes=2)
    assert [record.outcome.exclusive for record in records] == [False] * 4
    assert [record.outcome.lanes for record in records] == [2] * 4
    assert [record.outcome.cost.lanes for record in records] == [2] * 4
    longest, shorter = run_group(
        [
            run_config(
                model_folder, task_file, train={**TRAIN, "epochs": epochs, "learning_rate": 5e-3}
            )
            for epochs in (2, 1)
        ],
        Store(tmp_path),
    )
    assert (longest.outcome.exclusive, shorter.outcome.exclusive) == (True, False), (
        "the shorter one's memory was never measured"
    )


def test_a_study_stopped_half_way_goes_on_elsewhere_from_an_archive_of_its_records(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """Weights and checkpoints stay behind: what is missing is trained, what is chosen is trained
    again for its test."""
    grid = {"learning_rate": [1e-3, 5e-3, 1e-2], "targets": ["q+v"], "rank": [2]}
    methods = [
        {"name": "LoRA", "kind": "lora", "grid": grid},
        {"name": "FT", "kind": "full", "grid": {"learning_rate": [1e-3, 1e-4], "epochs": [1, 2]}},
    ]
    study = parse_study({**study_of(model_folder, task_file), "methods": methods}, "study")
    straight = run_study(study, Store(tmp_path / "straight"))

    def stop(key: str, values: Mapping[str, object]) -> None:
        if "FT" in str(values["label"]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, Store(tmp_path / "first"), on_cell=stop)
    names = shutil.ignore_patterns("weights", "checkpoint")
    shutil.copytree(tmp_path / "first" / "runs", tmp_path / "second" / "runs", ignore=names)
    resumed = run_study(study, Store(tmp_path / "second"))
    assert resumed.chosen == straight.chosen
    for label, record in straight.records.items():
        assert resumed.records[label].main_score("validation") == record.main_score("validation")
        assert resumed.records[label].main_score("test") == record.main_score("test")


def test_a_chosen_cell_that_scores_less_when_trained_again_is_chosen_no_more(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """On another device a run may end elsewhere; what is chosen at the end is the best by
    validation as it stands, and it has been tested."""
    methods = [
        {"name": "FT", "kind": "full", "grid": {"learning_rate": [1e-3, 1e-4], "epochs": [1, 2]}}
    ]
    study = parse_study({**study_of(model_folder, task_file), "methods": methods}, "study")
    straight = run_study(study, Store(tmp_path / "first"))
    [best] = straight.chosen.values()
    loser = next(
        cell
        for cell in straight.cells
        if straight.records[cell.label].main_score("validation")
        != straight.records[best.label].main_score("validation")
    )
    expected = straight.records[loser.label].main_score("validation")
    shutil.copytree(
        tmp_path / "first" / "runs",
        tmp_path / "second" / "runs",
        ignore=shutil.ignore_patterns("weights"),
    )
    for cell, better in ((loser, True), (best, False)):
        run = Run(tmp_path / "second" / "runs" / straight.records[cell.label].folder.name)
        scores = run.record().scored("validation")
        if better:
            main = dataclasses.replace(scores.main, value=2.0)
            scores = scores.model_copy(update={"main": main})
        run.change(scores=(scores,))
    resumed = run_study(study, Store(tmp_path / "second"))
    assert resumed.records[loser.label].main_score("validation") == expected
    assert list(resumed.chosen.values()) == [best]
    assert resumed.records[best.label].main_score("test") == straight.records[
        best.label
    ].main_score("test")
    outcome = resumed.records[loser.label].outcome
    told = (outcome.search_score, outcome.lanes, outcome.exclusive, outcome.branch is not None)
    assert told == (2.0, 1, True, False), "nothing of the run before stays"
    assert [path.parent.name for path in (tmp_path / "second" / "runs").glob("*/weights")] == [
        resumed.records[best.label].folder.name
    ]
    page = write_report(gather(resumed), tmp_path / "second")
    assert (
        f"Test was also read by other configurations (it chose nothing): {loser.label}."
        in page.read_text(encoding="utf-8")
    )
    page = write_report(gather(straight), tmp_path / "first")
    assert "also read by other cells" not in page.read_text(encoding="utf-8")
