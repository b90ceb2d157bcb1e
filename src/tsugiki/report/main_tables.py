"""The two tables that a page opens with: scores on test, and costs. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tsugiki.data.tasks import Task
from tsugiki.report.cells import memory_cell, number, seconds_cell, test_cell
from tsugiki.report.exclusive import PAPER_BATCH, cost_of_one
from tsugiki.report.finding import Finding, decimals_of
from tsugiki.report.notes import cost_notes, score_notes
from tsugiki.report.paper import PAPER, PAPER_ROWS
from tsugiki.report.standing import reason_text, why_nothing
from tsugiki.report.table import (
    Column,
    Content,
    Estimated,
    Number,
    Said,
    Table,
    column,
    lines,
    numbers_of,
    phrase,
    said,
)
from tsugiki.report.texts import values_text
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.score.baselines import baselines
from tsugiki.score.rules import METRICS
from tsugiki.study.cells import Cell, Key, StudyResult
from tsugiki.words import Language, say

Row = tuple[Content, ...]
SCORES = (
    column("task", "text", "label.task"),
    column("method", "text", "label.method"),
    column("test", "score", "label.test_score"),
    column("difference", "score", "label.difference_points"),
    column("n", "number", "label.n"),
    column("seeds", "number", "label.seeds"),
    column("candidate_rate", "number", "label.candidate_rate"),
)
COSTS = (
    column("task", "text", "label.task"),
    column("method", "text", "label.method"),
    column("trainable_millions", "number", "label.trainable_m"),
    column("peak_memory_mib", "memory", "label.peak_memory_mib"),
    column("step_at_8_s", "times", "label.s_step_at_8"),
    column("step_s", "times", "label.s_step_batch"),
    column("step_among_lanes_s", "times", "label.s_step_among_lanes"),
    column("answer_s", "number", "label.s_answer"),
    column("weights_mib", "number", "label.weights_file_mib"),
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of both tables: a chosen configuration, or why there is none."""

    task: str
    name: str
    key: Key
    cell: Cell | None = None
    record: RunRecord | None = None
    why: str = ""


def entries_of(result: StudyResult) -> Iterator[Entry]:
    """Every model and method, task by task."""
    for choice in result.study.tasks:
        for model in result.study.models:
            cells = [cell for cell in result.cells if cell.key[:2] == (model.label, choice.label)]
            for method in dict.fromkeys(cell.method.name for cell in cells):
                key = (model.label, choice.label, method)
                cell = result.chosen.get(key)
                name = next(own.row_name for own in cells if own.key == key)
                record = result.record(cell) if cell else None
                if cell is not None and record is not None:
                    yield Entry(task=choice.label, name=name, key=key, cell=cell, record=record)
                else:
                    _, why = why_nothing(result, [own for own in cells if own.key == key])
                    yield Entry(task=choice.label, name=name, key=key, why=why)


def reference_of(result: StudyResult) -> str | None:
    """The method that the others are compared with: full fine-tuning, or what comes last in the
    order of methods; None where only one was tuned."""
    tuned = [method for method in result.study.methods if method_of(method).tuned]
    if len(tuned) < 2:
        return None
    return max(tuned, key=lambda method: method_of(method).order).name


def scores_table(
    result: StudyResult, tasks: Mapping[str, Task], findings: Sequence[Finding]
) -> Table:
    """Test scores with what they differ by from the reference; what needs no model, and the
    paper's own figures, below."""
    reference, rows = reference_of(result), list[Row]()
    for choice in result.study.tasks:
        own = [entry for entry in entries_of(result) if entry.task == choice.label]
        rows += [_score_row(result, entry, reference, findings) for entry in own]
        rows += _below(result, choice.label, tasks)

    def notes(language: Language) -> list[str]:
        first_notes = (
            ()
            if reference is None
            else (say(language, "main_tables.reference", reference=reference),)
        )
        return [*first_notes, say(language, "main_tables.bold"), *score_notes(result, language)]

    return Table(
        name="scores",
        title=phrase("main_tables.scores"),
        columns=SCORES,
        rows=tuple(rows),
        notes=lines(notes),
        strong=_best_of(rows, 2, max),
    )


def _score_row(
    result: StudyResult, entry: Entry, reference: str | None, findings: Sequence[Finding]
) -> Row:
    cell, record = entry.cell, entry.record
    if cell is None or record is None:
        return (entry.task, entry.name, no_result(entry.why), None, None, None, None)
    test = record.scores("test")
    return (
        entry.task,
        entry.name,
        test_cell(result, cell),
        difference_cell(entry.key, reference, findings),
        test.main.n if test else None,
        len(result.seeds(cell)) or None,
        number(test.candidate_rate if test else None),
    )


def _below(result: StudyResult, label: str, tasks: Mapping[str, Task]) -> Iterator[Row]:
    if label in tasks:
        n = len(tasks[label].examples["test"])
        for needs_no_model, value in baseline_rows(tasks[label]):
            yield (label, needs_no_model, value, None, n, None, None)
    for name, _, _, _, score in quoted(result, label):
        yield (label, name, score, None, None, None, None)


