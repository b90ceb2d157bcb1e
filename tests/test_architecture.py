"""The house rules, kept by machine: layers, sizes, names, what may import torch."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from unicodedata import east_asian_width

import pytest

ROOT = Path(__file__).parents[1] / "src" / "tsugiki"
FILES = sorted(ROOT.rglob("*.py"))
RANK = {
    "words": 0,
    "errors": 0.5,
    "config": 1,
    "files": 1,
    "network": 1.2,
    "toml": 1.5,
    "data": 2,
    "model": 2,
    "fast": 3,
    "train": 4,
    "score": 4,
    "runs": 5,
    "study": 6,
    "report": 7,
    "trackers": 7,
    "cli": 8,
}
NO_TORCH = [
    "errors",
    "words",
    "config.run",
    "config.study",
    "config.task",
    "files",
    "network",
    "toml",
    "data.tasks",
    "data.leaks",
    "data.sources",
    "data.tokenizer",
    "score.japanese",
    "score.metrics",
    "score.statistics",
    "score.rules",
    "score.failures",
    "train.cost",
    "train.history",
    "runs.record",
    "runs.reading",
    "runs.identity",
    "runs.store",
    "runs.methods",
    "runs.events",
    "runs.rescore",
    "study.cells",
    "study.search",
    "study.missing",
    "cli.app",
    "cli.commands",
    "cli.export_commands",
    "cli.first_look",
    "cli.language",
    "cli.list_command",
    "cli.printing",
    "cli.progress",
    "cli.run_commands",
    "cli.running",
    "cli.task_commands",
    "cli.task_rows",
]
NO_TORCH += [f"report.{path.stem}" for path in FILES if path.parent.name == "report"]
WORD_LISTS = ("recipes/sample_tasks/", "tests/campaign/")
SAYS_NOTHING = {"utils", "common", "helpers", "misc", "base", "core", "manager", "handler"}


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert len(text.splitlines()) <= 400
    assert path.stem not in SAYS_NOTHING
    assert path.name == "__main__.py" or ast.get_docstring(tree)
    if path.name == "__init__.py" and path.parent != ROOT:
        assert all(isinstance(node, ast.Expr) for node in tree.body), (
            "a sub-package's __init__ holds a docstring, nothing else"
        )
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] == "tsugiki" and len(parts) > 1 and own in RANK:
            assert parts[1] == own or RANK[parts[1]] < RANK[own], (
                f"{own} imports {name}: against the layers"
            )
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 60, f"{node.name} does not fit a screen"
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("from_pretrained", "from_config")
        ):
            given = [one.value for one in node.keywords if one.arg == "trust_remote_code"]
            assert all(
                isinstance(value, ast.Constant) and value.value is False for value in given
            ), f"line {node.lineno}: code of others"
            assert given, (
                f"line {node.lineno}: transformers asks whether to run code of others, unless "
                "trust_remote_code=False"
            )
    for forbidden in ("pickle", "weights_only=False", "shell=True"):
        assert forbidden not in text


def test_lines_fit_100_columns() -> None:
    """Japanese signs take two columns."""
    root = ROOT.parents[1]
    for folder in ("src", "tests", "benchmarks", "recipes", "log"):
        for path in sorted((root / folder).rglob("*.py")):
            place = path.relative_to(root).as_posix()
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                width = sum(2 if east_asian_width(char) in "WF" else 1 for char in line)
                assert width <= 100 or place.startswith(WORD_LISTS), f"{place}:{number}: {width}"


@pytest.mark.parametrize("module", NO_TORCH)
def test_no_torch_behind_these_modules(module: str) -> None:
    import subprocess
    import sys

    code = f"import sys, tsugiki.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_methods_are_told_apart_in_one_place() -> None:
    """LoRA, full fine-tuning, an encoder, an adapter from elsewhere: branches between them are in
    `runs/methods` and `runs/untrained`, and few."""
    tells = re.compile(
        r"(adapter|grafted|bank|lora) is (not )?None|(method|kind) [!=]= \"(lora|full|encoder)\""
        r"|\bif [a-z_.]+\.(lora|adapter)\b"
    )
    found = [
        (path.relative_to(ROOT).as_posix(), line.strip())
        for path in FILES
        for line in path.read_text(encoding="utf-8").splitlines()
        if tells.search(line)
    ]
    home = ("runs/methods.py", "runs/untrained.py")
    elsewhere = [place for place in found if place[0] not in home]
    assert len(found) <= 8
    assert len(elsewhere) <= 2, elsewhere


def test_no_untyped_dictionary_crosses_a_module() -> None:
    """What files say before a schema has read it is `toml.Given`; all else is a record."""
    loose = re.compile(r"dict\[str, Any\]|Mapping\[str, Any\]|happened\[|\.happened\b")
    for path in FILES:
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own not in ("config", "toml", "data"):
            assert not loose.search(path.read_text(encoding="utf-8")), path


def test_the_main_path_fits_a_screen_and_writes_nothing() -> None:
    text = (ROOT / "runs" / "group.py").read_text(encoding="utf-8")
    path = next(
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name == "train_group"
    )
    assert (path.end_lineno or 0) - path.lineno + 1 <= 60
    for writes in ("write", "save_", "open(", "Store", ".keep("):
        assert writes not in "\n".join(text.splitlines()[path.lineno - 1 : path.end_lineno])


@pytest.mark.slow
def test_any_is_rare_where_records_are_made_and_read(tmp_path: Path) -> None:
    """At most 1 % of the expressions of runs/, study/ and report/ are of type Any."""
    import subprocess
    import sys

    report = ["--any-exprs-report", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "mypy", *report], cwd=ROOT.parents[1], check=True)
    counts = [0, 0]
    for line in (tmp_path / "any-exprs.txt").read_text(encoding="utf-8").splitlines():
        name, *numbers = line.split() or [""]
        if name.startswith(("tsugiki.runs", "tsugiki.study", "tsugiki.report")):
            counts = [one + int(more) for one, more in zip(counts, numbers[:2], strict=True)]
    assert counts[1] > 10_000
    assert counts[0] <= 0.01 * counts[1], counts
