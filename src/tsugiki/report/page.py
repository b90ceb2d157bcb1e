"""The report as one self-contained HTML page, in Japanese or English: the answer first, then the
evidence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.report.answers import COLUMNS as ANSWERS
from tsugiki.report.answers import INPUT, REFERENCE
from tsugiki.report.figures import all_figures
from tsugiki.report.headline import headline
from tsugiki.report.material import Material
from tsugiki.report.notes import comparable_notes
from tsugiki.report.provenance import study_text
from tsugiki.report.table import InWords, Table
from tsugiki.words import Language, half, say, texts

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).parent.parent / "presets" / "report"


def render_page(material: Material, tables: Sequence[Table], language: Language) -> str:
    """The page as text, from the tables in its language. Raises nothing for missing cells: what
    was not run is not drawn."""
    result = material.result
    words = {
        key.removeprefix("page."): text
        for key, text in texts(language).items()
        if key.startswith("page.")
    }
    drawn = {table.name: _drawn(table, language) for table in tables}
    return template("page.html.j2").render(
        language=language,
        title=half(result.study.title or result.study.name, language),
        made_with=_made_with(material, language),
        methods=_methods(material, language),
        words=words,
        first=headline(material, language),
        statements=material.statements(language),
        shortfalls=material.not_had(language),
        tables=drawn,
        sections=[section for section in SECTIONS if _has(section, drawn)],
        answers=[table.name for table in tables if table.columns == ANSWERS],
        figures=all_figures(material, language),
        comparable=comparable_notes(result, language),
        study=study_text(result),
    )


# Tables that stand folded on the page, in order.
SECTIONS = ("pairs", "planned", "forgetting", "search")


def _has(name: str, drawn: Mapping[str, Drawn]) -> bool:
    return name in drawn and bool(drawn[name].rows or drawn[name].notes)


def _methods(material: Material, language: Language) -> str:
    """What each method of the study is: its name is the user's."""
    kinds = {method.name: method.kind for method in material.result.study.methods}
    return " · ".join(
        f"{name}: {say(language, f'page.kind_{kind}')}" for name, kind in kinds.items()
    )


def _made_with(material: Material, language: Language) -> str:
    """The day of the last run, the device, the version; empty where no run says."""
    records = list(material.result.records.values())
    days = [record.outcome.ended[:10] for record in records if record.outcome.ended]
    devices = sorted({record.provenance.device for record in records})
    if not records:
        return ""
    versions = sorted({record.provenance.versions.get("tsugiki", "?") for record in records})
    return say(
        language,
        "page.made_with",
        when=max(days, default="-"),
        device="; ".join(devices),
        version=", ".join(versions),
    )


@cache
def template(name: str) -> Template:
    """A page's template; what is put into it is escaped."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


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


def drawn_tables(tables: Sequence[Table], language: Language) -> list[Drawn]:
    """Tables as a template draws them."""
    return [_drawn(table, language) for table in tables]


def _drawn(table: Table, language: Language) -> Drawn:
    words = table.in_words(language)
    marked = table.columns == ANSWERS
    cells = [
        [_cell(text, (index, column) in words.strong) for column, text in enumerate(row)]
        for index, row in enumerate(words.rows)
    ]
    return Drawn(
        name=table.name,
        title=words.title,
        header=words.header,
        rows=_marked(table, words) if marked else cells,
        numeric=[column.kind != "text" for column in table.columns],
        notes=words.notes,
    )


def _cell(text: str, strong: bool) -> str:
    """Escaped; an interval may stand on a line of its own, but is not broken."""
    whole = escape(text).replace(" [", ' <span class="interval">[', 1)
    if "interval" in whole:
        whole = whole.replace("]", "]</span>", 1) if "]" in whole else escape(text)
    return f"<strong>{whole}</strong>" if strong else whole


def _marked(table: Table, words: InWords) -> list[list[str]]:
    """Answer rows with what is not in the reference marked."""
    reference = ""
    marked = []
    for (_, kind, _), (example, name, text) in zip(table.rows, words.rows, strict=True):
        if kind is REFERENCE:
            reference = text
        quoted = isinstance(kind, str) and kind.endswith("†")
        answer = kind not in (REFERENCE, INPUT) and not quoted
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