def quoted(result: StudyResult, label: str) -> Iterator[tuple[str, str, str, str, str]]:
    """The paper's own rows for a task, where the study asks for them."""
    if result.study.reference_rows:
        for name, *rest in PAPER_ROWS.get(label.split(" (", maxsplit=1)[0], []):
            trainable, memory, seconds, score = rest
            yield f"{name} ({PAPER}) †", trainable, memory, seconds, score


def difference_cell(key: Key, reference: str | None, findings: Sequence[Finding]) -> Content:
    """A method less the reference, in points; “reference” for itself."""
    if key[2] == reference:
        return phrase("label.reference_method")
    for pair in findings:
        names = (pair.first.method, pair.second.method)
        if (pair.model, pair.task) != key[:2] or pair.comparison is None:
            continue
        own = pair.comparison
        decimals = decimals_of(own, pair.margin)
        if names == (key[2], reference):
            return points_cell(own.difference, own.low, own.high, decimals)
        if names == (reference, key[2]):
            return points_cell(-own.difference, -own.high, -own.low, decimals)
    return None


def points_cell(difference: float, low: float, high: float, decimals: int = 1) -> Estimated:
    """`+0.1 [-1.9, +2.0]`, in points; more decimals of the interval where a verdict needs them."""
    points = [100 * each + 0.0 for each in (difference, low, high)]
    text = f"{points[0]:+.1f} [{points[1]:+.{decimals}f}, {points[2]:+.{decimals}f}]"
    words = Said(en=text, ja=text)
    return Estimated(value=points[0], low=points[1], high=points[2], words=words)


def no_result(why: str) -> Said:
    """Words for a method that has no score."""

    def words(language: Language) -> str:
        return f"{say(language, 'label.no_result')}: {reason_text(why, language)}"

    return said(words)


def baseline_rows(task: Task) -> list[tuple[Said, Content]]:
    """(name, score on test) of what needs no model."""
    rows, main = list[tuple[Said, Content]](), METRICS[task.spec.metric].main
    for baseline in baselines(task.spec, task.examples["train"], task.examples["test"]):
        means = {score: fmean(values) for score, values in baseline.values.items()}
        text = values_text(means, main)
        words = Said(en=text, ja=text)
        rows.append((phrase(f"label.{baseline.name}"), Estimated(value=means[main], words=words)))
    return rows


def costs_table(result: StudyResult) -> Table:
    """What the chosen configurations cost; columns that hold nothing are left out."""
    rows = list[Row]()
    for choice in result.study.tasks:
        for entry in entries_of(result):
            if entry.task == choice.label and entry.cell is not None and entry.record is not None:
                rows.append(_cost_row(entry, entry.cell, entry.record))
        for name, trainable, memory, seconds, _ in quoted(result, choice.label):
            rows.append((choice.label, name, trainable, memory, seconds, *[None] * 4))
    kept = [
        index
        for index in range(len(COSTS))
        if index < 2 or any(row[index] is not None for row in rows)
    ]
    shown = [tuple(row[index] for index in kept) for row in rows]
    columns: tuple[Column, ...] = tuple(COSTS[index] for index in kept)
    strong = frozenset[tuple[int, int]]()
    for index in range(2, len(columns)):
        strong |= _best_of(shown, index, min)
    return Table(
        name="costs",
        title=phrase("main_tables.costs"),
        columns=columns,
        rows=tuple(shown),
        notes=lines(lambda language: cost_notes(result, language)),
        strong=strong,
    )


def _cost_row(entry: Entry, cell: Cell, record: RunRecord) -> Row:
    outcome, batch = record.outcome, record.config.train.batch
    if not method_of(cell.config).tuned:
        answered = record.scores("test") or record.scored("validation")
        return (entry.task, entry.name, *[None] * 5, number(answered.answer_s, ".4f"), None)
    exclusive = outcome.exclusive_cost or {}
    own, among = exclusive.get(batch), record.cost()
    measured = cost_of_one(record)
    memory = None  # of a CPU only the whole process is known, which compares nothing
    if measured is not None and measured.peak_allocated_bytes is not None:
        memory = memory_cell(measured)
    answered = record.scores("test") or record.scored("validation")
    return (
        entry.task,
        entry.name,
        Number(value=outcome.trainable / 1e6, form=",.2f"),
        memory,
        seconds_cell(exclusive.get(PAPER_BATCH)),
        seconds_cell(own, f" ({batch})") if batch != PAPER_BATCH else None,
        seconds_cell(among, f" ({among.lanes})") if among.lanes > 1 else None,
        number(answered.answer_s, ".4f"),
        Number(value=outcome.weights_bytes / 2**20, form=",.1f"),
    )


def _best_of(
    rows: Sequence[Row], index: int, best: Callable[[Sequence[float]], float]
) -> frozenset[tuple[int, int]]:
    """Where the best number of a column stands, task by task, where there are two or more."""
    by_task: dict[object, list[tuple[int, float]]] = {}
    for row_index, row in enumerate(rows):
        numbers = numbers_of(row[index])
        if numbers and isinstance(numbers[0], (int, float)):
            by_task.setdefault(row[0], []).append((row_index, numbers[0]))
    strong = set()
    for values in by_task.values():
        if len(values) > 1:
            top = best([value for _, value in values])
            strong |= {(row_index, index) for row_index, value in values if value == top}
    return frozenset(strong)
