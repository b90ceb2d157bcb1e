"""tsugiki from Python: light to import, silent in a pipe, results that show themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import tsugiki
from tests.build import run_config, study_of
from tests.build_runs import keep, part_right, save_made
from tests.build_runs import study_of as made_study
from tsugiki.errors import ConfigError, TsugikiError
from tsugiki.report.compare import compare_runs
from tsugiki.report.results import StudyReport
from tsugiki.runs.store import Store
from tsugiki.study.cells import collect

HEAVY = ("torch", "transformers", "numpy", "pydantic", "rich", "jinja2", "pandas", "IPython")


def test_import_is_light() -> None:
    code = (
        f"import sys, tsugiki; assert tsugiki.Listener; tsugiki.__version__; "
        f"print([name for name in {('torch', 'transformers', 'numpy', 'rich')} "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = f"import sys, tsugiki; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = tsugiki.runn


@pytest.fixture(scope="module")
def two(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> tuple[tsugiki.RunResult, tsugiki.RunResult]:
    """Two runs of one task, trained in a moment."""
    from tests.build import TRAIN, save_task

    root = tmp_path_factory.mktemp("two")
    task = save_task(root / "task")
    first, second = (
        tsugiki.run(
            run_config(
                model_folder,
                task,
                train={**TRAIN, "epochs": 4, "learning_rate": rate},
                score={"validations": 2},
            ),
            out=root / "out",
            language=language,
        )
        for rate, language in ((5e-3, "en"), (1e-2, "ja"))
    )
    return first, second


def test_a_run_shows_its_scores(two: tuple[tsugiki.RunResult, tsugiki.RunResult]) -> None:
    first, second = two
    english, japanese = first._repr_html_(), second._repr_html_()
    score = first.scored("validation").main
    assert f"{score.value:.3f}" in english
    assert "did not end" in english or "another candidate" in english
    assert "解答の内訳" in japanese
    assert "Answers" not in japanese
    for page in (english, japanese):
        ElementTree.fromstring(f"<div>{page}</div>")
    again = tsugiki.read_run(first.folder)
    assert again.main_score("validation") == score.value
    with pytest.raises(TsugikiError, match="no such folder"):
        tsugiki.read_run(first.folder / "not-there")


def test_two_runs_are_compared_as_the_command_does(
    two: tuple[tsugiki.RunResult, tsugiki.RunResult],
) -> None:
    first, second = two
    comparison = first.compare(second)
    assert comparison == compare_runs(first, second, "validation")
    assert f"{comparison.difference:+.3f}" in comparison._repr_html_()
    with pytest.raises(TsugikiError, match="was not scored on test"):
        first.compare(second, "test")


def test_figures_are_svg(two: tuple[tsugiki.RunResult, tsugiki.RunResult]) -> None:
    for run in two:
        assert run.figures.keys() == {"loss", "curve"}
        for svg in run.figures.values():
            assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
            assert svg._repr_svg_() == svg


def test_frames_of_a_run(two: tuple[tsugiki.RunResult, tsugiki.RunResult]) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    run = two[0]
    scores = run.frame()
    assert list(scores.columns) == ["part", "score", "value", "low", "high", "n"]
    assert scores["value"][0] == run.main_score("validation")
    steps = run.frame("steps")
    assert list(steps["loss"]) == run.losses
    assert list(steps["step"]) == list(range(1, 13))
    assert sorted(set(run.frame("validations")["step"])) == [4, 8]
    assert len(run.frame("answers")) == 9
    with pytest.raises(TsugikiError, match="must be one of scores, steps"):
        run.frame("answer")


def test_a_frame_without_pandas_says_what_to_install(
    two: tuple[tsugiki.RunResult, tsugiki.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(TsugikiError, match="pip install pandas"):
        two[0].frame()


@pytest.fixture
def made(tmp_path: Path) -> StudyReport:
    """LoRA and FT of a study whose method and title somebody wrote with signs of HTML."""
    task = save_made(tmp_path / "task")
    spec = made_study(task, {"<b>LoRA</b>": [1e-3], "FT": [1e-4, 1e-3]})
    store = Store(tmp_path / "out")
    for cell in collect(spec, store).cells:
        share = 0.9 if cell.method.kind == "lora" else 0.7
        right = {part: part_right(300, share) for part in ("validation", "test")}
        keep(store, cell.config, right)
    return tsugiki.read_study(spec.model_dump(exclude_none=True), tmp_path / "out", "ja")


def test_a_study_shows_its_verdicts_and_scores(made: StudyReport) -> None:
    page = made._repr_html_()
    assert "<b>LoRA" not in page
    assert "&lt;b&gt;LoRA" in page
    assert made.statements
    assert all(re.search(r"[ぁ-ん]", line) for line in made.statements)
    assert "0.900" in page
    assert str(made.folder) in page
    ElementTree.fromstring(f"<div>{page}</div>")
    assert "forest" in made.figures
    for svg in made.figures.values():
        ElementTree.fromstring(svg)
    first = next(iter(made.records))
    assert made.run(first).folder == made.records[first].folder
    with pytest.raises(TsugikiError, match="must be one of"):
        made.run("nothing")


def test_frames_of_a_study(made: StudyReport) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    results, comparison = made.frame(), made.frame("comparison")
    test = results[(results["part"] == "test") & (results["metric"] == "accuracy")]
    assert 0.9 in set(test["value"].round(3))
    assert comparison["difference"].round(3).abs().max() == 0.2


def test_a_study_from_python_is_silent_in_a_pipe_and_tells_listeners(
    model_folder: Path, task_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Count(tsugiki.Listener):
        ended, closed = 0, 0

        def on_end(self, record: Any) -> None:
            self.ended += 1

        def close(self) -> None:
            self.closed += 1

    count = Count()
    study = tsugiki.run_study(study_of(model_folder, task_file), tmp_path, listeners=[count])
    assert (count.ended, count.closed) == (4, 1)
    assert capfd.readouterr() == ("", "")
    assert (study.folder / "report.ja.html").exists()
    assert study._repr_html_()
    with pytest.raises(ConfigError, match='Did you mean "wandb"'):
        tsugiki.run_study(study_of(model_folder, task_file), tmp_path, listeners=["wand"])


def test_a_listener_that_fails_in_a_pipe_is_a_warning(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    class Broken(tsugiki.Listener):
        def on_end(self, record: Any) -> None:
            raise ValueError("no network")

    config = run_config(model_folder, task_file)
    with pytest.warns(UserWarning, match="Broken hears nothing more: ValueError: no network"):
        run = tsugiki.run(config, tmp_path, listeners=[Broken()])
    assert run.status == "done"


@pytest.mark.slow
def test_a_notebook_shows_one_line_and_the_result(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """In a real kernel."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    config = run_config(model_folder, task_file).model_dump(exclude_none=True)
    cells = [
        f"import tsugiki\nrun = tsugiki.run({config!r}, {str(tmp_path)!r}, language='ja')\nrun",
        "run.figures['loss']",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    shown, figure = (cell["outputs"] for cell in notebook.cells)
    lines = [output for output in shown if output["output_type"] == "display_data"]
    assert len(lines) == 1, "one line, updated where it stands"
    [result] = [output for output in shown if output["output_type"] == "execute_result"]
    assert "解答の内訳" in result["data"]["text/html"]
    assert "image/svg+xml" in figure[0]["data"]
