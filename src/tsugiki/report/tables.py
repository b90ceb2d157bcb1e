"""The paper's tables from run records: 1 data, 2 results, 3 grid, 4–6 generated answers of every
method side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from tsugiki.data.tasks import SPLITS, Task, load_task
from tsugiki.errors import TsugikiError, reason_of
from tsugiki.report.compare import pooled
from tsugiki.report.finding import PAPER_BATCH, Finding, exclusive_cost, findings, statements
from tsugiki.report.landscape import landscape_table, landscapes, settings_table, shared_note
from tsugiki.report.notes import leak_notes, results_notes
from tsugiki.report.paired import comparison_table, search_table
from tsugiki.report.paper import PAPER, PAPER_ROWS
from tsugiki.report.shortfall import not_had, shortfalls
from tsugiki.report.standing import Standing, lost_seeds, reason_text, standings, why_nothing
from tsugiki.report.table import Table
from tsugiki.report.texts import best_text, chosen_text, score_text, values_text
from tsugiki.report.words import Language, half, pick, word
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import Answer, Scores
from tsugiki.score.failures import CLASSES, ENGLISH
from tsugiki.score.metrics import chance_baseline, lead_baseline, majority_baseline
from tsugiki.study.cells import Cell, Key, StudyResult, task_label
from tsugiki.study.missing import test_of
from tsugiki.train.cost import Cost

ANSWERS_HEADER = ("Example", "Method", "Text")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a report is made from, read and compared once for both languages. `unread`: tasks that
    cannot be read now, and why."""

    result: StudyResult
    tasks: Mapping[str, Task]
    unread: Mapping[str, str]
    standings: Mapping[Key, Standing]
    found: Sequence[Finding]

    def statements(self, language: Language) -> list[str]:
        """What the finding says."""
        return statements(self.found, self.standings, language)

    def shortfalls(self, language: Language) -> list[str]:
        """What is missing, and what did not learn."""
        return shortfalls(self.result, self.standings, self.unread, language)

    def not_had(self, language: Language) -> list[str]:
        """What is missing, without what the finding says of methods."""
        return not_had(self.result, self.unread, language)


def gather(result: StudyResult) -> Material:
    tasks, unread = {}, {}
    for choice in result.study.tasks:
        try:
            tasks[task_label(choice)] = load_task(choice)
        except (TsugikiError, OSError) as broken:
            unread[task_label(choice)] = reason_of(broken)
    found = standings(result, tasks)
    return Material(
        result=result, tasks=tasks, unread=unread, standings=found, found=findings(result, found)
    )


