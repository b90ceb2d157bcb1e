"""The notebooks of the docs: kept without outputs, and every cell runs and shows what its text
says."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import tsugiki
from tsugiki.runs.reading import RunRecord

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
ROWS = "TRAIN_ROWS, EVAL_ROWS = 160, 60"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_of(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    for code in code_of(path):
        ast.parse(code)
        assert max(map(len, code.splitlines())) <= 100
    assert len(content["cells"]) > 10


def runs_in(folder: Path) -> list[RunRecord]:
    return [tsugiki.read_run(own) for own in sorted((folder / "lora-nyumon" / "runs").iterdir())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_cell_of_the_introduction_to_lora_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same cells over a few examples, from which nothing is learned."""
    program = "\n\n".join(code_of(FOLDER / "lora_nyumon.ipynb"))
    assert program.count(ROWS) == 1, "one cell names the numbers of examples"
    monkeypatch.chdir(tmp_path)
    exec(program.replace(ROWS, "TRAIN_ROWS, EVAL_ROWS = 8, 3"), {})
    runs = runs_in(tmp_path)
    assert len(runs) == 4, "the study's LoRA run is the first one"
    assert {run.status for run in runs} == {"done"}
    assert {run.provenance.rows["validation"] for run in runs} == {3}
    assert sum(run.scores("test") is not None for run in runs) == 2
    assert "レポート（ブラウザで開けます）" in capsys.readouterr().out
    assert list(tmp_path.rglob("report.ja.html"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_introduction_to_lora_shows_what_it_says(tmp_path: Path) -> None:
    """In a kernel where there is one, else cell after cell in one program."""
    path = FOLDER / "lora_nyumon.ipynb"
    if all(map(find_spec, ("nbformat", "nbclient", "ipykernel"))):
        import nbclient
        import nbformat

        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        place = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(notebook, timeout=900, resources=place).execute()
        shown = json.dumps([cell.get("outputs") for cell in notebook.cells], ensure_ascii=False)
        assert "解答の内訳" in shown
        assert "<svg" in shown
    else:
        program = "\n\n".join(code_of(path))
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    runs = runs_in(tmp_path)
    assert len(runs) == 4
    assert {run.status for run in runs} == {"done"}

    def score(rate: float, rank: int) -> tuple[float, int]:
        [run] = [
            run
            for run in runs
            if run.config.train.learning_rate == rate
            and run.config.lora is not None
            and run.config.lora.rank == rank
        ]
        scores = run.scored("validation")
        unended = scores.failures.get("no_eos", 0) + scores.failures.get("repetition", 0)
        return scores.main.value, unended

    (good, ended), (slow, unended), (small, _) = score(2e-3, 16), score(1e-5, 16), score(2e-3, 1)
    assert good > small > slow
    assert unended > 30 > ended, "of 60 answers"
