"""The report as one self-contained HTML page, in Japanese or English: the answer first, then the
evidence."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from tsugiki.report.figures import all_figures
from tsugiki.report.notes import comparable_notes
from tsugiki.report.tables import Material, Table
from tsugiki.report.words import SECTIONS, Language, half, word

TEMPLATE = Path(__file__).parent.parent / "presets" / "report" / "page.html.j2"
REFERENCE, INPUT = ("正解", "reference"), ("入力", "Input")
NUMERIC = ("n", "Train", "Test", "Validation", "Trainable (M)", "Seeds")


def render_page(material: Material, tables: Sequence[Table], language: Language) -> str:
    """The page as text, from the tables in its language. Raises nothing for missing cells: what
    was not run is not drawn."""
    from jinja2 import Environment, FileSystemLoader

    result = material.result
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    answers = [
        table
        for table in tables
        if table.name.startswith("table") and table.name[5:].isdigit() and int(table.name[5:]) > 3
    ]
    words = {key: value[language] for key, value in SECTIONS.items()}
    return environment.get_template(TEMPLATE.name).render(
        language=language,
        title=half(result.study.title or result.study.name, language),
        words=words,
        findings=material.statements(language),
        shortfalls=material.not_had(language),
        tables={table.name: _drawn(table, language, marked=table in answers) for table in tables},
        answers=[table.name for table in answers],
        figures=all_figures(result, words, language),
        comparable=comparable_notes(result, language),
    )


def _drawn(table: Table, language: Language, *, marked: bool) -> dict[str, Any]:
    numeric = {word(name, language) for name in NUMERIC} | {
        name for name in table.header if "/" in name or "率" in name or "rate" in name.lower()
    }
    rows = [list(row) for row in table.rows]
    return {
        "name": table.name,
        "title": table.title,
        "header": table.header,
        "rows": _marked(rows) if marked else [[escape(cell) for cell in row] for row in rows],
        "numeric": [name in numeric for name in table.header],
        "notes": table.notes,
    }


def _marked(rows: list[list[str]]) -> list[list[str]]:
    """Answer rows with what is not in the reference marked."""
    reference = ""
    marked = []
    for place, name, text in rows:
        if name in REFERENCE:
            reference = text
        answer = name not in (*REFERENCE, *INPUT)
        marked.append(
            [escape(place), escape(name), _difference(reference, text) if answer else escape(text)]
        )
    return marked


def _difference(reference: str, text: str) -> str:
    parts = []
    for kind, _, _, start, stop in difflib.SequenceMatcher(
        None, reference, text, autojunk=False
    ).get_opcodes():
        piece = escape(text[start:stop])
        if piece:
            parts.append(piece if kind == "equal" else f"<mark>{piece}</mark>")
    return "".join(parts)