def data_table(tasks: Mapping[str, Task], unread: Mapping[str, str], language: Language) -> Table:
    rows: list[tuple[str, ...]] = []
    notes = []
    for label, task in tasks.items():
        counts = [f"{len(task.examples[part]):,}" for part in SPLITS]
        version = f" v{task.version}" if task.version else ""
        rows.append(
            (
                f"{label}{version}",
                *counts,
                f"{task.split} / {task.format}",
                task.template + "{answer}",
            )
        )
        note = task.spec.splits[task.split].note
        notes.append(
            f"{label}: {task.spec.licence}; {task.spec.citation}.{' ' + note if note else ''}"
        )
        notes += [f"{label}: {said}" for said in leak_notes(task, language)]
    rows += [(label, "-", "-", "-", "-", why) for label, why in unread.items()]
    return Table(
        name="table1",
        title="表 1: データセット / Table 1: data",
        header=("Task", "Train", "Validation", "Test", "Split / format", "Input format"),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def memory_text(cost: Cost, language: Language = "en") -> str:
    """Peak memory in MiB: `allocated / reserved` on CUDA, resident size of the process on a CPU."""
    if cost.peak_allocated_bytes is not None:
        reserved = cost.peak_reserved_bytes or 0
        return f"{cost.peak_allocated_bytes / 2**20:,.0f} / {reserved / 2**20:,.0f}"
    if cost.peak_process_bytes is None:
        return "-"
    process = pick(language, "プロセス", "process")
    return f"{cost.peak_process_bytes / 2**20:,.0f} ({process})"


def results_table(result: StudyResult, tasks: Mapping[str, Task], language: Language) -> Table:
    header = (
        "Task",
        "Method",
        "Test",
        "n",
        "Candidate rate",
        "Trainable (M)",
        "Peak memory (MiB)",
        "s/step @8",
        "s/step (batch)",
        "s/step among lanes",
        "tokens/s",
        "s/answer",
        "Weights file (MiB)",
        "Validation",
    )
    rows: list[tuple[str, ...]] = []
    for choice in result.study.tasks:
        label, task = task_label(choice), tasks.get(task_label(choice))
        for model in result.study.models:
            for name in dict.fromkeys(
                cell.method.name for cell in result.cells if cell.key[:2] == (model.label, label)
            ):
                cell = result.chosen.get((model.label, label, name))
                record = result.record(cell) if cell else None
                if cell is not None and record is not None:
                    rows.append(_result_row(label, cell, record, result, language))
                else:
                    _, why = why_nothing(
                        result,
                        [one for one in result.cells if one.key == (model.label, label, name)],
                    )
                    said = reason_text(why, language)
                    rows.append(
                        (
                            label,
                            f"{model.label}-{name}",
                            f"{pick(language, '結果なし', 'no result')}: {said}",
                            *["-"] * 11,
                        )
                    )
        if task is not None:
            rows += [
                (label, name, value, str(len(task.examples["test"])), *["-"] * 10)
                for name, value in baselines(task)
            ]
        if result.study.reference_rows:
            for name, trainable, memory, seconds, value in PAPER_ROWS.get(label.split(" (")[0], []):
                rows.append(
                    (
                        label,
                        f"{name} ({PAPER}) †",
                        value,
                        "-",
                        "-",
                        trainable,
                        memory,
                        seconds,
                        *["-"] * 6,
                    )
                )
    return Table(
        name="table2",
        title="表 2: 評価結果 / Table 2: results",
        header=header,
        rows=tuple(rows),
        notes=tuple(results_notes(result, language)),
    )


def _result_row(
    label: str, cell: Cell, record: RunRecord, result: StudyResult, language: Language
) -> tuple[str, ...]:
    outcome, batch = record.outcome, record.config.train.batch
    exclusive = outcome.exclusive_cost or {}
    own, test, validation = exclusive.get(batch), record.scores("test"), record.scored("validation")
    lanes = record.cost().lanes
    return (
        label,
        f"{cell.model.label}-{cell.method.name}",
        _test_text(result, cell, language),
        str(test.main.n) if test else "-",
        _number(test.candidate_rate if test else None),
        f"{outcome.trainable / 1e6:,.2f}",
        memory_text(exclusive_cost(record), language),
        _seconds(exclusive.get(PAPER_BATCH)),
        f"{_seconds(own)} ({batch})",
        f"{_seconds(record.cost())} ({lanes})" if lanes > 1 else "-",
        _number(own.tokens_per_s if own else None, ",.0f"),
        _number((test or validation).answer_s, ".4f"),
        f"{outcome.weights_bytes / 2**20:,.1f}",
        best_text(validation, sum(one.key == cell.key for one in result.cells), language),
    )


def _test_text(result: StudyResult, cell: Cell, language: Language) -> str:
    """`0.401 [0.360, 0.440]`; over several seeds their mean, with `± .012 (3 seeds)`; each seed's
    score where another failed."""
    records, lost = result.seeds(cell), lost_seeds(result, cell)
    if not records:
        why = result.missing.get(test_of(cell.label))
        return word("not scored yet", language) + (f": {why}" if why else "")
    if lost:
        tests = [record.scored("test") for record in records]
        scores = " · ".join(values_text(test.values, test.main.name) for test in tests)
        total = len(records) + len(lost)
        return pick(
            language,
            f"{scores}（{total} シードのうち {len(lost)} 個が失敗）",
            f"{scores} ({len(lost)} of {total} seeds failed)",
        )
    over = pooled(records)
    text = values_text(over.means, over.main, over.low, over.high)
    seeds = pick(language, f"{len(records)} シード", f"{len(records)} seeds")
    return text if len(records) == 1 else f"{text} ± {over.spread:.3f} ({seeds})"


def _seconds(cost: Cost | None) -> str:
    """`median / mean` seconds a step."""
    if cost is None or cost.step_s_median is None:
        return "-"
    return f"{cost.step_s_median:.4f} / {cost.step_s_mean:.4f}"


def baselines(task: Task) -> list[tuple[str, str]]:
    """(name, score on test) of what needs no model."""
    test = task.examples["test"]
    if task.spec.kind == "generation":
        field = task.spec.cut or task.spec.fields[0]
        lead = lead_baseline(
            task.spec.metric, [one.fields[field] for one in test], [one.target for one in test]
        )
        means = {name: fmean(values) for name, values in lead.items()}
        main = "rougeL" if "rougeL" in means else task.spec.metric
        return [("lead (first characters)", values_text(means, main))]
    rows = [("chance", f"{fmean(chance_baseline([one.candidates for one in test])):.3f}")]
    if task.spec.kind == "classification":
        most = fmean(
            majority_baseline(
                [one.target for one in task.examples["train"]], [one.target for one in test]
            )
        )
        rows.insert(0, ("majority", f"{most:.3f}"))
    return rows


def failure_table(result: StudyResult, language: Language) -> Table:
    rows = []
    used = [
        name
        for name in CLASSES
        if any(name in evaluation.failures for evaluation in _tests(result).values())
    ]
    for key, evaluation in _tests(result).items():
        rows.append(
            (
                " · ".join(key),
                *(str(evaluation.failures.get(name, 0)) for name in used),
                str(evaluation.main.n),
            )
        )
    note = pick(
        language,
        "要約では技術的な種類（空、繰り返し、終わらない、切り詰め）だけを数え、残りは「正解」"
        "に入ります。",
        "For summaries only the technical classes apply; the rest counts as “right”.",
    )
    return Table(
        name="failures",
        title="誤りの種類 / Failure classes on test",
        header=("Model · task · method", *(ENGLISH[name] for name in used), "n"),
        rows=tuple(rows),
        notes=(note,),
    )


def _tests(result: StudyResult) -> dict[Key, Scores]:
    found = {}
    for key, cell in result.chosen.items():
        record = result.record(cell)
        if record is not None and (scores := record.scores("test")) is not None:
            found[key] = scores
    return found


def grid_table(result: StudyResult, language: Language) -> Table:
    """Every cell with its validation score; the chosen ones are marked."""
    rows = []
    for cell in result.cells:
        record = result.record(cell)
        evaluation = record.scores("validation") if record else None
        chosen = result.chosen.get(cell.key) is cell
        if evaluation is not None:
            status = (
                best_text(evaluation, sum(one.key == cell.key for one in result.cells), language)
                if chosen
                else score_text(evaluation)
            )
        else:
            why = (record.outcome.reason or record.status) if record else "not run"
            status = reason_text(result.missing.get(cell.label, why), language)
        rate = _number(evaluation.candidate_rate) if evaluation else "-"
        mark = "★" if chosen else ""
        rows.append((" · ".join(cell.key), chosen_text(cell), status, rate, mark))
    return Table(
        name="table3",
        title="表 3: 探索した設定 / Table 3: the grid, by validation",
        header=("Model · task · method", "Setting", "Validation", "Candidate rate", "Chosen"),
        rows=tuple(rows),
        notes=tuple(shared_note(result, language)),
    )


def answers_tables(result: StudyResult, tasks: Mapping[str, Task]) -> list[Table]:
    """Tables 4–6: the same test examples answered by every method; the first where methods
    disagree, else the first."""
    tables = []
    for number, (label, task) in enumerate(tasks.items(), 4):
        answers: dict[str, Sequence[Answer]] = {}
        for key, cell in result.chosen.items():
            record = result.record(cell)
            if key[1] == label and record is not None and record.scores("test"):
                answers[f"{key[0]}-{key[2]}"] = record.answers("test")
        if not answers or not result.study.answers_shown:
            continue
        columns = list(answers.values())
        places = range(len(columns[0]))
        differing = [
            place for place in places if len({column[place].answer for column in columns}) > 1
        ]
        shown = [*differing, *(place for place in places if place not in set(differing))][
            : result.study.answers_shown
        ]
        rows: list[tuple[str, ...]] = []
        for place in shown:
            example = task.examples["test"][place]
            rows.append(
                (example.id, "Input", _short(task.template.format_map(dict(example.fields))))
            )
            rows.append(("", "reference", example.target))
            rows += [
                ("", name, column[place].answer + ("" if column[place].ended else " …"))
                for name, column in answers.items()
            ]
        tables.append(
            Table(
                name=f"table{number}",
                title=f"表 {number}: {label} の生成例 / Table {number}: generated answers",
                header=ANSWERS_HEADER,
                rows=tuple(rows),
            )
        )
    return tables


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def all_tables(material: Material, language: Language) -> list[Table]:
    """Every table of the report in one language."""
    result, tasks = material.result, material.tasks
    searched = landscapes(result, tasks)
    head = [data_table(tasks, material.unread, language), results_table(result, tasks, language)]
    head[1] = replace(head[1], notes=(*head[1].notes, *material.shortfalls(language)))
    head += [
        comparison_table(material.found, result, language),
        search_table(result, language),
        failure_table(result, language),
    ]
    head += [
        landscape_table(searched, result, language),
        settings_table(result, language),
        grid_table(result, language),
    ]
    return [_localised(table, language) for table in [*head, *answers_tables(result, tasks)]]


def _localised(table: Table, language: Language) -> Table:
    header = tuple(word(name, language) for name in table.header)
    answers = table.header == ANSWERS_HEADER  # what models wrote stays as it is
    rows = tuple(
        tuple(
            cell if answers and place != 1 else word(cell, language)
            for place, cell in enumerate(row)
        )
        for row in table.rows
    )
    return replace(table, title=half(table.title, language), header=header, rows=rows)
