"""The report of a study, made from the run records alone: a page in HTML (Japanese and English) and Markdown, the tables as CSV and LaTeX."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import get_args

from tsugiki.config import StudySpec
from tsugiki.data.sources import write_atomically
from tsugiki.study.cells import StudyResult
from tsugiki.study.finding import Language
from tsugiki.study.page import render_page
from tsugiki.study.tables import Table, all_tables


def study_folder(root: Path, study: StudySpec) -> Path:
    """`ROOT/studies/NAME-digest`: a changed study file is another folder, so no report is overwritten by another study's."""
    digest = hashlib.sha256(study.model_dump_json().encode()).hexdigest()[:6]
    return root / "studies" / f"{study.name}-{digest}"


def write_report(result: StudyResult, root: Path) -> tuple[Path, list[Table]]:
    """Writes `report.ja.html`, `report.en.html`, `report.md` and the tables as CSV and LaTeX; returns the Markdown page and the tables."""
    tables = all_tables(result)
    folder = study_folder(root, result.study)
    head = f"# {result.study.title or result.study.name}\n\nMade by tsugiki from {len(result.records)} runs under `{root / 'runs'}`.\n\n"
    write_atomically(folder / "report.md", (head + "\n".join(table.to_markdown() for table in tables)).encode())
    for language in get_args(Language):
        write_atomically(folder / f"report.{language}.html", render_page(result, tables, language).encode())
    for table in tables:
        write_atomically(folder / f"{table.name}.tex", table.to_latex().encode())
        write_atomically(folder / f"{table.name}.csv", table.to_csv().encode("utf-8-sig"))
    return folder / "report.md", tables
