"""What stands under the tables of scores and costs: protocol, precision, the fairness lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tsugiki.config.study import Range
from tsugiki.data.leaks import shared_rows
from tsugiki.data.tasks import Task
from tsugiki.report.paper import PAPER, TITLE
from tsugiki.report.texts import chosen_text
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.study.cells import Cell, StudyResult
from tsugiki.words import Language, say


def score_notes(result: StudyResult, language: Language) -> list[str]:
    """What a reader must know to read the scores, differences between compared runs included."""
    records = _chosen(result)
    notes = [_score_rule(result, records, language), _choice_note(result, language)]
    notes += differences(result, language)
    if result.study.reference_rows:
        notes.append(say(language, "notes.paper_rows", paper=PAPER, title=TITLE))
    left_open = say(language, "notes.details")
    return notes + [
        f"{left_open}: {text}."
        for text in sorted({protocol_text(record, language) for record in records})
    ]


def _chosen(result: StudyResult) -> list[RunRecord]:
    return [record for cell in result.chosen.values() if (record := result.record(cell))]


def _score_rule(result: StudyResult, records: Sequence[RunRecord], language: Language) -> str:
    tests = [test for record in records if (test := record.scores("test"))]
    signatures = sorted({score.signature for test in tests for score in test.scores})
    seeds = result.study.num_seeds
    several = say(language, "notes.seeds", seeds=seeds)
    said = several if seeds > 1 else say(language, "notes.one_seed")
    rule = say(language, "notes.scores", seeds=said)
    return f"{rule} {' ; '.join(signatures)}"


def cost_notes(result: StudyResult, language: Language) -> list[str]:
    """How times and memory were measured, and in which precision."""
    records = _chosen(result)
    on_cuda = any(record.cost().peak_allocated_bytes is not None for record in records)
    notes = [say(language, "notes.seconds")]
    notes.append(say(language, "notes.memory" if on_cuda else "notes.cpu_memory"))
    kinds = set()
    for record in records:
        if not method_of(record.config).tuned:
            continue
        stored = say(language, "notes.stored", **record.provenance.numerics.model_dump())
        step = say(language, "notes.step_kind", step=record.outcome.step or "-")
        kinds.add(f"{record.config.method}: {stored}; {step}.")
    return [*notes, *sorted(kinds)]


def _choice_note(result: StudyResult, language: Language) -> str:
    counts = Counter(cell.key for cell in result.cells)
    best = {key: say(language, "notes.best_of", n=count) for key, count in counts.items()}
    chosen = "; ".join(
        f"{' '.join(cell.key)}: {chosen_text(cell, language)} ({best[cell.key]})"
        for cell in result.chosen.values()
    )
    rule = say(language, "notes.choice_rule")
    return f"{rule} {chosen}.{_also_tested(result, language)}"


def _also_tested(result: StudyResult, language: Language) -> str:
    """Names the cells that read test though they are not chosen now: chosen in a smaller grid,
    say, or before they were trained again."""
    chosen = {cell.label for cell in result.chosen.values()}
    folders = {record.folder for label, record in result.records.items() if label in chosen}
    others: dict[Path, str] = {}
    for label, record in result.records.items():
        if record.scores("test") is not None and record.folder not in folders:
            others.setdefault(record.folder, label)
    if not others:
        return ""
    return say(language, "notes.also_tested", cells="; ".join(others.values()))


def protocol_text(record: RunRecord, language: Language) -> str:
    """The settings of one chosen run that the paper does not give."""
    train = record.config.train
    method = method_of(record.config)
    if not method.tuned:
        shots = record.config.shots
        drawn = say(language, "notes.shots", shots=shots, seed=train.seed) if shots else ""
        return say(language, "notes.untouched", shots=drawn)
    if not method.trains:
        there = record.outcome.adapter
        assert there is not None, "an imported run says what it is"
        kind = f"{there.targets}, r = {there.rank}, α = {there.alpha:g}"
        return say(language, "notes.imported", kind=kind)
    warm = say(language, "notes.warmup", warmup=train.warmup) if train.warmup else ""
    schedule = f"{train.schedule} {say(language, 'notes.schedule')}{warm}"
    decay = say(language, "notes.optimizer", clip=train.clip, weight_decay=train.weight_decay)
    length = record.outcome.max_length
    key = "notes.rest" if method.answering.writes else "notes.rest_chosen"
    rest = say(language, key, length=length, seed=train.seed)
    return f"{method.summary(record.config)}; {decay}; {schedule}; {rest}"


def differences(result: StudyResult, language: Language) -> list[str]:
    """The fairness lock: every training setting in which compared chosen cells differ, unless all
    of them tried the same values of it."""
    notes = []
    for model in result.study.models:
        for choice in result.study.tasks:
            shown = [
                cell
                for key, cell in result.chosen.items()
                if key[:2] == (model.label, choice.label)
            ]
            # How an imported one was trained is not known.
            cells = [cell for cell in shown if method_of(cell.config).trains]
            for name in type(cells[0].config.train).model_fields if len(cells) > 1 else ():
                values = {cell.method.name: getattr(cell.config.train, name) for cell in cells}
                tried = {cell.method.name: _tried_values(cell, name) for cell in cells}
                if len(set(tried.values())) > 1 and len(set(values.values())) > 1:
                    text = ", ".join(
                        f"{method} {value}{_of(tried[method], language)}"
                        for method, value in values.items()
                    )
                    differ = say(language, "notes.differences", name=name)
                    notes.append(f"{choice.label}: {differ}: {text}.")
    return notes


def _tried_values(cell: Cell, name: str) -> tuple[object, ...]:
    """What its method tried of a setting: the values, or the range; one where it was not
    searched."""
    tried = cell.method.grid.get(name)
    if isinstance(tried, Range):
        return (tried.low, tried.high, tried.log)
    return (
        tuple(sorted(set(tried), key=str))
        if tried is not None
        else (getattr(cell.config.train, name),)
    )


def _of(tried: tuple[object, ...], language: Language) -> str:
    return "" if len(tried) == 1 else say(language, "notes.tried", count=len(tried))


def comparable_notes(result: StudyResult, language: Language) -> list[str]:
    """Which numbers of the report may be set beside which, and which may not."""
    records = _chosen(result)
    several = [
        len({each(record) for record in records}) > 1
        for each in (lambda r: r.provenance.device, lambda r: r.provenance.versions["torch"])
    ]
    splits = [
        choice
        for choice in result.study.tasks
        if choice.split or choice.train_rows or choice.eval_rows
    ]
    notes = [say(language, f"notes.{key}") for key in ("same", "other_tasks", "cpu_memory")]
    if splits:
        rows = ", ".join(
            f"{split.label}" + (f" ({split.train_rows:,})" if split.train_rows else "")
            for split in splits
        )
        notes.append(say(language, "notes.fewer_rows", rows=rows))
    if any(several):
        notes.append(say(language, "notes.devices"))
    if result.study.reference_rows:
        notes.append(say(language, "notes.quoted"))
    return notes


def leak_notes(task: Task, language: Language) -> list[str]:
    """How much of validation and test stands in the training data, and of test in validation;
    nothing where nothing does."""
    pairs = (("validation", "train"), ("test", "train"), ("test", "validation"))
    return [note for part, other in pairs if (note := _leak_note(task, part, other, language))]


def _leak_note(task: Task, part: str, other: str, language: Language) -> str | None:
    shared = shared_rows(task, part, other)
    if not (shared.same or shared.mirrored or shared.grouped):
        return None
    source = say(language, f"label.{other}_data")
    name, counts = (
        say(language, f"label.{part}_rows"),
        (shared.same, shared.mirrored, shared.grouped),
    )
    counted = (
        say(language, f"notes.leak_{kind}", count=count, source=source)
        for kind, count in zip(("same", "mirrored", "grouped"), counts, strict=True)
        if count
    )
    parts = ("、" if language == "ja" else ", ").join(counted)
    return say(language, "notes.leak", name=name, n=len(task.examples[part]), parts=parts)


def shared_note(result: StudyResult, language: Language) -> list[str]:
    """How the cells were trained: many in one pass, shorter ones from a longer run's
    checkpoints."""
    records = [record for cell in result.cells if (record := result.record(cell)) is not None]
    shared = sum(record.outcome.branch is not None for record in records)
    notes = []
    if shared:
        notes.append(say(language, "notes.branched", shared=shared, total=len(records)))
    lanes = Counter(
        record.outcome.lanes or 1 for record in records if method_of(record.config).together
    )
    if max(lanes, default=1) > 1:
        text = ", ".join(f"{count} × {number}" for number, count in sorted(lanes.items()))
        notes.append(say(language, "notes.together", text=text))
    return notes
