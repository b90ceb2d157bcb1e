"""Every table of a report, from run records. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from tsugiki.data.tasks import SPLITS, Task
from tsugiki.data.text import normalise
from tsugiki.report.answers import answers_tables
from tsugiki.report.cells import (
    best_cell,
    number,
    score_cell,
    setting_cell,
)
from tsugiki.report.forgetting import forgetting_table
from tsugiki.report.landscape import landscapes
from tsugiki.report.landscape_tables import landscape_table, settings_table
from tsugiki.report.main_tables import costs_table, scores_table
from tsugiki.report.material import Material
from tsugiki.report.notes import leak_notes, shared_note
from tsugiki.report.paired import comparison_table, search_table
from tsugiki.report.planned import planned_table
from tsugiki.report.provenance import provenance_table
from tsugiki.report.standing import reason_text
from tsugiki.report.table import (
    Content,
    Number,
    Said,
    Table,
    column,
    lines,
    phrase,
    said,
)
from tsugiki.runs.record import Scores
from tsugiki.score.failures import CLASSES
from tsugiki.score.rules import METRICS
from tsugiki.study.cells import Cell, Key, StudyResult
from tsugiki.words import say

Row = tuple[Content, ...]
DATA = (
    column("task", "text", "label.task"),
    column("train", "number", "label.train"),
    column("validation", "number", "label.validation"),
    column("test", "number", "label.test"),
    column("metric", "text", "label.main_score"),
    column("split", "text", "label.split_format"),
    column("format", "text", "label.input_format"),
)
CONFUSION = (
    column("row", "text", "label.model_task_method"),
    column("target", "text", "label.right_answer"),
    column("answered", "text", "label.answered"),
    column("n", "number", "label.n"),
)
GRID = (
    column("row", "text", "label.model_task_method"),
    column("setting", "text", "label.setting"),
    column("validation", "score", "label.validation"),
    column("candidate_rate", "number", "label.candidate_rate"),
    column("chosen", "text", "label.chosen"),
)


def all_tables(material: Material) -> list[Table]:
    """Every table of the report."""
    result, tasks = material.result, material.tasks
    searched = landscapes(result, tasks)
    scores = scores_table(result, tasks, material.findings)
    missing, confusion = lines(material.shortfalls), confusion_table(result, tasks)
    planned = planned_table(result, material.findings)
    forgetting = forgetting_table(result, material.changes)
    return [
        replace(scores, notes=(*scores.notes, *missing)),
        costs_table(result),
        comparison_table(material.findings, result),
        *([planned] if planned is not None else []),
        *([forgetting] if forgetting is not None else []),
        search_table(result),
        failure_table(result),
        *([confusion] if confusion is not None else []),
        landscape_table(searched, result),
        settings_table(result),
        grid_table(result),
        *answers_tables(result, tasks),
        data_table(tasks, material.unread),
        provenance_table(result, material.command),
    ]


def data_table(tasks: Mapping[str, Task], unread: Mapping[str, str]) -> Table:
    rows, notes = list[Row](), list[Said]()
    for label, task in tasks.items():
        version = f" v{task.version}" if task.version else ""
        counts = [Number(value=len(task.examples[part]), form=",") for part in SPLITS]
        split = f"{task.split} / {task.format}"
        main = METRICS[task.spec.metric].main
        rows.append((f"{label}{version}", *counts, main, split, task.template + "{answer}"))
        note = task.spec.splits[task.split].note
        about = "; ".join(filter(None, (task.spec.licence, task.spec.citation)))
        if about or note:
            sentences = filter(None, (f"{about}." if about else "", note))
            notes.append(_plain(f"{label}: {' '.join(sentences)}"))
        for leak in _leaks(task):
            notes.append(Said(ja=f"{label}: {leak.ja}", en=f"{label}: {leak.en}"))
    rows += [(label, *[None] * (len(DATA) - 2), why) for label, why in unread.items()]
    title = phrase("tables.data")
    return Table(name="data", title=title, columns=DATA, rows=tuple(rows), notes=tuple(notes))


def _leaks(task: Task) -> tuple[Said, ...]:
    return lines(lambda language: leak_notes(task, language))


def _plain(text: str) -> Said:
    return Said(ja=text, en=text)


def failure_table(result: StudyResult) -> Table:
    tests = _tests(result)
    used = [name for name in CLASSES if any(name in scores.failures for scores in tests.values())]
    columns = (
        column("row", "text", "label.model_task_method"),
        *(column(name, "number", f"failure.{name}") for name in used),
        column("n", "number", "label.n"),
    )
    rows: list[Row] = [
        (" · ".join(key), *(scores.failures.get(name, 0) for name in used), scores.main.n)
        for key, scores in tests.items()
    ]
    note = phrase("tables.failure_note")
    title = phrase("tables.failures")
    return Table(name="failures", title=title, columns=columns, rows=tuple(rows), notes=(note,))


def confusion_table(result: StudyResult, tasks: Mapping[str, Task]) -> Table | None:
    """What was answered instead, for each label of the chosen configurations' test answers; None
    without a task of fixed labels."""
    rows = list[Row]()
    for key, cell in result.chosen.items():
        record, task = result.record(cell), tasks.get(key[1])
        labels = task.spec.fixed_answers if task else ()
        if record is None or record.scores("test") is None or not labels:
            continue
        pairs = [(normalise(row.target), normalise(row.answer)) for row in record.answers("test")]
        for label in labels:
            given = Counter(answer for target, answer in pairs if target == normalise(label))
            known = [given.pop(normalise(other), 0) for other in labels]
            counts = [f"{other} {count}" for other, count in zip(labels, known, strict=True)]
            outside = given.total()
            text = _answered(counts, outside)
            rows.append((" · ".join(key), label, text, sum(known) + outside))
    title, note = phrase("tables.confusion"), phrase("tables.confusion_note")
    table = Table(name="confusion", title=title, columns=CONFUSION, rows=tuple(rows), notes=(note,))
    return table if rows else None


def _answered(counts: list[str], outside: int) -> Said:
    return said(
        lambda language: " · ".join(
            [*counts, f"{say(language, 'failure.outside')} {outside}"] if outside else counts
        )
    )


def _tests(result: StudyResult) -> dict[Key, Scores]:
    tests = dict[Key, Scores]()
    for key, cell in result.chosen.items():
        record = result.record(cell)
        if record is not None and (scores := record.scores("test")) is not None:
            tests[key] = scores
    return tests


def grid_table(result: StudyResult) -> Table:
    """Every cell with its validation score; the chosen ones are marked."""
    rows = [_grid_row(result, cell) for cell in result.cells]
    title = phrase("tables.grid")
    notes = lines(lambda language: shared_note(result, language))
    return Table(name="grid", title=title, columns=GRID, rows=tuple(rows), notes=notes)


def _grid_row(result: StudyResult, cell: Cell) -> Row:
    record = result.record(cell)
    scores, chosen = record.scores("validation") if record else None, is_chosen(result, cell)
    status: Content
    if scores is not None:
        same = sum(other.key == cell.key for other in result.cells)
        status = best_cell(scores, same) if chosen else score_cell(scores)
    else:
        why = (record.outcome.reason or record.status) if record else "not run"
        reason = result.missing.get(cell.label, why)
        status = said(lambda language: reason_text(reason, language))
    rate = number(scores.candidate_rate if scores else None)
    return (" · ".join(cell.key), setting_cell(cell), status, rate, "★" if chosen else "")


def is_chosen(result: StudyResult, cell: Cell) -> bool:
    return result.chosen.get(cell.key) is cell
