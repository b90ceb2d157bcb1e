"""Pages made from committed runs: they may not change by a byte unless that is the purpose of a
change (`python -m tests.kept.make pages`)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.kept import make


def test_pages_of_the_kept_runs_are_the_same_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("out", "tasks"):
        shutil.copytree(make.HERE / name, tmp_path / name)
    shutil.copy(make.HERE / make.STUDY, tmp_path)
    monkeypatch.chdir(tmp_path)
    pages = make.HERE / make.PAGES
    kept = {
        str(path.relative_to(pages)): path.read_bytes()
        for path in pages.rglob("*")
        if path.is_file()
    }
    found = make.pages()
    assert sorted(found) == sorted(kept)
    assert len(kept) > 50
    for name, content in kept.items():
        assert found[name] == content, f"{name} differs from the page that is kept"


def test_the_kept_runs_hold_one_of_each_kind() -> None:
    kinds = [
        path.read_text(encoding="utf-8")
        for path in (make.HERE / make.ROOT).glob("runs/*/happened.json")
    ]
    for kind in (
        '"status": "failed"',
        '"status": "pruned"',
        '"status": "done"',
        '"shared"',
        '"adapter"',
        '"lanes": 3',
        '"rougeL"',
    ):
        assert any(kind in one for one in kinds), kind
