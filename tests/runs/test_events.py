"""What listeners hear of runs: each lane's own numbers, how it ended, nothing twice; and that none
of them can end a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.build import TRAIN, run_config, study_of
from tsugiki.config.run import RunConfig
from tsugiki.runs.events import SILENT, Events, Guarded, Listener, joined, listening
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import Scores
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.study.cells import parse_study
from tsugiki.study.sweep import run_study
from tsugiki.train.engine import Interrupted


class Heard(Listener):
    """Keeps everything by the run's folder name."""

    def __init__(self) -> None:
        self.names: dict[RunConfig, str] = {}
        self.begun: list[tuple[str, int]] = []
        self.values: dict[str, dict[int, Mapping[str, float]]] = {}
        self.seen: dict[str, list[int]] = {}
        self.ended: list[tuple[str, str]] = []
        self.scored: list[tuple[str, str]] = []
        self.closed = 0

    def on_begin(self, record: RunRecord, after: int) -> None:
        self.names[record.config] = record.folder.name
        self.begun.append((record.folder.name, after))

    def on_values(self, config: RunConfig, step: int, values: Mapping[str, float]) -> None:
        assert step not in self.values.setdefault(self.names[config], {})
        self.values[self.names[config]][step] = values

    def on_validation(self, config: RunConfig, step: int, scores: Scores) -> None:
        self.seen.setdefault(self.names[config], []).append(step)

    def on_end(self, record: RunRecord) -> None:
        self.ended.append((record.folder.name, record.status))

    def on_scored(self, record: RunRecord, part: str) -> None:
        self.scored.append((record.folder.name, part))

    def close(self) -> None:
        self.closed += 1


def events_of(heard: Listener) -> Events:
    return joined(SILENT, [Guarded(heard, pytest.fail)])


def history(record: RunRecord) -> dict[str, list[float]]:
    return dict(json.loads((record.folder / "history.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(("method", "lanes"), [("lora", 1), ("lora", 3), ("full", 1)])
def test_each_lane_tells_its_own_numbers_at_every_tenth_step_and_its_last(
    method: str, lanes: int, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"method": "full", "lora": None} if method == "full" else {}
    configs = [
        run_config(
            model_folder,
            task_file,
            **changes,
            train={**TRAIN, "epochs": 8, "learning_rate": rate},
            score={"validations": 2},
        )
        for rate in (1e-3, 2e-3, 5e-3)
    ]
    heard = Heard()
    store, groups = Store(tmp_path), [configs] if method == "lora" else [[own] for own in configs]
    records = [
        record
        for group in groups
        for record in run_group(group, store, events_of(heard), lanes=lanes)
    ]
    for record in records:
        name, kept = record.folder.name, history(record)
        assert sorted(heard.values[name]) == [10, 20, 24]
        for step, values in heard.values[name].items():
            assert values == {
                "loss": kept["loss"][step - 1],
                "gradient_norm": kept["norm"][step - 1],
                "learning_rate": kept["learning_rate"][step - 1],
            }
        assert heard.seen[name] == [own.step for own in record.validations] == [8, 16]
    assert sorted(heard.ended) == sorted((record.folder.name, "done") for record in records)
    run_group(groups[0], store, events_of(again := Heard()))
    assert (again.begun, again.values, again.ended) == ([], {}, []), "only read"


def test_a_stopped_run_tells_the_rest_when_it_goes_on(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    config = run_config(model_folder, task_file, train={**TRAIN, "epochs": 8})

    class StopAt20(Heard):
        def on_values(self, config: RunConfig, step: int, values: Mapping[str, float]) -> None:
            super().on_values(config, step, values)
            if step == 20:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)

    first, second = StopAt20(), Heard()
    with pytest.raises(Interrupted), listening(SILENT, [first], pytest.fail) as events:
        run_group([config], Store(tmp_path), events)
    assert first.closed == 1
    assert first.ended == []
    [record] = run_group([config], Store(tmp_path), events_of(second))
    assert [after for _, after in second.begun] == [20]
    assert sorted(second.values[record.folder.name]) == [24]


def test_a_run_that_goes_on_from_a_longer_one_tells_all_its_steps(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    configs = [
        run_config(model_folder, task_file, train={**TRAIN, "epochs": epochs}) for epochs in (4, 8)
    ]
    heard = Heard()
    short, long = run_group(configs, Store(tmp_path), events_of(heard))
    assert short.outcome.branch is not None
    assert sorted(heard.values[short.folder.name]) == [10, 12]
    assert sorted(heard.values[long.folder.name]) == [10, 20, 24]
    assert heard.values[short.folder.name][10] == heard.values[long.folder.name][10]


def test_a_study_tells_of_failures_seeds_and_scores_on_test(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    spec = parse_study({**study_of(model_folder, task_file), "seeds": 2}, "test")
    heard, cells = Heard(), list[str]()
    result = run_study(
        spec, Store(tmp_path), events_of(heard), on_cell=lambda key, values: cells.append(key)
    )
    statuses = [status for _, status in heard.ended]
    assert statuses.count("failed") == 1
    assert statuses.count("done") == 5, "three cells, and another seed of each choice"
    tested = {run.folder.name for cell in result.chosen.values() for run in result.seeds(cell)}
    assert {name for name, part in heard.scored if part == "test"} == tested
    assert len(heard.scored) == len(tested) == 4
    assert "cell" in cells
    assert "chosen" in cells


def test_a_listener_that_fails_is_said_once_and_ends_nothing(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    class Broken(Listener):
        calls = 0

        def on_values(self, config: RunConfig, step: int, values: Mapping[str, float]) -> None:
            self.calls += 1
            raise OSError(28, "No space left on device", "events")

        def close(self) -> None:
            raise ValueError("still full")

    broken, said = Broken(), list[str]()
    config = run_config(model_folder, task_file, train={**TRAIN, "epochs": 8})
    with listening(Events(on_note=said.append), [broken], said.append) as events:
        [record] = run_group([config], Store(tmp_path), events)
    assert record.status == "done"
    assert broken.calls == 1
    said = [line for line in said if line.startswith("Broken")]
    assert said == ["Broken hears nothing more: events: No space left on device"]
