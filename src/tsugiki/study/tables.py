"""The paper's tables from run records: 1 data, 2 results, 3 grid, 4–6 generated answers of every method side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tsugiki.data.tasks import SPLITS, Task, load_task
from tsugiki.score.failures import CLASSES, ENGLISH
from tsugiki.score.metrics import chance_baseline, lead_baseline, majority_baseline
from tsugiki.study.cells import Cell, Key, StudyResult, task_label
from tsugiki.study.compare import pooled
from tsugiki.study.finding import Finding, findings, solo_measurement
from tsugiki.study.landscape import landscape_table, settings_table, shared_note
from tsugiki.study.notes import PAPER, PAPER_ROWS, chosen_text, leak_notes, results_notes, score_text, values_text
from tsugiki.study.store import RunRecord
from tsugiki.study.tabular import Table
from tsugiki.study.words import Language, half, pick, word

ANSWERS_HEADER = ("Example", "Method", "Text")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a report is made from, read and compared once for both languages."""

    result: StudyResult
    tasks: Mapping[str, Task]
    found: Sequence[Finding]


def gather(result: StudyResult) -> Material:
    return Material(result=result, tasks={task_label(choice): load_task(choice) for choice in result.study.tasks}, found=findings(result))


def data_table(tasks: Mapping[str, Task], language: Language) -> Table:
    rows = []
    notes = []
    for label, task in tasks.items():
        counts = [f"{len(task.examples[part]):,}" for part in SPLITS]
        version = f" v{task.version}" if task.version else ""
        rows.append((f"{label}{version}", *counts, f"{task.split} / {task.format}", task.template + "{answer}"))
        note = task.spec.splits[task.split].note
        notes.append(f"{label}: {task.spec.licence}; {task.spec.citation}.{' ' + note if note else ''}")
        notes += [f"{label}: {said}" for said in leak_notes(task, language)]
    return Table(
        name="table1",
        title="表 1: データセット / Table 1: data",
        header=("Task", "Train", "Validation", "Test", "Split / format", "Input format"),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def memory_text(measurement: Mapping[str, Any], language: Language = "en") -> str:
    """Peak memory in MiB: `allocated / reserved` on CUDA, resident size of the process on a CPU."""
    if measurement["peak_allocated_bytes"] is None and measurement["peak_process_bytes"] is None:
        return "-"
    if measurement["peak_allocated_bytes"] is not None:
        return f"{measurement['peak_allocated_bytes'] / 2**20:,.0f} / {measurement['peak_reserved_bytes'] / 2**20:,.0f}"
    return f"{measurement['peak_process_bytes'] / 2**20:,.0f} ({pick(language, 'プロセス', 'process')})"


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
    for label, task in tasks.items():
        for model in result.study.models:
            for name in dict.fromkeys(cell.method.name for cell in result.cells if cell.key[:2] == (model.label, label)):
                cell = result.chosen.get((model.label, label, name))
                record = result.record(cell) if cell else None
                if cell is not None and record is not None:
                    rows.append(_result_row(label, cell, record, language, _test_text(result.seeds(cell), language)))
                else:
                    ran = any(result.record(one) is not None for one in result.cells if one.key == (model.label, label, name))
                    rows.append((label, f"{model.label}-{name}", "no cell learned" if ran else "not run", *["-"] * 11))
        rows += [(label, name, value, str(len(task.examples["test"])), *["-"] * 10) for name, value in baselines(task)]
        if result.study.reference_rows:
            for name, trainable, memory, seconds, value in PAPER_ROWS.get(task.name, []):
                rows.append((label, f"{name} ({PAPER}) †", value, "-", "-", trainable, memory, seconds, *["-"] * 6))
    return Table(name="table2", title="表 2: 評価結果 / Table 2: results", header=header, rows=tuple(rows), notes=tuple(results_notes(result, language)))


def _result_row(label: str, cell: Cell, record: RunRecord, language: Language, tested: str) -> tuple[str, ...]:
    happened, measured = record.happened, record.happened["measurement"]
    solo = happened.get("solo") or {}
    own = solo.get(str(record.config.train.batch)) or {}
    test, validation = record.evaluation("test"), record.evaluation("validation")
    assert validation is not None
    return (
        label,
        f"{cell.model.label}-{cell.method.name}",
        tested,
        str(test["main"]["n"]) if test else "-",
        _number(test["candidate_rate"] if test else None),
        f"{happened['trainable'] / 1e6:,.2f}",
        memory_text(solo_measurement(record), language),
        _seconds(solo.get("8") or {}),
        f"{_seconds(own)} ({record.config.train.batch})",
        f"{_seconds(measured)} ({lanes})" if (lanes := measured.get("lanes", 1)) > 1 else "-",
        _number(own.get("tokens_per_s"), ",.0f"),
        _number((test or validation)["answer_s"], ".4f"),
        f"{happened['weights_bytes'] / 2**20:,.1f}",
        score_text(validation),
    )


def _test_text(records: Sequence[RunRecord], language: Language) -> str:
    """`0.401 [0.360, 0.440]`; over several seeds their mean, with `± .012 (3 seeds)`."""
    if not records:
        return "not scored yet"
    over = pooled(records)
    text = values_text(over.means, over.main, over.low, over.high)
    seeds = pick(language, f"{len(records)} シード", f"{len(records)} seeds")
    return text if len(records) == 1 else f"{text} ± {over.spread:.3f} ({seeds})"


def _seconds(measured: Mapping[str, Any]) -> str:
    """`median / mean` seconds a step."""
    if not measured or measured["step_s_median"] is None:
        return "-"
    return f"{measured['step_s_median']:.4f} / {measured['step_s_mean']:.4f}"


def baselines(task: Task) -> list[tuple[str, str]]:
    """(name, score on test) of what needs no model."""
    test = task.examples["test"]
    if task.spec.kind == "generation":
        field = task.spec.cut or task.spec.fields[0]
        lead = lead_baseline([one.fields[field] for one in test], [one.target for one in test])
        return [("lead (first characters)", "/".join(f"{value:.3f}" for value in lead.values()))]
    rows = [("chance", f"{chance_baseline([one.candidates for one in test]):.3f}")]
    if task.spec.kind == "classification":
        rows.insert(0, ("majority", f"{majority_baseline([one.target for one in task.examples['train']], [one.target for one in test]):.3f}"))
    return rows


def comparison_table(material: Material, language: Language) -> Table:
    """Paired difference between the first method and each other one on the same test examples."""
    rows = []
    for one in material.found:
        pair = one.comparison
        better = one.first if one.verdict == "better" else one.second
        reading = pick(language, f"{better} が上", f"{better} better") if one.verdict in ("better", "worse") else one.verdict
        difference = f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
        rows.append((f"{one.model} · {one.task}", f"{one.first} - {one.second}", difference, str(pair.seeds), reading))
    margin = f"{material.result.study.margin:g}"
    note = pick(
        language,
        f"同じテスト事例の対応のあるブートストラップ（グループ単位）、95 %。シードが 2 個以上ならシードも抽出、1 個ならシードによる変動は含みません。"
        f"同等: 区間全体が、この比較の margin である ±{margin} ポイントに収まること（実行前に決めておくもの）。",
        f"Paired bootstrap over the same test examples (by group), 95 %; over seeds too where there are several (one says nothing of their spread). "
        f"Equal: the whole interval lies within ±{margin} points, this study's margin (to be fixed before the runs).",
    )
    return Table(
        name="comparison",
        title="対応のある差 / Paired differences on test",
        header=("Model · task", "Difference", "Main score", "Seeds", "Reading"),
        rows=tuple(rows),
        notes=(note,),
    )


def failure_table(result: StudyResult, language: Language) -> Table:
    rows = []
    used = [name for name in CLASSES if any(name in (evaluation["failures"]) for evaluation in _tests(result).values())]
    for key, evaluation in _tests(result).items():
        rows.append((" · ".join(key), *(str(evaluation["failures"].get(name, 0)) for name in used), str(evaluation["main"]["n"])))
    note = pick(
        language,
        "要約では技術的な種類（空、繰り返し、終わらない、切り詰め）だけを数え、残りは「正解」に入ります。",
        "For summaries only the technical classes apply; the rest counts as “right”.",
    )
    return Table(
        name="failures",
        title="誤りの種類 / Failure classes on test",
        header=("Model · task · method", *(ENGLISH[name] for name in used), "n"),
        rows=tuple(rows),
        notes=(note,),
    )


def _tests(result: StudyResult) -> dict[Key, Mapping[str, Any]]:
    found = {}
    for key, cell in result.chosen.items():
        record = result.record(cell)
        if record is not None and (evaluation := record.evaluation("test")) is not None:
            found[key] = evaluation
    return found


def grid_table(result: StudyResult, language: Language) -> Table:
    """Every cell with its validation score; the chosen ones are marked."""
    rows = []
    for cell in result.cells:
        record = result.record(cell)
        evaluation = record.evaluation("validation") if record else None
        status = score_text(evaluation) if evaluation else (record.happened.get("reason", record.status) if record else "not run")
        rate = _number(evaluation["candidate_rate"]) if evaluation else "-"
        mark = "★" if result.chosen.get(cell.key) is cell else ""
        rows.append((" · ".join(cell.key), chosen_text(cell), status, rate, mark))
    return Table(
        name="table3",
        title="表 3: 探索した設定 / Table 3: the grid, by validation",
        header=("Model · task · method", "Setting", "Validation", "Candidate rate", "Chosen"),
        rows=tuple(rows),
        notes=tuple(shared_note(result, language)),
    )


def answers_tables(result: StudyResult, tasks: Mapping[str, Task]) -> list[Table]:
    """Tables 4–6: the same test examples answered by every method; the first where methods disagree, else the first."""
    tables = []
    for number, (label, task) in enumerate(tasks.items(), 4):
        answers: dict[str, Sequence[Mapping[str, Any]]] = {}
        for key, cell in result.chosen.items():
            record = result.record(cell)
            if key[1] == label and record is not None and record.evaluation("test"):
                answers[f"{key[0]}-{key[2]}"] = record.answers("test")
        if not answers or not result.study.answers_shown:
            continue
        columns = list(answers.values())
        places = range(len(columns[0]))
        differing = [place for place in places if len({column[place]["answer"] for column in columns}) > 1]
        shown = [*differing, *(place for place in places if place not in set(differing))][: result.study.answers_shown]
        rows: list[tuple[str, ...]] = []
        for place in shown:
            example = task.examples["test"][place]
            rows.append((example.id, "Input", _short(task.template.format_map(dict(example.fields)))))
            rows.append(("", "reference", example.target))
            rows += [("", name, column[place]["answer"] + ("" if column[place]["ended"] else " …")) for name, column in answers.items()]
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
    head = [data_table(tasks, language), results_table(result, tasks, language), comparison_table(material, language)]
    head += [failure_table(result, language), landscape_table(result, tasks, language), settings_table(result, language), grid_table(result, language)]
    return [_localised(table, language) for table in [*head, *answers_tables(result, tasks)]]


def _localised(table: Table, language: Language) -> Table:
    header = tuple(word(name, language) for name in table.header)
    answers = table.header == ANSWERS_HEADER  # what models wrote stays as it is
    rows = tuple(tuple(cell if answers and place != 1 else word(cell, language) for place, cell in enumerate(row)) for row in table.rows)
    return replace(table, title=half(table.title, language), header=header, rows=rows)
