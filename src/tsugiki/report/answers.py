"""The same test examples answered by every method side by side. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tsugiki.data.tasks import Task
from tsugiki.report.table import Content, Table, column, phrase
from tsugiki.runs.record import Answer
from tsugiki.study.cells import StudyResult

# The rows of an example that no method wrote.
INPUT, REFERENCE = phrase("label.input"), phrase("label.reference")
COLUMNS = (
    column("example", "text", "label.example"),
    column("method", "text", "label.method"),
    column("text", "text", "label.text"),
)


def answers_tables(result: StudyResult, tasks: Mapping[str, Task]) -> list[Table]:
    """One for each task: the first examples where methods disagree, else the first."""
    tables = list[Table]()
    for label, task in tasks.items() if result.study.answers_shown else ():
        rows = answers_rows(result, task, label)
        if not rows:
            continue
        title, note = phrase("answers.title", label=label), phrase("answers.rule")
        name = f"answers-{len(tables) + 1}"
        tables.append(
            Table(name=name, title=title, columns=COLUMNS, rows=tuple(rows), notes=(note,))
        )
    return tables


def answers_rows(result: StudyResult, task: Task, label: str) -> list[tuple[Content, ...]]:
    """Each shown example's input, its reference, and what every method answered."""
    answers, rows = _answers(result, label), list[tuple[Content, ...]]()
    if not answers:
        return rows
    for index in _shown(list(answers.values()), result.study.answers_shown):
        example = task.examples["test"][index]
        prompt = task.template.format_map(dict(example.fields))
        rows.append((example.id, INPUT, _short(prompt)))
        rows.append(("", REFERENCE, example.target))
        for name, given in answers.items():
            rows.append(("", name, given[index].answer + ("" if given[index].ended else " …")))
    return rows


def _answers(result: StudyResult, label: str) -> dict[str, Sequence[Answer]]:
    """The test answers of every chosen cell of a task, by the name of its row."""
    answers_of = dict[str, Sequence[Answer]]()
    for key, cell in result.chosen.items():
        record = result.record(cell)
        if key[1] == label and record is not None and record.scores("test"):
            answers_of[cell.row_name] = record.answers("test")
    return answers_of


def _shown(given: Sequence[Sequence[Answer]], most: int) -> list[int]:
    indices = range(len(given[0]))
    differing = [index for index in indices if len({some[index].answer for some in given}) > 1]
    others = [index for index in indices if index not in set(differing)]
    return [*differing, *others][:most]


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
