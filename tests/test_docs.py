"""What the documents promise: files that exist, commands that run, Python that works."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import api_page, file_map
from tests.cli.test_cli import in_this_process
from tsugiki.report.svg import columns_of

pytestmark = pytest.mark.precision

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "README.ja.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_map_of_the_files_is_that_of_the_docstrings() -> None:
    page = file_map.PAGE.read_text(encoding="utf-8")
    assert page.split(file_map.START)[1].split(file_map.END)[0] == file_map.file_map(), (
        "python -m tests.file_map"
    )
    assert "`runs/group.py`" in page


def test_the_page_of_the_python_interface_is_that_of_the_docstrings() -> None:
    page = api_page.PAGE.read_text(encoding="utf-8")
    assert page == api_page.api_page(), "python -m tests.api_page"
    import tsugiki

    for name in tsugiki.__all__:
        assert re.search(rf"^### `{name}\b", page, re.M), name


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/how-it-works.md"])
def test_modules_tests_and_names_that_are_pointed_at_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").split(file_map.START)[0]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("src/**/*.py")))
    code += "\n".join(path.read_text(encoding="utf-8") for path in ROOT.rglob("tests/**/*.py"))
    pointed = re.findall(r"`([^`\n]+)`", text)
    assert len(pointed) > 40
    for name in pointed:
        if re.fullmatch(r"(data|model|fast|train|score|runs|study|report|cli|config)/\w+", name):
            assert (ROOT / "src/tsugiki" / f"{name}.py").exists(), name
        elif re.fullmatch(r"[\w./-]+\.(py|toml|md)(::\w+)?", name):
            path, _, test = name.partition("::")
            assert any((root / path).exists() for root in (ROOT, ROOT / "src/tsugiki")), name
            assert not test or f"def {test}(" in code, name
        elif re.fullmatch(r"[A-Za-z_]+(\.[A-Za-z_]+)?", name) and len(name) > 3:
            for part in name.split("."):
                assert re.search(rf"\b{part}\b", code), name


def test_both_pages_of_results_quote_the_benchmark() -> None:
    kept = (ROOT / "benchmarks/workbench/h100_20261125/table2.csv").read_text(encoding="utf-8-sig")
    for name in ("results.md", "results.ja.md"):
        page = ROOT / "docs" / name
        text = page.read_text(encoding="utf-8")
        for number in (".404", ".361", ".695", ".704", ".309", ".322"):
            assert number in text
            assert f"0{number}" in kept


def test_every_environment_variable_that_is_read_stands_on_its_page() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    read = set[str]()
    for path in (ROOT / "src").rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        read |= set(re.findall(r"""environ(?:\.\w+)?[\[(]["'](\w+)""", code))
        read |= set(re.findall(r"\b(?:TSUGIKI|HF)_[A-Z0-9_]+\b", code))
    assert {"TSUGIKI_CACHE", "TSUGIKI_OFFLINE", "HF_TOKEN", "OPENBLAS_NUM_THREADS", "CC"} <= read
    for name in sorted(read):
        assert f"`{name}`" in page, name


def test_both_readmes_install_by_the_same_commands() -> None:
    found = []
    for page in PAGES[:2]:
        lines = re.findall(r"^    (.+)", page.read_text(encoding="utf-8"), re.M)
        found.append([re.sub(r"\s+#.*", "", line) for line in lines if "def " not in line])
    shorter = found[1]  # the Python example stands in the English one alone
    assert [line for line in found[0] if line in shorter] == shorter
    assert "pip install ." in shorter


def test_the_readmes_fit_a_screen_and_a_half() -> None:
    """At most 90 lines of 100 columns: what is longer belongs into docs/."""
    for page in PAGES[:2]:
        lines = page.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 90
        assert max(map(columns_of, lines)) <= 100


@pytest.mark.parametrize(
    "line",
    [
        line.strip()
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("tsugiki ")
    ],
)
def test_commands_of_the_readme(line: str, tmp_path: Path) -> None:
    command = line.split("#", maxsplit=1)[0].strip()
    if command == "tsugiki demo" or "reviews.csv" in command:
        pytest.skip("the demo has its own test; the file is the reader's")
    done = subprocess.run(
        ["bash", "-c", command.replace("tsugiki ", f"{sys.executable} -m tsugiki ", 1)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_the_task_file_of_the_docs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "add-a-task.md").read_text(encoding="utf-8")
    (tmp_path / "reviews.toml").write_text(
        re.search(r"```toml\n(.*?)```", text, re.S).group(1), encoding="utf-8"
    )
    rows = [f"{n} とても良い。,good\n{n} すぐ壊れた。,bad\n" for n in range(20)]
    (tmp_path / "reviews.csv").write_text("text,stars\n" + "".join(rows), encoding="utf-8")
    for command in re.findall(r"^    tsugiki ([^#\n]+)", text, re.M):
        done = in_this_process(monkeypatch, *command.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_first_steps_of_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for file, content in re.findall(r"```\w+ (\S+)\n(.*?)```", text, re.S):
        (tmp_path / file).write_text(content, encoding="utf-8")
    commands = re.findall(r"^    tsugiki ([^#\n]+)", text, re.M)
    assert "--dry-run" in commands[4]
    for command in commands[:5]:
        done = in_this_process(monkeypatch, *command.split(), cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    assert "8 configurations" in done.stdout
    written = tomllib.loads((tmp_path / "reviews.toml").read_text(encoding="utf-8"))
    assert written == tomllib.loads(re.search(r"```toml\n(.*?)```", text, re.S).group(1))


@pytest.mark.slow
def test_the_tutorial_leads_from_a_table_to_a_report(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for file, content in re.findall(r"```\w+ (\S+)\n(.*?)```", text, re.S):
        (tmp_path / file).write_text(content, encoding="utf-8")
    said = {}
    for command in re.findall(r"^    (tsugiki [^#\n]+)", text, re.M):
        done = subprocess.run(
            [sys.executable, "-m", *command.split()], capture_output=True, text=True, cwd=tmp_path
        )
        runs = "--dry-run" not in command and re.match(r"tsugiki (study|report) ", command)
        # Two rows to test on show nothing, as the page says.
        assert done.returncode == (3 if runs else 0), (command, done.stderr)
        said[command.strip()] = done.stdout
    pages = sorted((tmp_path / "tsugiki-runs" / "studies").rglob("report.*.html"))
    assert {page.name for page in pages} == {"report.ja.html", "report.en.html"}
    assert all(
        "については何も言えません" in page.read_text(encoding="utf-8")
        for page in pages
        if page.name == "report.ja.html"
    )
    assert "over 3 seeds" in said["tsugiki report reviews-study.toml"]


def test_both_tutorials_have_the_same_files_and_commands() -> None:
    found = []
    for name in ("tutorial.md", "tutorial.ja.md"):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        blocks = [re.sub(r"\s*#.*", "", block) for block in re.findall(r"```(.*?)```", text, re.S)]
        found.append((blocks, re.findall(r"^    (tsugiki [^#\n]+)", text, re.M)))
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_python_of_the_readme(tmp_path: Path) -> None:
    code = re.search(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S
    ).group(1)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout.split()[0]) <= 1


@pytest.mark.slow
def test_the_demo_learns_and_shows_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tsugiki", "demo", "--out", str(tmp_path / "runs")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = next((tmp_path / "runs" / "studies").rglob("report.md")).read_text(encoding="utf-8")
    assert "サンプル" in page or "sample" in page
    rows = [
        line.split(" | ")
        for line in page.splitlines()
        if line.startswith("| sample_") and "mame-" in line
    ]
    scores = {
        (row[0].strip("| "), row[1]): row[2].replace("*", "") for row in rows if len(row) == 7
    }
    for method in ("mame-LoRA", "mame-FT"):
        assert float(scores["sample_choice", method].split()[1].strip("[,")) > 0.22, (
            "the interval lies above chance"
        )
        assert float(scores["sample_headline", method].split("/")[2].split()[0]) > 0.5, (
            "the lead has 0.33"
        )


def test_the_run_and_study_files_of_the_docs_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "study-files.md").read_text(encoding="utf-8")
    run_file, study_file = re.findall(r"```toml\n(.*?)```", text, re.S)
    (tmp_path / "run.toml").write_text(run_file, encoding="utf-8")
    (tmp_path / "study.toml").write_text(study_file, encoding="utf-8")
    for command in ("check run.toml", "check study.toml", "study study.toml --dry-run"):
        done = in_this_process(monkeypatch, *command.split(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "5 configurations" in done.stdout


@pytest.mark.slow
def test_the_study_file_of_the_docs_runs(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "study-files.md").read_text(encoding="utf-8")
    (tmp_path / "study.toml").write_text(
        re.findall(r"```toml\n(.*?)```", text, re.S)[1], encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tsugiki", "study", "study.toml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr  # one epoch teaches nothing, as the last line says
    assert "Scores on test" in done.stdout
