"""What a command says before it loads torch, and which never do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.precision

KEPT = Path(__file__).parents[1] / "kept"
FIRST, SECOND = (folder.name for folder in sorted((KEPT / "out" / "runs").iterdir())[:2])
RUN = f"out/runs/{FIRST}"
# Ends the process where torch would be loaded, so that what was said before is known.
STOPS_AT_TORCH = """
import os, sys
class Torch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(77)
sys.meta_path.insert(0, Torch())
from tsugiki.cli.commands import main
main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kept")
    for name in ("out", "tasks"):
        shutil.copytree(KEPT / name, made / name)
    shutil.copy(KEPT / "kept.toml", made)
    (made / "adapter").mkdir()
    (made / "rows.csv").write_text("a\n1\n", encoding="utf-8")
    (made / "broken.toml").write_text("name = \n", encoding="utf-8")
    text = (
        '[model]\npath = "builtin"\n[task]\nname = "sample_nli"\n[lora]\n'
        "[train]\nlearning_rate = 1e-3\n"
    )
    (made / "run.toml").write_text(text, encoding="utf-8")
    (made / "no-model.toml").write_text(text.replace("builtin", "nowhere"), encoding="utf-8")
    return made


def until_torch(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", STOPS_AT_TORCH, *command.split()],
        capture_output=True,
        text=True,
        cwd=folder,
    )


@pytest.mark.parametrize(
    "command",
    [
        "ls --out out",
        "ls --out out --sort test --json",
        f"show {RUN}",
        f"compare {RUN} {RUN}",
        "report kept.toml --out out",
        "study paper --dry-run",
        "tasks list",
        "tasks show sample_nli",
        f"score {RUN} --rules all",
    ],
)
def test_what_needs_no_torch_loads_none(command: str, folder: Path) -> None:
    done = until_torch(folder, command)
    assert done.returncode in (0, 3), done.stderr  # 3: a report that lacks something
    assert done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "study papper",
        "study nowhere.toml",
        "study broken.toml",
        "study demo --set train.epoch=1",
        "study demo --set tasks=['nowhere'] --out none",
        "study demo --set models=[{path='nowhere'}] --out none",
        "run nowhere.toml",
        "run no-model.toml",
        "run run.toml --set task.name=jnl",
        "check papper",
        "check no-model.toml",
        "check run.toml --set lora.rank=x",
        "tasks show jnl --tokens",
        "import adapter --model nowhere --task sample_nli",
        "score nowhere",
        "score --model nowhere --task sample_nli",
        f"predict {RUN} nowhere.csv",
        "predict nowhere rows.csv",
        "generate nowhere --text x",
        "export nowhere --to there",
        "try nowhere",
        "report papper",
        "ls --out nowhere",
        "ls --out out --task nowhere",
    ],
)
def test_what_names_alone_refuse_is_refused_without_torch(command: str, folder: Path) -> None:
    done = until_torch(folder, command)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("tsugiki: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    [
        "demo --out new",
        "study demo --out new",
        "run run.toml --out new",
        "check sample_nli",
        "check demo",
        "tasks show sample_nli --tokens",
        "import adapter --model builtin --task sample_nli --out new",
        "score --model builtin --task sample_nli --out new",
        f"score {RUN} --part train",
        f"predict {RUN} rows.csv",
        f"generate {RUN} --text x",
        f"export {RUN} --to there",
        f"try {RUN}",
    ],
)
def test_a_line_comes_before_torch(command: str, folder: Path) -> None:
    done = until_torch(folder, command)
    assert done.returncode == 77, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("tsugiki: ")
    assert line.endswith(": starting …")


def test_a_study_with_runs_of_an_earlier_day_is_not_refused_by_name(folder: Path) -> None:
    """Its report can still be made."""
    gone = folder / "tasks"
    gone.rename(folder / "gone")
    try:
        assert until_torch(folder, "study kept.toml --out out").returncode == 77
        assert until_torch(folder, "study kept.toml --out none").returncode == 2
    finally:
        (folder / "gone").rename(gone)
