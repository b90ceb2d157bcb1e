"""The report of a study, made from the run records alone: a page in HTML (Japanese and English) and
Markdown, the tables as CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tsugiki.files import write_atomically
from tsugiki.report.latex import to_latex
from tsugiki.report.material import Material
from tsugiki.report.page import render_page
from tsugiki.report.table import Table
from tsugiki.report.tables import all_tables
from tsugiki.report.words import LANGUAGES, Language, half, say
from tsugiki.study.missing import study_folder

MARKDOWN: dict[Language, str] = {"en": "report.md", "ja": "report.ja.md"}


def write_report(
    material: Material, root: Path, language: Language = "en", tables: Sequence[Table] | None = None
) -> Path:
    """Writes the page in HTML and Markdown for both languages, and the tables (where they are made
    already) as CSV and LaTeX; returns the Markdown page in `language`."""
    folder = study_folder(root, material.result.study)
    tables = all_tables(material) if tables is None else tables
    for page_language in LANGUAGES:
        _write_pages(material, folder, root, page_language, tables)
    for table in tables:
        latex = to_latex(table.in_words("en"))
        write_atomically(folder / f"{table.name}.tex", latex.encode())
        write_atomically(folder / f"{table.name}.csv", table.to_csv().encode("utf-8-sig"))
    return folder / MARKDOWN[language]


def _write_pages(
    material: Material, folder: Path, root: Path, language: Language, tables: Sequence[Table]
) -> None:
    result = material.result
    title = half(result.study.title or result.study.name, language)
    runs = f"{len(result.records) + sum(map(len, result.repeats.values()))}"
    said = "\n\n".join(material.statements(language))
    if lacking := material.not_had(language):
        head = say(language, "page.missing")
        said += f"\n\n**{head}**\n\n" + "\n".join(f"- {line}" for line in lacking)
    made = say(language, "write.made_by", folder=root / "runs", runs=runs)
    shown = "\n".join(table.in_words(language).to_markdown() for table in tables)
    text = f"# {title}\n\n{said}\n\n{made}\n\n{shown}"
    write_atomically(folder / MARKDOWN[language], text.encode())
    page = render_page(material, tables, language)
    write_atomically(folder / f"report.{language}.html", page.encode())
