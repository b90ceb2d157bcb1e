"""The report of a study, made from the run records alone: a page in HTML (Japanese and English) and
Markdown, the tables as CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tsugiki.files import write_atomically
from tsugiki.report.figures import all_figures
from tsugiki.report.headline import headline
from tsugiki.report.latex import paper_table, to_latex
from tsugiki.report.material import Material
from tsugiki.report.numbers import (
    Compared,
    Measured,
    as_csv,
    as_json,
    comparison_rows,
    results_rows,
)
from tsugiki.report.page import render_page
from tsugiki.report.svg import stand_alone
from tsugiki.report.table import Table, markdown
from tsugiki.report.tables import all_tables
from tsugiki.study.missing import study_folder
from tsugiki.words import LANGUAGES, Language, half, say

MARKDOWN: dict[Language, str] = {"en": "report.md", "ja": "report.ja.md"}


def write_report(
    material: Material,
    root: Path,
    language: Language = "en",
    tables: Sequence[Table] | None = None,
    columns: Sequence[str] = (),
) -> Path:
    """Writes the page in HTML and Markdown for both languages, its tables (where they are made
    already) as CSV and LaTeX, its numbers as CSV and JSON, its figures, and the scores as a table
    for a paper (`columns`: see `latex.COLUMNS`); returns the Markdown page in `language`."""
    folder = study_folder(root, material.result.study)
    for_a_paper = paper_table(material.result, material.findings, columns)
    tables = all_tables(material) if tables is None else tables
    for page_language in LANGUAGES:
        _write_pages(material, folder, root, page_language, tables)
    for table in tables:
        latex = to_latex(table.in_words("en"))
        write_atomically(folder / f"{table.name}.tex", latex.encode())
        write_atomically(folder / f"{table.name}.csv", table.to_csv().encode("utf-8-sig"))
    write_atomically(folder / "paper-table.tex", for_a_paper.encode())
    _write_numbers(material, folder)
    _write_figures(material, folder / "figures", language)
    return folder / MARKDOWN[language]


def _write_numbers(material: Material, folder: Path) -> None:
    measured, compared = results_rows(material), comparison_rows(material)
    for name, text in (
        ("results.csv", as_csv(Measured, measured)),
        ("comparison.csv", as_csv(Compared, compared)),
    ):
        write_atomically(folder / name, text.encode("utf-8-sig"))
    for name, text in (
        ("results.json", as_json(measured)),
        ("comparison.json", as_json(compared)),
    ):
        write_atomically(folder / name, text.encode())


def _write_figures(material: Material, folder: Path, language: Language) -> None:
    """Each figure as SVG; as PDF too where cairosvg is installed."""
    to_pdf = pdf_writer()
    for figures in all_figures(material, language).values():
        for figure in figures:
            svg = stand_alone(figure.svg).encode()
            write_atomically(folder / f"{figure.name}.svg", svg)
            if to_pdf is not None:
                write_atomically(folder / f"{figure.name}.pdf", to_pdf(svg))


def pdf_writer() -> Callable[[bytes], bytes] | None:
    """What makes a PDF of an SVG; None without cairosvg."""
    try:
        import cairosvg
    except (ImportError, OSError):  # not installed, or without the cairo library
        return None

    def convert(svg: bytes) -> bytes:
        return bytes(cairosvg.svg2pdf(bytestring=svg))

    return convert


def _write_pages(
    material: Material, folder: Path, root: Path, language: Language, tables: Sequence[Table]
) -> None:
    result = material.result
    title = half(result.study.title or result.study.name, language)
    runs = f"{len(result.records) + sum(map(len, result.repeats.values()))}"
    said = _first_lines(material, language)
    if lacking := material.not_had(language):
        head = say(language, "page.missing")
        said += f"\n\n**{head}**\n\n" + "\n".join(f"- {markdown(line)}" for line in lacking)
    full = "\n\n".join(map(markdown, material.statements(language)))
    said += f"\n\n### {say(language, 'page.statements')}\n\n{full}"
    made = markdown(say(language, "write.made_by", folder=root / "runs", runs=runs))
    shown = "\n".join(table.in_words(language).to_markdown() for table in tables)
    text = f"# {markdown(title)}\n\n{said}\n\n{made}\n\n{shown}"
    write_atomically(folder / MARKDOWN[language], text.encode())
    page = render_page(material, tables, language)
    write_atomically(folder / f"report.{language}.html", page.encode())


def _first_lines(material: Material, language: Language) -> str:
    """What the page's first screen says."""
    first = headline(material, language)
    parts = [markdown(line) for line in first.verdicts] or [say(language, "page.none")]
    for key in ("gains", "costs", "data", "limits"):
        lines = getattr(first, key)
        if lines:
            head = say(language, f"page.{key}_head")
            parts.append(f"**{head}**\n\n" + "\n".join(f"- {markdown(line)}" for line in lines))
    return "\n\n".join(parts)
