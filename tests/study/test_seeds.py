"""Seeds of what is chosen: named or counted, adapters together, in one process or in several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.build import study_of
from tsugiki.cli.progress import Display
from tsugiki.errors import ConfigError
from tsugiki.runs.events import Events
from tsugiki.runs.store import Run, Store
from tsugiki.study.cells import collect, expand, parse_study
from tsugiki.study.executors import ThisProcess, WorkerProcesses, environment_of
from tsugiki.study.sweep import run_study
from tsugiki.study.worker import run_stage


def seeded(model: Path, task: Path, seeds: object, **changes: object) -> dict:
    given = study_of(model, task)
    given["methods"] = [
        given["methods"][0],
        {**given["methods"][1], "grid": {"learning_rate": [1e-3]}},
    ]
    return {**given, "seeds": seeds, **changes}


def seeds_of(result: object, name: str) -> list[int]:
    cell = next(cell for key, cell in result.chosen.items() if key[2] == name)
    return [run.config.train.seed for run in result.seeds(cell)]


@pytest.mark.parametrize(("seeds", "expected"), [(3, [0, 1, 2]), ([7, 3, 11], [7, 3, 11])])
def test_seeds_are_counted_or_named(
    seeds: object, expected: list[int], model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    study = parse_study(seeded(model_folder, task_file, seeds), "study")
    assert {cell.config.train.seed for cell in expand(study)} == {expected[0]}
    said: list[tuple] = []
    result = run_study(
        study, Store(tmp_path), Events(), on_cell=lambda key, values: said.append((key, values))
    )
    for name in ("LoRA", "FT"):
        assert seeds_of(result, name) == expected
    assert any((values.get("number"), values.get("total")) == (2, 3) for _, values in said)
    again = collect(study, Store(tmp_path))
    assert seeds_of(again, "LoRA") == expected
    assert again.missing == {}


def test_adapters_of_one_choice_train_together(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    study = parse_study(seeded(model_folder, task_file, 4, lanes=4), "study")
    result = run_study(study, Store(tmp_path))
    lora = next(cell for key, cell in result.chosen.items() if key[2] == "LoRA")
    lanes = [run.outcome.lanes for run in result.seeds(lora)[1:]]
    assert lanes == [3, 3, 3]


@pytest.mark.slow
def test_worker_processes_train_seeds_too(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """FT's seeds go through the executor."""
    import tomllib

    file = tmp_path / "study.toml"
    text = f"""
name = "s"
seeds = 3
[train]
epochs = 1
precision = "fp32"
[[models]]
path = "{model_folder.as_posix()}"
[[tasks]]
name = "{task_file.as_posix()}"
[[methods]]
name = "FT"
kind = "full"
grid = {{ learning_rate = [1e-3] }}
"""
    file.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "tsugiki", "study", str(file), "--jobs", "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode in (0, 3), done.stderr
    result = collect(parse_study(tomllib.loads(text), "s"), Store(tmp_path / "out"))
    assert seeds_of(result, "FT") == [0, 1, 2]
    kept = list((tmp_path / "out").rglob("lane.safetensors"))
    assert len(kept) == 1, "a full model's weights are kept for the choice alone"


def test_a_worker_takes_one_stage_and_leaves_what_is_busy(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """Configurations, seeds, answers to test: none reads test before it is its turn."""
    study, store = parse_study(seeded(model_folder, task_file, 2), "study"), Store(tmp_path)

    def tested() -> list[bool]:
        return [record.scores("test") is not None for record in store.records()]

    run_stage(study, store, "cells")
    assert len(store.records()) == len(expand(study))
    run_stage(study, store, "seeds")
    assert len(store.records()) == len(expand(study)) + 2
    assert not any(tested())
    busy = next(record for record in store.records() if record.config.train.seed == 1)
    with Run(busy.folder).lock():
        run_stage(study, store, "test")
    assert sum(tested()) == 3, "two chosen, and of two seeds the one that nobody works on"
    run_stage(study, store, "test")
    assert sum(tested()) == 4
    before = {record.folder: record.outcome.scores for record in store.records()}
    result = run_study(study, store)
    assert result.missing == {}
    assert {record.folder: record.outcome.scores for record in store.records()} == before


@pytest.mark.parametrize(
    ("seeds", "train", "message"),
    [
        ([1, 1], {}, "names one twice"),
        ([1, 2], {"seed": 5}, "train.seed: seeds names them already"),
        ([], {}, "seeds"),
        (0, {}, "seeds"),
    ],
)
def test_seeds_that_cannot_be_are_refused(seeds: object, train: dict, message: str) -> None:
    given = {**study_of(Path("m"), Path("t")), "seeds": seeds, "train": train}
    with pytest.raises(ConfigError, match=message):
        parse_study(given, "study")


def test_no_worker_starts_for_nothing(model_folder: Path, task_file: Path, tmp_path: Path) -> None:
    study = parse_study(seeded(model_folder, task_file, 1), "study")
    here = ThisProcess(study=study, store=Store(tmp_path), events=Events())
    many = WorkerProcesses(
        here,
        hear=lambda events, on_cell, worker: events,
        arguments=["no such study"],
        jobs=2,
        lines=Display().worker,
    )
    assert list(many.submit([])) == []


def test_workers_take_several_cards_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TSUGIKI_DEVICE", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    taken = [environment_of(number, 3)["TSUGIKI_DEVICE"] for number in range(3)]
    assert taken == ["cuda:0", "cuda:1", "cuda:0"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert "TSUGIKI_DEVICE" not in environment_of(0, 3)
    monkeypatch.setenv("TSUGIKI_DEVICE", "cuda:5")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert environment_of(0, 3)["TSUGIKI_DEVICE"] == "cuda:5"
