"""The report as one self-contained HTML page, in Japanese or English: the answer first, then the
evidence."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.report.answers import COLUMNS as ANSWERS
from tsugiki.report.answers import INPUT, REFERENCE
from tsugiki.report.figures import all_figures
from tsugiki.report.material import Material
from tsugiki.report.notes import comparable_notes
from tsugiki.report.table import InWords, Table
from tsugiki.report.words import Language, half, texts

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).parent.parent / "presets" / "report" / "page.html.j2"


def render_page(material: Material, tables: Sequence[Table], language: Language) -> str:
    """The page as text, from the tables in its language. Raises nothing for missing cells: what
    was not run is not drawn."""
    result = material.result
    answers = [table.name for table in tables if table.columns == ANSWERS]
    words = {
        key.removeprefix("page."): text
        for key, text in texts(language).items()
        if key.startswith("page.")
    }
    return _template().render(
        language=language,
        title=half(result.study.title or result.study.name, language),
        words=words,
        findings=material.statements(language),
        shortfalls=material.not_had(language),
        tables={table.name: _drawn(table, language) for table in tables},
        answers=answers,
        figures=all_figures(result, words, language),
        comparable=comparable_notes(result, language),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE.name)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A table as the template draws it: `rows` are HTML; `numeric` columns have digits of one
    width."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: list[list[str]]
    numeric: list[bool]
    notes: tuple[str, ...]


def _drawn(table: Table, language: Language) -> Drawn:
    words = table.in_words(language)
    marked = table.columns == ANSWERS
    cells = [[escape(cell) for cell in row] for row in words.rows]
    return Drawn(
        name=table.name,
        title=words.title,
        header=words.header,
        rows=_marked(table, words) if marked else cells,
        numeric=[column.kind != "text" for column in table.columns],
        notes=words.notes,
    )


def _marked(table: Table, words: InWords) -> list[list[str]]:
    """Answer rows with what is not in the reference marked."""
    reference = ""
    marked = []
    for (_, kind, _), (example, name, text) in zip(table.rows, words.rows, strict=True):
        if kind is REFERENCE:
            reference = text
        answer = kind not in (REFERENCE, INPUT)
        shown = _difference(reference, text) if answer else escape(text)
        marked.append([escape(example), escape(name), shown])
    return marked


def _difference(reference: str, text: str) -> str:
    parts = []
    for kind, _, _, start, stop in difflib.SequenceMatcher(
        None, reference, text, autojunk=False
    ).get_opcodes():
        part = escape(text[start:stop])
        if part:
            parts.append(part if kind == "equal" else f"<mark>{part}</mark>")
    return "".join(parts)
