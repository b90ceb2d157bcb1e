"""The house rules, kept by machine: layers, sizes, names, what may import torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "tsugiki"
FILES = sorted(ROOT.rglob("*.py"))
RANK = {
    "errors": 0,
    "config": 1,
    "toml": 1.5,
    "data": 2,
    "model": 2,
    "train": 3,
    "score": 3,
    "study": 4,
    "progress": 5,
    "printing": 5.5,
    "running": 5.7,
    "cli": 6,
}
NO_TORCH = [
    "errors",
    "config",
    "toml",
    "data.tasks",
    "data.sources",
    "score.japanese",
    "score.metrics",
    "score.failures",
    "study.store",
    "study.cells",
    "study.tables",
    "study.compare",
    "study.report",
    "study.standing",
    "study.paired",
    "study.shortfall",
    "study.missing",
    "cli",
]
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
        assert all(isinstance(node, ast.Expr) for node in tree.body), "a sub-package's __init__ holds a docstring, nothing else"
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] == "tsugiki" and len(parts) > 1 and own in RANK:
            assert parts[1] == own or RANK[parts[1]] < RANK[own], f"{own} imports {name}: against the layers"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 60, f"{node.name} does not fit a screen"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("from_pretrained", "from_config"):
            given = [one.value for one in node.keywords if one.arg == "trust_remote_code"]
            assert all(isinstance(value, ast.Constant) and value.value is False for value in given), f"line {node.lineno}: code of others"
            assert given, f"line {node.lineno}: transformers asks whether to run code of others, unless trust_remote_code=False"
    for forbidden in ("pickle", "weights_only=False", "shell=True"):
        assert forbidden not in text


@pytest.mark.parametrize("module", NO_TORCH)
def test_no_torch_behind_these_modules(module: str) -> None:
    import subprocess
    import sys

    code = f"import sys, tsugiki.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
