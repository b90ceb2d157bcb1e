"""What is packed, and that it can be installed: a wheel and a source archive, built as for an
index."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest

import tsugiki
from tsugiki.cli.try_page import app_of
from tsugiki.data.rows import arrow_for
from tsugiki.errors import TsugikiError
from tsugiki.score import japanese
from tsugiki.study import search

ROOT = Path(__file__).parents[1]
VERSION = tsugiki.__version__


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both archives of this source."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"tsugiki-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as packed:
        return Parser().parsestr(packed.read(f"tsugiki-{VERSION}.dist-info/METADATA").decode())


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    source = ROOT / "src"
    ours = {
        path.relative_to(source).as_posix()
        for path in (source / "tsugiki").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with ZipFile(wheel) as packed:
        names = set(packed.namelist())
    about = {name for name in names if name.startswith(f"tsugiki-{VERSION}.dist-info/")}
    assert names - about == ours
    for name in (
        "tsugiki/py.typed",
        "tsugiki/presets/words.ja.toml",
        "tsugiki/presets/studies/demo.toml",
        "tsugiki/presets/tasks/sample_nli.toml",
        "tsugiki/presets/models/tsugiki-mame/model.safetensors",
    ):
        assert name in ours
    for name in ("LICENSE", "NOTICE"):
        assert f"tsugiki-{VERSION}.dist-info/licenses/{name}" in about


def contents(wheel: Path) -> dict[str, bytes]:
    """What a wheel installs, by name."""
    with ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def test_a_wheel_from_the_source_archive_is_the_same(
    built: Path, wheel: Path, tmp_path: Path
) -> None:
    """The same files, byte by byte: what is proved of one of the archives holds for the other."""
    with tarfile.open(built / f"tsugiki-{VERSION}.tar.gz") as packed:
        packed.extractall(tmp_path / "source", filter="data")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=tmp_path / "source" / f"tsugiki-{VERSION}",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = contents(wheel), contents(tmp_path / "dist" / wheel.name)
    assert theirs.keys() == ours.keys()
    assert [name for name in ours if theirs[name] != ours[name]] == []


def test_the_source_archive_holds_what_is_needed_to_build_test_and_cite(built: Path) -> None:
    with tarfile.open(built / f"tsugiki-{VERSION}.tar.gz") as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    for name in (
        *("pyproject.toml", "Makefile", "constraints.txt", "README.md", "README.ja.md"),
        *("LICENSE", "NOTICE", "CHANGELOG.md", "CITATION.cff", "SECURITY.md"),
        *("src/tsugiki/py.typed", "src/tsugiki/presets/models/tsugiki-mame/model.safetensors"),
        *("tests/test_package.py", "docs/how-it-works.md"),
    ):
        assert name in names
    rooms = {"src", "tests", "docs", "benchmarks", "recipes", "log"}
    assert {name.split("/")[0] for name in names if "/" in name} == rooms


def test_installing_it_brings_what_japanese_text_needs(metadata: Message) -> None:
    core = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    names = {re.split(r"[<>=;\s]", need)[0] for need in core}
    assert {"torch", "fugashi", "unidic-lite", "neologdn", "emoji", "rouge-score"} <= names
    extras = metadata.get_all("Provides-Extra", [])
    assert "ja" in extras, "commands from before 0.2 name it"
    assert not [need for need in metadata.get_all("Requires-Dist", []) if "'ja'" in need]


def test_the_version_has_one_source_and_the_changelog_knows_it(metadata: Message) -> None:
    assert metadata["Version"] == VERSION
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"^## {re.escape(VERSION)} \(\d{{4}}-\d\d-\d\d\)$", changes, re.M)
    cited = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.search(rf'^version: "?{re.escape(VERSION)}"?$', cited, re.M)


def test_what_it_was_run_on_is_what_it_says(metadata: Message) -> None:
    said = metadata.get_all("Classifier", [])
    assert "Typing :: Typed" in said
    assert [name for name in said if name.startswith("Operating System")] == [
        "Operating System :: POSIX :: Linux"
    ]


@pytest.mark.parametrize(
    ("library", "use", "advice"),
    [
        ("pyarrow", lambda: arrow_for(Path("rows.parquet")), "pyarrow"),
        ("ipadic", lambda: japanese.segment_ipadic("犬"), "ipadic"),
        ("starlette.applications", lambda: app_of(None, "en"), "starlette uvicorn"),
        (
            "optuna",
            lambda: next(search._learnt(SimpleNamespace(name="LoRA"), None, None)),
            "optuna",
        ),
    ],
)
def test_a_library_that_is_missed_is_named_as_what_to_install(
    library: str, use: Callable[[], object], advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    japanese._ipadic.cache_clear()
    with pytest.raises(TsugikiError, match=rf"Run: pip install {advice}$"):
        use()


def test_nothing_is_advised_that_is_not_published() -> None:
    """An extra of ours can be had from an index alone; a library's name can be had anyhow."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")]
    for page in [*pages, *(ROOT / "src").rglob("*.toml")]:
        text = page.read_text("utf-8")
        assert not re.search(r"tsugiki\[\w|pip install (-U )?\"?tsugiki\b(?!-)", text), page


@pytest.mark.slow
def test_a_fresh_environment_needs_nothing_but_the_source_archive(
    built: Path, wheel: Path, tmp_path: Path
) -> None:
    """A new environment, an empty folder, no network once it is installed: the demo runs. Of the
    wheel that is said by it, too: what is installed are the wheel's files, byte by byte."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "new"], check=True)
    programs = tmp_path / "new" / ("Scripts" if sys.platform == "win32" else "bin")
    empty = tmp_path / "empty"
    empty.mkdir()
    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    outside |= {"TSUGIKI_OFFLINE": "1", "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}

    def runs(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [programs / program, *arguments], cwd=empty, env=outside, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    [archive] = built.glob("*.tar.gz")
    runs("python", "-m", "pip", "install", "--quiet", str(archive))
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    installed = Path(runs("python", "-c", purelib).strip())
    for name, content in contents(wheel).items():
        if not name.endswith("/RECORD"):  # pip adds its own files there
            assert (installed / name).read_bytes() == content, name
    assert runs("tsugiki", "--version") == f"tsugiki {VERSION}\n"
    assert "sample_headline" in runs("tsugiki", "tasks", "list")
    assert "report.ja.html" in runs("tsugiki", "demo")
    assert [path.name for path in empty.iterdir()] == ["tsugiki-runs"]
