"""The paper's Tables 1 to 6 from a study's own runs, in its columns and under its numbers, its own
rows quoted beside them. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tsugiki.config.study import Range
from tsugiki.data.tasks import SPLITS
from tsugiki.files import write_atomically
from tsugiki.report.answers import COLUMNS as ANSWERS
from tsugiki.report.answers import answers_rows
from tsugiki.report.cells import number
from tsugiki.report.compare import pooled
from tsugiki.report.exclusive import exclusive_step_s, peak_of_one
from tsugiki.report.main_tables import Entry, entries_of, no_result
from tsugiki.report.material import Material
from tsugiki.report.page import drawn_tables, template
from tsugiki.report.paper import (
    ANSWER_TABLES,
    DATA,
    PAPER,
    PAPER_ROWS,
    SEARCHED,
    TITLE,
)
from tsugiki.report.paper import ANSWERS as QUOTED_ANSWERS
from tsugiki.report.standing import lost_seeds
from tsugiki.report.table import Column, Content, Number, Table, column, phrase
from tsugiki.report.texts import values_text
from tsugiki.runs.methods import method_of
from tsugiki.study.cells import Cell, StudyResult
from tsugiki.study.missing import study_folder
from tsugiki.words import LANGUAGES, Language, half, say

Row = tuple[Content, ...]
DATA_COLUMNS = (
    column("task", "text", "paper.task"),
    column("train", "number", "paper.train"),
    column("validation", "number", "paper.validation"),
    column("test", "number", "paper.test"),
    column("format", "text", "paper.format"),
)
RESULT_COLUMNS = (
    column("task", "text", "paper.task"),
    column("method", "text", "paper.method"),
    column("trainable_millions", "number", "paper.trainable"),
    column("memory_mb", "number", "paper.memory"),
    column("sec_iter", "number", "paper.seconds"),
    column("metrics", "text", "paper.metrics"),
)


def write_paper(material: Material, root: Path) -> list[Path]:
    """Writes `paper.en.html`, `paper.ja.html` and the same as Markdown beside the report; returns
    the pages."""
    folder, tables = study_folder(root, material.result.study), paper_tables(material)
    pages = []
    for language in LANGUAGES:
        title = say(language, "paper.title", paper=PAPER)
        name = half(material.result.study.title or material.result.study.name, language)
        notes = _not_comparable(language)
        page = template("paper.html.j2").render(
            language=language,
            title=title,
            study=name,
            tables=drawn_tables(tables, language),
            head=say(language, "paper.not_comparable"),
            notes=notes,
        )
        pages.append(folder / f"paper.{language}.html")
        write_atomically(pages[-1], page.encode())
        shown = "\n".join(table.in_words(language).to_markdown() for table in tables)
        listed = "\n".join(f"- {note}" for note in notes)
        text = f"# {title}\n\n{shown}\n## {say(language, 'paper.not_comparable')}\n\n{listed}\n"
        write_atomically(folder / f"paper.{language}.md", text.encode())
    return pages


def _not_comparable(language: Language) -> list[str]:
    return [
        say(language, "notes.paper_rows", paper=PAPER, title=TITLE),
        say(language, "paper.models"),
        say(language, "paper.memory_note"),
        say(language, "paper.xlsum_text"),
    ]


def paper_tables(material: Material) -> list[Table]:
    """Tables 1 to 3, then 4 (XLSum), 5 (JNLI) and 6 (JCommonsenseQA); other tasks from 7 on."""
    tables = [_data(material), _results(material.result), _search(material.result)]
    by_name = {_name_of(label): label for label in material.tasks}
    for name, (table_number, called) in ANSWER_TABLES.items():
        tables.append(_answers(material, name, by_name.get(name), table_number, called))
    others = [label for name, label in by_name.items() if name not in ANSWER_TABLES]
    for table_number, label in enumerate(others, 7):
        tables.append(_answers(material, "", label, table_number, label))
    return tables


def _name_of(label: str) -> str:
    """A task without its split."""
    return label.split(" (", maxsplit=1)[0]


def _data(material: Material) -> Table:
    rows = list[Row]()
    for label, task in material.tasks.items():
        counts = [Number(value=len(task.examples[part]), form=",") for part in SPLITS]
        rows.append((label, *counts, task.template + "{answer}"))
    for name, (_, called) in ANSWER_TABLES.items():
        train, validation, test, form = DATA[name]
        quoted = [Number(value=value, form=",") for value in (train, validation, test)]
        rows.append((f"{called} †", *quoted, form))
    title = phrase("paper.table1")
    return Table(name="paper1", title=title, columns=DATA_COLUMNS, rows=tuple(rows))


def _results(result: StudyResult) -> Table:
    rows = list[Row]()
    entries = [entry for entry in entries_of(result) if _is_tuned(result, entry)]
    for choice in result.study.tasks:
        rows += [_result_row(result, entry) for entry in entries if entry.task == choice.label]
    for name, quoted in PAPER_ROWS.items():
        rows += [(f"{ANSWER_TABLES[name][1]} †", *cells) for cells in quoted]
    title, note = phrase("paper.table2"), phrase("paper.rouge")
    return Table(
        name="paper2", title=title, columns=RESULT_COLUMNS, rows=tuple(rows), notes=(note,)
    )


def _is_tuned(result: StudyResult, entry: Entry) -> bool:
    return any(
        method.name == entry.key[2] and method_of(method).tuned for method in result.study.methods
    )


def _result_row(result: StudyResult, entry: Entry) -> Row:
    cell, record = entry.cell, entry.record
    if cell is None or record is None:
        return (entry.task, entry.name, None, None, None, no_result(entry.why))
    memory = peak_of_one(record)
    return (
        entry.task,
        entry.name,
        Number(value=record.outcome.trainable / 1e6, form=",.1f"),
        None if memory is None else Number(value=memory / 2**20, form=",.0f"),
        number(exclusive_step_s(record), ".4f"),
        _metrics(result, cell),
    )


def _metrics(result: StudyResult, cell: Cell) -> Content:
    records = result.seeds(cell)
    if not records:
        return phrase("label.not_scored_yet")
    if lost_seeds(result, cell):
        return phrase("paper.seed_failed")
    over = pooled(records)
    return values_text(over.means, over.main)


def _search(result: StudyResult) -> Table:
    """Ranges: every setting that a method searched, a column a method, then the paper's."""
    rows = list[Row]()
    tuned = [method for method in result.study.methods if method_of(method).trains]
    settings = list(SEARCHED)
    settings += sorted({name for method in tuned for name in method.grid} - set(settings))
    for name in settings:
        own = [
            _searched(name, [cell for cell in result.cells if cell.method.name == method.name])
            for method in tuned
        ]
        rows.append((_setting(name), *own, *SEARCHED.get(name, ("-", "-"))))
    names = [*(method.name for method in tuned), "LoRA †", "FT †"]
    columns = (
        column("setting", "text", "paper.setting"),
        *(Column(key=name, kind="text", title_key="", name=name) for name in names),
    )
    title = phrase("paper.table3")
    return Table(name="paper3", title=title, columns=columns, rows=tuple(rows))


