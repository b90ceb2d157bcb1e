"""Searches besides the grid: random samples, Optuna's TPE in rounds, successive halving; resumed
and reported from the records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.build import in_words, study_of
from tsugiki.config.run import RunConfig
from tsugiki.config.study import StudySpec
from tsugiki.errors import ConfigError
from tsugiki.report.material import gather
from tsugiki.report.write import write_report
from tsugiki.runs.record import Outcome
from tsugiki.runs.store import Store
from tsugiki.study.cells import collect, expand, parse_study
from tsugiki.study.search import settings_of
from tsugiki.study.sweep import run_study

RATES = {"low": 1e-4, "high": 3e-2, "log": True}


def searched(model: Path, task: Path, search: dict, grid: dict, **changes: object) -> StudySpec:
    method = {"name": "LoRA", "kind": "lora", "search": search, "grid": grid}
    return parse_study({**study_of(model, task), "methods": [method], **changes}, "study")


def test_a_random_sample_is_the_same_every_time_and_holds_no_cell_twice(
    model_folder: Path, task_file: Path
) -> None:
    grid = {"learning_rate": RATES, "rank": {"low": 1, "high": 3}, "targets": ["q+v", "o"]}
    study = searched(model_folder, task_file, {"kind": "random", "trials": 12, "seed": 5}, grid)
    cells = expand(study)
    assert [cell.label for cell in cells] == [cell.label for cell in expand(study)]
    assert len({cell.config for cell in cells}) == 12
    assert {cell.config.lora.rank for cell in cells} == {1, 2, 3}
    rates = [cell.config.train.learning_rate for cell in cells]
    assert all(1e-4 <= rate <= 3e-2 for rate in rates)
    assert min(rates) < 1e-3 < max(rates), "spread over orders of magnitude"
    other = searched(model_folder, task_file, {"kind": "random", "trials": 12, "seed": 6}, grid)
    assert {cell.config for cell in expand(other)} != {cell.config for cell in cells}
    few = searched(
        model_folder,
        task_file,
        {"kind": "random", "trials": 12},
        {"learning_rate": [1e-3], "rank": [1, 2]},
    )
    assert len(expand(few)) == 2, "there are no more"


@pytest.mark.parametrize(
    ("search", "grid", "message"),
    [
        (
            {},
            {"learning_rate": RATES},
            r'grid.learning_rate: a range needs search.kind = "random" or "tpe"',
        ),
        ({"kind": "random"}, {"learning_rate": {"low": 2, "high": 1}}, "low must be below high"),
        (
            {"kind": "random"},
            {"learning_rate": {"low": 0, "high": 1, "log": True}},
            "above 0 with log",
        ),
        ({"trials": 5}, {"learning_rate": [1e-3]}, "trials: kind = grid does not read it"),
        (
            {"kind": "random", "rounds": 2},
            {"learning_rate": [1e-3]},
            "rounds: kind = random does not read it",
        ),
        (
            {"prune": True},
            {"learning_rate": [1e-3], "epochs": [1, 2]},
            "take epochs and batch out of the grid",
        ),
        ({"kind": "best"}, {"learning_rate": [1e-3]}, "must be 'grid', 'random' or 'tpe'"),
    ],
)
def test_a_wrong_search_is_one_clear_line(
    search: dict, grid: dict, message: str, model_folder: Path, task_file: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        searched(model_folder, task_file, search, grid)


def test_tpe_learns_from_round_to_round_and_is_found_again(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    study = searched(
        model_folder,
        task_file,
        {"kind": "tpe", "trials": 9, "rounds": 3},
        {"learning_rate": RATES, "rank": [1, 2]},
        lanes=3,
    )
    assert len(expand(study)) == 3, "before anything has run only the first round is known"
    result = run_study(study, Store(tmp_path))
    labels = [cell.label for cell in result.cells]
    assert len(labels) == 9
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    assert [cell.label for cell in run_study(study, Store(tmp_path)).cells] == labels, (
        "asked again, it asks the same"
    )
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    found = collect(study, Store(tmp_path))
    assert [cell.label for cell in found.cells] == labels
    assert found.records.keys() == set(labels)
    page = write_report(gather(found), tmp_path)
    assert "9 runs" in page.read_text(encoding="utf-8")


def test_what_tpe_is_told_changes_what_it_asks(model_folder: Path, task_file: Path) -> None:
    pytest.importorskip("optuna")
    study = searched(
        model_folder,
        task_file,
        {"kind": "tpe", "trials": 24, "rounds": 2},
        {"learning_rate": RATES},
    )
    method, first = study.methods[0], expand(study)[0]

    class Told:
        """A record that likes high, or low, rates; trained again, it scored nothing."""

        status = "done"

        def __init__(self, rate: float, sign: float, again: bool):
            self.outcome = Outcome(status="done", search_score=sign * rate if again else None)
            self.value = 0.0 if again else sign * rate

        def main_score(self, part: str) -> float:
            return self.value

    def later(sign: float, again: bool = False) -> list[float]:
        def config_of(settings: dict) -> RunConfig:
            return first.config.model_copy(
                update={"train": first.config.train.model_copy(update=settings)}
            )

        asked = list(
            settings_of(
                method, config_of, lambda config: Told(config.train.learning_rate, sign, again)
            )
        )
        return [one["learning_rate"] for one in asked[12:]]

    assert sum(later(1.0)) > 2 * sum(later(-1.0))
    assert later(1.0, again=True) == later(1.0)


def test_successive_halving_ends_the_lower_half_twice(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """On a CPU too the cells of a pruned search train together: they are compared."""
    grid = {"learning_rate": [1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2], "targets": ["all-linear"]}
    study = searched(
        model_folder, task_file, {"prune": True}, grid, train={"epochs": 4, "precision": "fp32"}
    )
    result = run_study(study, Store(tmp_path))
    records = [result.records[cell.label] for cell in result.cells]
    assert sorted(record.status for record in records) == ["done", "done", *["pruned"] * 4]
    assert {record.outcome.lanes for record in records} == {6}
    for record in records:
        seen = [one.step for one in record.validations]
        assert record.outcome.steps == 12
        assert seen == ([3] if record.outcome.reason == "pruned after step 3" else [3, 6])
        assert not (record.folder / "checkpoint").exists()
    at_first = {one: record.validations[0].scores.main.value for one, record in enumerate(records)}
    ended = [
        one for one, record in enumerate(records) if record.outcome.reason == "pruned after step 3"
    ]
    assert len(ended) == 3
    assert max(at_first[one] for one in ended) <= min(
        value for one, value in at_first.items() if one not in ended
    )
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    run_study(study, Store(tmp_path))
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    grid_table = next(table for table in in_words(gather(result), "en") if table.name == "grid")
    assert sum("pruned after step" in " ".join(row) for row in grid_table.rows) == 4


def test_a_pruned_group_killed_between_rungs_ends_the_same_lanes(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tsugiki.runs.rounds import run_group
    from tsugiki.train import engine
    from tsugiki.train.step import EagerStep

    grid = {"learning_rate": [1e-5, 1e-3, 1e-2, 3e-2], "targets": ["all-linear"]}
    study = searched(
        model_folder, task_file, {"prune": True}, grid, train={"epochs": 4, "precision": "fp32"}
    )
    configs = [cell.config for cell in expand(study)]
    whole = run_group(configs, Store(tmp_path / "whole"), lanes=4, prune=True)
    monkeypatch.setitem(engine.fit.__kwdefaults__, "checkpoint_every_s", 0.0)
    step = EagerStep.__call__

    def killed(self: EagerStep, lanes: list) -> list:
        if lanes[0].step == 5:
            raise KeyboardInterrupt
        return step(self, lanes)

    with monkeypatch.context() as patched:
        patched.setattr(EagerStep, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            run_group(configs, Store(tmp_path / "killed"), lanes=4, prune=True)
    resumed = run_group(configs, Store(tmp_path / "killed"), lanes=4, prune=True)
    for one, other in zip(resumed, whole, strict=True):
        assert one.status == other.status
        assert [(seen.step, seen.scores.main) for seen in one.validations] == [
            (seen.step, seen.scores.main) for seen in other.validations
        ]
        if one.status == "done":
            assert (
                json.loads((one.folder / "history.json").read_text())["loss"]
                == json.loads((other.folder / "history.json").read_text())["loss"]
            )


def test_pruned_cells_are_trained_in_full_when_they_are_wanted_so(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    grid = {"learning_rate": [1e-5, 1e-3, 1e-2, 3e-2], "targets": ["all-linear"]}
    train = {"epochs": 4, "precision": "fp32"}
    pruned = searched(model_folder, task_file, {"prune": True}, grid, train=train)
    result = run_study(pruned, Store(tmp_path))
    assert sorted(record.status for record in result.records.values()) == [
        "done",
        "pruned",
        "pruned",
        "pruned",
    ]
    names = [table.name for table in in_words(gather(result), "en")]
    assert not next(
        table for table in in_words(gather(result), "en") if table.name == "landscape"
    ).rows, "what was pruned would be missing from the counts"
    assert "landscape" in names
    whole = run_study(searched(model_folder, task_file, {}, grid, train=train), Store(tmp_path))
    assert {record.status for record in whole.records.values()} == {"done"}
    assert all(record.outcome.pruned_score is None for record in whole.records.values())


def test_one_methods_cells_do_not_end_anothers(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    grid = {"learning_rate": [1e-6, 3e-2]}
    methods = [
        {
            "name": name,
            "kind": "lora",
            "search": {"prune": True},
            "grid": {**grid, "targets": [name]},
        }
        for name in ("q+v", "all-linear")
    ]
    given = {
        **study_of(model_folder, task_file),
        "methods": methods,
        "train": {"epochs": 4, "precision": "fp32"},
    }
    result = run_study(parse_study(given, "study"), Store(tmp_path))
    assert {key[2] for key in result.chosen} == {"q+v", "all-linear"}


def test_a_grid_from_nought_has_no_ratio_to_widen_by(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    from tsugiki.report.landscape import _wider

    assert _wider([0.0, 0.1], 0.1) == []
    assert _wider([0.0, 0.1], 0.0) == []
    assert _wider([1e-4, 2e-4], 2e-4) == [4e-4, 8e-4]
    assert _wider([4, 8, 16], 16) == [32, 64]
    assert _wider([2, 3, 4], 4) == [5, 6]
    assert _wider([2, 3, 4], 3) == []
