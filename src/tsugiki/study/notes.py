"""What stands under Table 2: device, precision, protocol, the fairness lock, and the paper's own figures as quoted rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tsugiki.study.cells import Cell, StudyResult, task_label
from tsugiki.study.store import RunRecord

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


def results_notes(result: StudyResult) -> list[str]:
    """What a reader must know to read Table 2, differences between compared runs included."""
    records = [record for cell in result.chosen.values() if (record := result.record(cell)) is not None]
    notes = [*_machine_notes(records), *_score_notes(records), *_cost_notes()]
    counts = Counter(cell.key for cell in result.cells)
    chosen = "; ".join(f"{' '.join(cell.key)}: {chosen_text(cell)} (best of {counts[cell.key]})" for cell in result.chosen.values())
    notes.append(f"Each cell was chosen by its validation score; the test set was read once, by the chosen cell. {chosen}.")
    notes += differences(result) + edges(result)
    if result.study.reference_rows:
        notes.append(
            f"† Quoted from {PAPER}「日本語の大規模な基盤モデルに対する LoRA チューニング」, NLP2023, Table 2: other models, A100; "
            "its memory column mixes units (24 MB is the size of an adapter file). ‡ Scored there on the whole validation set, so not comparable."
        )
    return notes + [f"What the paper leaves open, here: {text}." for text in sorted({protocol_text(record) for record in records})]


def _machine_notes(records: Sequence[RunRecord]) -> list[str]:
    notes = set()
    for record in records:
        what, versions = record.with_what, record.with_what["versions"]
        numerics = what["numerics"]
        notes.add(f"Device: {what['device']}; torch {versions['torch']}, transformers {versions['transformers']}, tsugiki {versions['tsugiki']}.")
        notes.add(f"Model {record.config.model.label}: weights of sha256 {what['model_sha256']}.")
        notes.add(f"Precision, {record.config.method}: products {numerics['compute']}, base {numerics['base']}, trained {numerics['trained']}.")
        if step := record.happened.get("step"):
            notes.add(f"Optimiser step, {record.config.method}: {step}.")
    return sorted(notes)


def _score_notes(records: Sequence[RunRecord]) -> list[str]:
    signatures = sorted({one["signature"] for record in records if (test := record.evaluation("test")) for one in test["scores"]})
    rule = "Scores: mean [95 % bootstrap interval, 2,000 resamples, whole groups where rows depend on each other]; n = test examples; one seed."
    return [f"{rule} {' ; '.join(signatures)}"]


def _cost_notes() -> list[str]:
    return [
        "Seconds a step: median / mean, the first 5 steps left out, the device to itself "
        "(where cells ran side by side: a probe of 40 steps, timed the second time round). @8: at the paper's batch of 8.",
        "Memory: peak of PyTorch's allocator, allocated / reserved, on CUDA (a captured step's is taken while it is recorded); "
        "on a CPU the largest resident size of the whole process, "
        "which only grows from cell to cell.",
    ]


def score_text(evaluation: Mapping[str, Any]) -> str:
    """`0.378 [0.341, 0.417]`; ROUGE as 1/2/L with the interval of L."""
    scores = {one["name"]: one for one in evaluation["scores"]}
    main = evaluation["main"]
    values = "/".join(f"{scores[name]['value']:.3f}" for name in scores) if "rougeL" in scores else f"{main['value']:.3f}"
    return f"{values} [{main['low']:.3f}, {main['high']:.3f}]"


def protocol_text(record: RunRecord) -> str:
    """The settings of one chosen run that the paper does not give."""
    train, lora = record.config.train, record.config.lora
    method = f"LoRA: α/r = {lora.scale:g}, dropout {lora.dropout:g}" if lora else "FT: dropout 0"
    schedule = f"{train.schedule} rate" + (f" with {train.warmup:.0%} warm-up" if train.warmup else "")
    decay = f"AdamW, weight decay {train.weight_decay:g}, gradient norm at most {train.clip:g}"
    return f"{method}; {decay}; {schedule}; seed {train.seed}; at most {record.happened['max_length']:,} tokens; greedy decoding"


def chosen_text(cell: Cell) -> str:
    """The searched settings of a cell: `learning_rate 0.001, epochs 3`."""
    return ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in cell.settings.items()) or "the only cell"


def differences(result: StudyResult) -> list[str]:
    """The fairness lock: every training setting in which compared chosen cells differ, unless both methods searched it."""
    notes = []
    for model in result.study.models:
        for choice in result.study.tasks:
            cells = [cell for key, cell in result.chosen.items() if key[:2] == (model.label, task_label(choice))]
            searched = set.intersection(*(set(cell.method.grid) for cell in cells)) if cells else set()
            for name in type(cells[0].config.train).model_fields if len(cells) > 1 else ():
                values = {cell.method.name: getattr(cell.config.train, name) for cell in cells}
                if name not in searched and len(set(values.values())) > 1:
                    text = ", ".join(f"{method} {value}" for method, value in values.items())
                    notes.append(f"{task_label(choice)}: compared cells differ in {name}: {text}.")
    return notes


def edges(result: StudyResult) -> list[str]:
    """Chosen cells whose learning rate is the lowest or highest that was tried: a better one may lie outside."""
    found = []
    for cell in result.chosen.values():
        tried = sorted({other.config.train.learning_rate for other in result.cells if other.key == cell.key})
        rate = cell.config.train.learning_rate
        if len(tried) > 1 and rate in (tried[0], tried[-1]):
            found.append(f"{' '.join(cell.key)} ({rate:g}, {'lowest' if rate == tried[0] else 'highest'} of {len(tried)})")
    return [f"Best learning rate on the edge of the grid, so a wider one may do better: {'; '.join(found)}."] if found else []