def _setting(name: str) -> Content:
    return phrase(f"paper.setting_{name}") if name in SEARCHED else name


def _searched(name: str, cells: Sequence[Cell]) -> str:
    tried = cells[0].method.grid.get(name) if cells else None
    if isinstance(tried, Range):
        return f"{tried.low:g} – {tried.high:g}"
    values = dict.fromkeys(tried if tried is not None else _fixed(name, cells))
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    if len(texts) < 2:
        return texts[0] if texts else "-"
    return "{" + ", ".join(texts) + "}"


def _fixed(name: str, cells: Sequence[Cell]) -> Iterator[object]:
    """What all configurations have that do not search it."""
    for cell in cells[:1]:
        if hasattr(cell.config.train, name):
            yield getattr(cell.config.train, name)
        elif cell.config.lora is not None and hasattr(cell.config.lora, name):
            yield getattr(cell.config.lora, name)


def _answers(
    material: Material, name: str, label: str | None, table_number: int, called: str
) -> Table:
    """Generated answers of one task, and what the paper's models wrote for its example."""
    result = material.result
    rows = list[Row]()
    if label is not None and result.study.answers_shown:
        rows += answers_rows(result, material.tasks[label], label)
    notes = [phrase("answers.rule")] if rows else [phrase("paper.no_answers", task=called)]
    rows += [("", f"{method} †", text) for method, text in QUOTED_ANSWERS.get(name, [])]
    if name in QUOTED_ANSWERS:
        notes.append(phrase("paper.quoted_answers"))
    title = phrase("paper.answers", number=table_number, task=called)
    return Table(
        name=f"paper{table_number}",
        title=title,
        columns=ANSWERS,
        rows=tuple(rows),
        notes=tuple(notes),
    )
