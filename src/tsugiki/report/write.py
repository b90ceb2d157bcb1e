"""The report of a study, made from the run records alone: a page in HTML (Japanese and English)
and Markdown, the tables as CSV and LaTeX."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from tsugiki.files import write_atomically
from tsugiki.report.page import render_page
from tsugiki.report.tables import Material, Table, all_tables
from tsugiki.report.words import SECTIONS, Language, half, pick
from tsugiki.study.missing import study_folder

MARKDOWN: dict[Language, str] = {"en": "report.md", "ja": "report.ja.md"}


def write_report(
    material: Material, root: Path, language: Language = "en"
) -> tuple[Path, list[Table]]:
    """Writes the page in HTML and Markdown for both languages, and the tables as CSV and LaTeX;
    returns the Markdown page and the tables in `language`."""
    folder = study_folder(root, material.result.study)
    by_language = {language: all_tables(material, language) for language in get_args(Language)}
    for one, tables in by_language.items():
        _write_pages(material, folder, root, one, tables)
    for table in by_language["en"]:
        write_atomically(folder / f"{table.name}.tex", table.to_latex().encode())
        write_atomically(folder / f"{table.name}.csv", table.to_csv().encode("utf-8-sig"))
    return folder / MARKDOWN[language], by_language[language]


def _write_pages(
    material: Material, folder: Path, root: Path, language: Language, tables: list[Table]
) -> None:
    result = material.result
    title = half(result.study.title or result.study.name, language)
    runs = f"{len(result.records) + sum(map(len, result.repeats.values()))}"
    said = "\n\n".join(material.statements(language))
    if lacking := material.not_had(language):
        said += f"\n\n**{SECTIONS['missing'][language]}**\n\n" + "\n".join(
            f"- {one}" for one in lacking
        )
    made = pick(
        language,
        f"tsugiki が `{root / 'runs'}` の {runs} 個の実行結果から作成。",
        f"Made by tsugiki from {runs} runs under `{root / 'runs'}`.",
    )
    text = f"# {title}\n\n{said}\n\n{made}\n\n" + "\n".join(table.to_markdown() for table in tables)
    write_atomically(folder / MARKDOWN[language], text.encode())
    write_atomically(
        folder / f"report.{language}.html", render_page(material, tables, language).encode()
    )
