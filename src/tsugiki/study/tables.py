"""The paper's tables from run records: 1 data, 2 results, 3 grid, 4–6 generated answers of every method side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsugiki.data.tasks import SPLITS, Task, load_task
from tsugiki.score.failures import CLASSES, ENGLISH
from tsugiki.score.metrics import chance_baseline, lead_baseline, majority_baseline, paired_difference, per_example
from tsugiki.study.store import RunRecord
from tsugiki.study.cells import Cell, StudyResult, task_label

EXAMPLES_SHOWN = 3
PAPER = "王・中町・佐藤 2023"
# Table 2 of the paper, quoted: method, trainable M, its memory column (MB), seconds an iteration, score.
PAPER_ROWS: dict[str, list[tuple[str, str, str, str, str]]] = {
    "jnli": [
        ("1B-FT", "1,317", "2,635", "0.100", "0.732"),
        ("1B-LoRA", "6", "24", "0.123", "0.731"),
        ("6.7B-FT", "6,666", "483,652", "9.040", "0.927"),
        ("6.7B-LoRA", "16", "54", "0.120", "0.935"),
        ("RoBERTa-large", "336", "-", "-", "0.924 ‡"),
    ],
    "jcommonsenseqa": [
        ("1B-FT", "1,317", "2,635", "0.089", "0.641"),
        ("1B-LoRA", "6", "24", "0.151", "0.012"),
        ("6.7B-FT", "6,666", "483,652", "9.031", "0.933"),
        ("6.7B-LoRA", "16", "54", "0.108", "0.935"),
        ("RoBERTa-large", "336", "-", "-", "0.901 ‡"),
    ],
    "xlsum_ja": [
        ("1B-FT", "1,317", "2,635", "0.472", "0.417/0.154/0.290"),
        ("1B-LoRA", "6", "24", "2.315", "0.153/0.034/0.134"),
        ("6.7B-FT", "6,666", "483,652", "9.060", "0.397/0.139/0.274"),
        ("6.7B-LoRA", "16", "54", "4.271", "0.457/0.213/0.340"),
    ],
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table of text cells, with notes under it."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        lines = ["| " + " | ".join(_cell(one) for one in row) + " |" for row in (self.header, *self.rows)]
        lines.insert(1, "|" + " --- |" * len(self.header))
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return f"### {self.title}\n\n" + "\n".join(lines) + "\n" + notes

    def to_csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "⏎").replace("<", "&lt;")


def _tasks(result: StudyResult) -> dict[str, Task]:
    return {task_label(choice): load_task(choice) for choice in result.study.tasks}


def data_table(result: StudyResult, tasks: Mapping[str, Task]) -> Table:
    rows = []
    notes = []
    for label, task in tasks.items():
        counts = [f"{len(task.examples[part]):,}" for part in SPLITS]
        version = f" v{task.version}" if task.version else ""
        rows.append((f"{label}{version}", *counts, f"{task.split} / {task.format}", task.template + "{answer}"))
        note = task.spec.splits[task.split].note
        notes.append(f"{label}: {task.spec.licence}; {task.spec.citation}.{' ' + note if note else ''}")
    return Table(name="table1", title="表 1: データセット / Table 1: data", header=("Task", "Train", "Validation", "Test", "Split / format", "Input format"), rows=tuple(rows), notes=tuple(notes))


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def score_text(evaluation: Mapping[str, Any]) -> str:
    """`0.378 [0.341, 0.417]`; ROUGE as 1/2/L with the interval of L."""
    scores = {one["name"]: one for one in evaluation["scores"]}
    main = evaluation["main"]
    values = "/".join(f"{scores[name]['value']:.3f}" for name in scores) if "rougeL" in scores else f"{main['value']:.3f}"
    return f"{values} [{main['low']:.3f}, {main['high']:.3f}]"


def memory_text(measurement: Mapping[str, Any]) -> str:
    """Peak memory in MiB: `allocated / reserved` on CUDA, resident size of the process on a CPU."""
    if measurement["peak_allocated_bytes"] is not None:
        return f"{measurement['peak_allocated_bytes'] / 2**20:,.0f} / {measurement['peak_reserved_bytes'] / 2**20:,.0f}"
    return f"{measurement['peak_process_bytes'] / 2**20:,.0f} (process)"


def results_table(result: StudyResult, tasks: Mapping[str, Task]) -> Table:
    header = ("Task", "Method", "Trainable (M)", "Weights file (MiB)", "Peak memory (MiB)", "s/step @8", "s/step (batch)", "tokens/s", "s/answer", "Validation", "Test", "Candidate rate", "n")
    rows: list[tuple[str, ...]] = []
    for label, task in tasks.items():
        for model in result.study.models:
            for method in result.study.methods:
                cell = result.chosen.get((model.label, label, method.name))
                record = result.record(cell) if cell else None
                if cell is not None and record is not None:
                    rows.append(_result_row(label, cell, record))
                elif method.tasks is None or task.name in method.tasks:
                    rows.append((label, f"{model.label}-{method.name}", *["-"] * 8, "no cell learned", "-", "-"))
        rows += [(label, name, *["-"] * 8, value, "-", str(len(task.examples["test"]))) for name, value in baselines(task)]
        if result.study.reference_rows:
            for name, trainable, memory, seconds, value in PAPER_ROWS.get(task.name, []):
                rows.append((label, f"{name} ({PAPER}) †", trainable, "-", memory, seconds, "-", "-", "-", "-", value, "-", "-"))
    return Table(name="table2", title="表 2: 評価結果 / Table 2: results", header=header, rows=tuple(rows), notes=tuple(results_notes(result)))


def _result_row(label: str, cell: Cell, record: RunRecord) -> tuple[str, ...]:
    happened, measured = record.happened, record.happened["measurement"]
    solo = happened.get("solo") or {}
    own = solo.get(str(record.config.train.batch)) or {}
    test, validation = record.evaluation("test"), record.evaluation("validation")
    assert validation is not None
    return (
        label,
        f"{cell.model.label}-{cell.method.name}",
        f"{happened['trainable'] / 1e6:,.2f}",
        f"{happened['weights_bytes'] / 2**20:,.1f}",
        memory_text(measured),
        _seconds(solo.get("8") or {}),
        f"{_seconds(own)} ({record.config.train.batch})",
        _number(own.get("tokens_per_s"), ",.0f"),
        _number((test or validation)["answer_s"], ".4f"),
        score_text(validation),
        score_text(test) if test else "not scored yet",
        _number(test["candidate_rate"] if test else None),
        str(test["main"]["n"]) if test else "-",
    )


def _seconds(measured: Mapping[str, Any]) -> str:
    """`median (mean)` seconds a step."""
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


def results_notes(result: StudyResult) -> list[str]:
    """What a reader must know to read Table 2, differences between compared runs included."""
    records = [record for cell in result.chosen.values() if (record := result.record(cell)) is not None]
    notes = []
    for record in records[:1]:
        what = record.with_what
        notes.append(f"Device: {what['device']}; torch {what['versions']['torch']}, transformers {what['versions']['transformers']}, tsugiki {what['versions']['tsugiki']}.")
    for checksum in sorted({f"{record.config.model.label}: sha256 {record.with_what['model_sha256']}" for record in records}):
        notes.append(f"Base model {checksum}.")
    for numerics in sorted({f"{record.config.method}: products {n['compute']}, frozen base {n['base']}, trained {n['trained']}" for record in records for n in [record.with_what["numerics"]]}):
        notes.append(f"Precision, {numerics}.")
    signatures = sorted({one["signature"] for record in records if (test := record.evaluation("test")) for one in test["scores"]})
    notes.append("Scores: mean [95 % bootstrap interval, 2,000 resamples; whole groups where rows depend on each other]; n = test examples; one seed. " + " ; ".join(signatures))
    notes.append("Seconds a step: median / mean, first 5 steps excluded, the device to itself (a probe of 40 steps, the second time round, where cells ran side by side). @8: at the paper's batch of 8. Memory: peak of PyTorch's allocator, allocated / reserved, on CUDA; largest resident size of the whole process on a CPU.")
    notes.append("Each cell was chosen by its validation score; the test set was read once, by the chosen cell. " + "; ".join(f"{' '.join(cell.key)}: {chosen_text(cell)}" for cell in result.chosen.values()) + ".")
    notes += differences(result)
    if result.study.reference_rows:
        notes.append(f"† Quoted from {PAPER}「日本語の大規模な基盤モデルに対する LoRA チューニング」, NLP2023, Table 2: other models, A100; its memory column mixes units (24 MB is the size of an adapter file). ‡ Scored there on the whole validation set, so not comparable.")
    return notes + [f"What the paper leaves open, here: {text}." for text in sorted({protocol_text(record) for record in records})]


def protocol_text(record: RunRecord) -> str:
    """The settings of one chosen run that the paper does not give."""
    train, lora = record.config.train, record.config.lora
    scale = f"LoRA: α/r = {lora.scale:g}, dropout {lora.dropout:g}; " if lora else "FT: "
    schedule = f"{train.schedule} rate" + (f" with {train.warmup:.0%} warm-up" if train.warmup else "")
    return f"{scale}AdamW, weight decay {train.weight_decay:g}, gradient norm at most {train.clip:g}, {schedule}, seed {train.seed}, at most {train.max_length:,} tokens, greedy decoding"


def chosen_text(cell: Cell) -> str:
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in cell.settings.items()) or "the only cell"


def differences(result: StudyResult) -> list[str]:
    """The fairness lock: every training setting, other than the searched ones, in which compared chosen cells differ."""
    notes = []
    searched = {"learning_rate", "epochs"}
    for model in result.study.models:
        for choice in result.study.tasks:
            cells = [cell for key, cell in result.chosen.items() if key[:2] == (model.label, task_label(choice))]
            for name in type(cells[0].config.train).model_fields if len(cells) > 1 else ():
                values = {cell.method.name: getattr(cell.config.train, name) for cell in cells}
                if name not in searched and len(set(values.values())) > 1:
                    notes.append(f"{task_label(choice)}: compared cells differ in {name}: " + ", ".join(f"{method} {value}" for method, value in values.items()) + ".")
    return notes


def comparison_table(result: StudyResult) -> Table:
    """Paired difference between the first method and each other one on the same test examples."""
    rows = []
    for model in result.study.models:
        for choice in result.study.tasks:
            here = [(key[2], result.record(cell)) for key, cell in result.chosen.items() if key[:2] == (model.label, task_label(choice))]
            for other_name, other in here[1:]:
                first_name, first = here[0]
                if first is None or other is None or not (first.evaluation("test") and other.evaluation("test")):
                    continue
                mean, low, high = _paired(first, other)
                verdict = "undecided" if low <= 0 <= high else (f"{first_name} better" if mean > 0 else f"{other_name} better")
                rows.append((f"{model.label} · {task_label(choice)}", f"{first_name} - {other_name}", f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]", verdict))
    note = "Paired bootstrap over the same test examples (by group), 95 %; one seed, so the spread between seeds is not in it."
    return Table(name="comparison", title="対応のある差 / Paired differences on test", header=("Model · task", "Difference", "Main score", "Reading"), rows=tuple(rows), notes=(note,))


def _paired(first: RunRecord, other: RunRecord) -> tuple[float, float, float]:
    evaluation = first.evaluation("test")
    assert evaluation is not None
    name = evaluation["main"]["name"]
    metric = "rouge" if name.startswith("rouge") else name
    values, groups = [], []
    for record in (first, other):
        answers = record.answers("test")
        values.append(per_example(metric, [one["answer"] for one in answers], [one["target"] for one in answers])[name])
        groups = [one["group"] for one in answers]
    return paired_difference(values[0], values[1], groups)


def failure_table(result: StudyResult) -> Table:
    rows = []
    used = [name for name in CLASSES if any(name in (evaluation["failures"]) for evaluation in _tests(result).values())]
    for key, evaluation in _tests(result).items():
        rows.append((" · ".join(key), *(str(evaluation["failures"].get(name, 0)) for name in used), str(evaluation["main"]["n"])))
    note = "For summaries only the technical classes apply; the rest counts as “right”."
    return Table(name="failures", title="誤りの種類 / Failure classes on test", header=("Model · task · method", *(ENGLISH[name] for name in used), "n"), rows=tuple(rows), notes=(note,))


def _tests(result: StudyResult) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    found = {}
    for key, cell in result.chosen.items():
        record = result.record(cell)
        if record is not None and (evaluation := record.evaluation("test")) is not None:
            found[key] = evaluation
    return found


def grid_table(result: StudyResult) -> Table:
    """Every cell with its validation score; the chosen ones are marked."""
    rows = []
    for cell in result.cells:
        record = result.record(cell)
        evaluation = record.evaluation("validation") if record else None
        status = score_text(evaluation) if evaluation else (record.happened.get("reason", record.status) if record else "not run")
        rate = _number(evaluation["candidate_rate"]) if evaluation else "-"
        mark = "★" if result.chosen.get(cell.key) is cell else ""
        rows.append((" · ".join(cell.key), chosen_text(cell), status, rate, mark))
    return Table(name="table3", title="表 3: 探索した設定 / Table 3: the grid, by validation", header=("Model · task · method", "Setting", "Validation", "Candidate rate", "Chosen"), rows=tuple(rows))


def answers_tables(result: StudyResult, tasks: Mapping[str, Task]) -> list[Table]:
    """Tables 4–6: the same test examples answered by every method; the first where methods disagree, else the first."""
    tables = []
    for number, (label, task) in enumerate(tasks.items(), 4):
        answers: dict[str, Sequence[Mapping[str, Any]]] = {}
        for key, cell in result.chosen.items():
            record = result.record(cell)
            if key[1] == label and record is not None and record.evaluation("test"):
                answers[f"{key[0]}-{key[2]}"] = record.answers("test")
        if not answers:
            continue
        columns = list(answers.values())
        places = range(len(columns[0]))
        differing = [place for place in places if len({column[place]["answer"] for column in columns}) > 1]
        shown = [*differing, *(place for place in places if place not in set(differing))][:EXAMPLES_SHOWN]
        rows: list[tuple[str, ...]] = []
        for place in shown:
            example = task.examples["test"][place]
            rows.append((example.id, "Input", _short(task.template.format_map(dict(example.fields)))))
            rows.append(("", "正解 / reference", example.target))
            rows += [("", name, column[place]["answer"] + ("" if column[place]["ended"] else " …")) for name, column in answers.items()]
        tables.append(Table(name=f"table{number}", title=f"表 {number}: {label} の生成例 / Table {number}: generated answers", header=("Example", "Method", "Text"), rows=tuple(rows)))
    return tables


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def all_tables(result: StudyResult) -> list[Table]:
    tasks = _tasks(result)
    head = [data_table(result, tasks), results_table(result, tasks), comparison_table(result), failure_table(result), grid_table(result)]
    return head + answers_tables(result, tasks)
