"""How long the rest of a study takes: from what was measured, and silent before."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.build import save_task, study_of
from tsugiki.cli.progress import Display, duration
from tsugiki.runs.events import Events
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import Store
from tsugiki.study.cells import Cell, StudyResult, collect, parse_study
from tsugiki.study.left import Left, Remaining
from tsugiki.study.sweep import run_study


@pytest.fixture(scope="module")
def made(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Only read by the tests."""
    folder = tmp_path_factory.mktemp("made")
    study = parse_study(study_of(model_folder, save_task(folder / "task")), "study")
    store = Store(folder)
    run_study(study, store)
    return collect(study, store)


def without(result: StudyResult, cells: Sequence[Cell]) -> StudyResult:
    """The study as if these had not been run yet, and nothing been chosen."""
    labels = {cell.label for cell in cells}
    kept = {label: record for label, record in result.records.items() if label not in labels}
    return StudyResult(study=result.study, cells=result.cells, records=kept)


class Clock:
    """Seconds that pass when a test says so."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def remaining(result: StudyResult, known: Sequence[RunRecord] = ()) -> tuple[Remaining, Clock]:
    clock = Clock()
    return Remaining(result=result, known=known, clock=clock), clock


def test_before_anything_is_measured_nothing_is_said(made: StudyResult) -> None:
    counted, _ = remaining(without(made, made.cells))
    assert counted.now() is None
    counted.begin([made.cells[0].config])
    assert counted.now() is None


def test_the_running_group_measures_its_kind(made: StudyResult) -> None:
    """And what is not measured is not guessed."""
    counted, clock = remaining(without(made, made.cells))
    first = made.cells[0]
    counted.begin([first.config])
    clock.seconds += 10.0
    counted.train(SimpleNamespace(step=10, steps=40, left_s=30.0))
    same = [cell for cell in made.cells if cell.key == first.key]
    epochs = sum(cell.config.train.epochs for cell in same) / first.config.train.epochs
    left = counted.now()
    assert left is not None
    assert left.seconds == pytest.approx(40.0 * epochs - 10.0)
    assert not left.whole
    clock.seconds += 5.0
    assert counted.now() == Left(pytest.approx(40.0 * epochs - 15.0), whole=False)


def test_earlier_runs_of_the_kind_tell_all_of_it(made: StudyResult) -> None:
    known = list(made.records.values())
    counted, _ = remaining(without(made, made.cells), known)
    counted.begin([made.cells[0].config])
    first = counted.now()
    assert first is not None
    assert first.whole
    counted.begin([made.cells[1].config])  # the one before has ended
    second = counted.now()
    assert second is not None
    assert 0 < second.seconds < first.seconds


def test_workers_share_what_is_left(made: StudyResult) -> None:
    """Told by runs that were made side by side, and by their own steps; what one of them has done
    already is not counted twice."""
    known = list(made.records.values())
    assert any(record.outcome.exclusive for record in known), "they were alone on the device"
    counted, clock = remaining(without(made, made.cells), known)
    first, second = made.cells[:2]
    assert first.key == second.key
    counted.begin([first.config], 1)
    assert counted.now() is None, "alone a run was faster"
    clock.seconds += 4.0
    counted.begin([second.config], 2)
    clock.seconds += 4.0
    counted.train(SimpleNamespace(step=10, steps=40, left_s=12.0), 1)
    left = counted.now()
    assert left is not None
    assert left.seconds == pytest.approx((20.0 - 8.0 + 20.0 - 4.0) / 2)
    assert not left.whole
    clock.seconds += 10.0
    assert counted.now() == Left(pytest.approx(4.0), whole=False)
    counted.begin([], 1)
    counted.begin([], 2)
    assert counted.running == {}


def test_what_was_finished_on_an_earlier_day_is_not_left(made: StudyResult) -> None:
    known = list(made.records.values())
    counted, _ = remaining(without(made, made.cells), known)
    counted.begin([made.cells[0].config])
    everything = counted.now()
    counted, _ = remaining(without(made, made.cells), known)
    counted.skip(without(made, made.cells[:1]))
    counted.begin([made.cells[0].config])
    left = counted.now()
    assert everything is not None
    assert left is not None
    assert left.seconds < everything.seconds


def test_of_a_finished_study_nothing_is_left(made: StudyResult) -> None:
    counted, _ = remaining(made)
    counted.begin()
    assert counted.now() is None


def test_a_study_tells_it_while_it_runs(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    study, asked = parse_study(study_of(model_folder, task_file), "study"), []
    heard: list[Left | None] = []
    run_study(
        study,
        Store(tmp_path),
        Events(on_score=lambda part, done, total: heard.append(asked[0]())),
        on_cell=lambda key, values: heard.append(asked[0]()),
        on_left=asked.append,
    )
    assert heard[0] is None
    told = [left for left in heard if left is not None]
    assert told
    assert max(left.seconds for left in told) < 600


@pytest.mark.parametrize(
    ("left", "english", "japanese"),
    [
        (None, "x", "x"),
        (Left(20.0, whole=False), "x", "x"),
        (Left(20.0, whole=True), "x · less than a minute left in all", "x · 全体の残り 1 分未満"),
        (Left(725.0, whole=True), "x · 12 min left in all", "x · 全体の残り 12 分"),
        (
            Left(7500.0, whole=False),
            "x · at least 2 h 5 min left in all",
            "x · 全体の残り 2 時間 5 分以上",
        ),
    ],
)
def test_a_line_ends_with_what_is_left_in_all(
    left: Left | None, english: str, japanese: str
) -> None:
    for language, expected in (("en", english), ("ja", japanese)):
        display = Display(language)
        display.console = Console(file=io.StringIO(), width=200)
        display.on_left(lambda: left)
        display._show("x")
        assert display.console.file.getvalue() == f"{expected}\n"
    assert duration(3600.0, "en") == "1 h 0 min"
