"""What tuning did to what nothing was tuned on: every method's chosen configuration against the
untouched base, on the same rows of other tasks and the same texts. No torch here."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from tsugiki.data.tasks import Task
from tsugiki.errors import RunError, reason_of
from tsugiki.report.standing import floor_of
from tsugiki.report.table import (
    Content,
    Estimated,
    Number,
    Said,
    Table,
    column,
    lines,
    phrase,
    said,
)
from tsugiki.runs.answer_values import values_in
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord, read_answers
from tsugiki.runs.record import Elsewhere, Scores
from tsugiki.score.rules import METRICS, metric_of
from tsugiki.score.statistics import Estimate, Scale, paired_difference
from tsugiki.study.cells import Cell, Key, StudyResult
from tsugiki.words import Language, say

Mode = Literal["answers", "likeliest", "text"]
PART = "test"
ON: dict[Mode, str] = {
    "answers": "forgetting.on_answers",
    "likeliest": "forgetting.on_likeliest",
    "text": "forgetting.on_text",
}
COLUMNS = (
    column("tuned_on", "text", "label.model_tuned_on"),
    column("method", "text", "label.method"),
    column("measured_on", "text", "label.measured_on"),
    column("n", "number", "label.n"),
    column("seeds", "number", "label.seeds"),
    column("value", "number", "label.value"),
    column("base", "number", "label.base_value"),
    column("difference", "score", "label.difference"),
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One method (or the first of two less the second) on one thing: mean over seeds, what it is
    set against, their paired difference; `informative`: the base lies above what needs no model, so
    that something can be lost. Of a text, `value` and `against` are perplexities and
    `difference` is that of nats a token, so that its exponential is their ratio."""

    key: Key
    other: str
    on: str
    mode: Mode
    n: int
    seeds: int
    value: float
    against: float
    difference: Estimate
    informative: bool = True

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Of perplexities, with its interval."""
        each = self.difference
        return (math.exp(each.mean), math.exp(each.low), math.exp(each.high))


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One method on one thing: values a seed and row, the rows, and the score's scale (of nats
    None)."""

    values: tuple[tuple[float, ...], ...]
    rows: tuple[str, ...]
    groups: tuple[str, ...]
    value: float
    scale: Scale | None


def changes(result: StudyResult, tasks: Mapping[str, Task]) -> list[Change]:
    """Every tuned method against the base, then against each other, on everything that all of them
    were scored on."""
    all_changes = list[Change]()
    if not result.study.forgetting:
        return all_changes  # of another study over the same runs
    for model_task in dict.fromkeys(key[:2] for key in result.chosen):
        cells = [cell for key, cell in result.chosen.items() if key[:2] == model_task]
        # An encoder knows the answers of one task alone.
        writing = [cell for cell in cells if method_of(cell.config).answering.writes]
        tuned = [cell for cell in writing if method_of(cell.config).tuned]
        tuned.sort(key=lambda cell: method_of(cell.config).order)
        base = next((cell for cell in cells if not method_of(cell.config).tuned), None)
        if base is None:
            continue
        for on, content, mode in _measures(result, base, tuned):
            of_base = _measured(result, base, content, mode)
            if of_base is None:
                continue
            informative = mode == "text" or _above_floor(of_base, tasks.get(on))
            each = [
                (cell, own)
                for cell in tuned
                if (own := _measured(result, cell, content, mode)) is not None
                and own.rows == of_base.rows
            ]
            pairs = [
                *((first, (base, of_base)) for first in each),
                *itertools.combinations(each, 2),
            ]
            all_changes += [
                replace(_change(first, second, on, mode), informative=informative)
                for first, second in pairs
            ]
    return all_changes


def _measures(
    result: StudyResult, base: Cell, tuned: Sequence[Cell]
) -> Iterator[tuple[str, str, Mode]]:
    """(name, content, mode) of everything that the study asks for and the base was scored on; where
    one name stands for several contents (other studies share the runs), what most methods have."""
    record = result.record(base)
    runs = [[run.outcome.elsewhere for run in result.seeds(cell)] for cell in tuned]

    def shared(entry: Elsewhere) -> int:
        return sum(
            any(other.content == entry.content for entries in of_cell for other in entries)
            for of_cell in runs
        )

    for choice in result.study.forgetting:
        entries = record.outcome.elsewhere if record else ()
        named = [entry for entry in entries if entry.name == choice.label]
        if not named:
            continue
        entry = max(reversed(named), key=shared)
        if entry.text is not None:
            yield entry.name, entry.content, "text"
        if entry.scores is not None:
            yield entry.name, entry.content, "answers"
        if entry.likeliest is not None:
            yield entry.name, entry.content, "likeliest"


def _change(
    first: tuple[Cell, _Measured], second: tuple[Cell, _Measured], on: str, mode: Mode
) -> Change:
    (cell, ours), (other, theirs) = first, second
    tuned = method_of(other.config).tuned
    # One base stands against each seed.
    against = theirs.values if tuned else theirs.values * len(ours.values)
    return Change(
        key=cell.key,
        other=other.key[2] if tuned else "",
        on=on,
        mode=mode,
        n=len(ours.rows),
        seeds=min(len(ours.values), len(against)),
        value=ours.value,
        against=theirs.value,
        difference=paired_difference(ours.values, against, ours.groups, scale=ours.scale),
    )


def _measured(result: StudyResult, cell: Cell, content: str, mode: Mode) -> _Measured | None:
    """Over the seeds that were scored there (a full model's weights may be gone); None where none
    was, or their rows differ."""
    known = list[_Measured]()
    for record in result.seeds(cell):
        try:
            measured = _of_run(record, content, mode)
        except (RunError, OSError) as damaged:
            result.damaged.append(reason_of(damaged))
            continue
        known += [] if measured is None else [measured]
    if not known or len({each.rows for each in known}) > 1:
        return None
    mean = math.fsum(each.value for each in known) / len(known)
    nats = math.fsum(math.log(each.value) for each in known) / len(known) if mode == "text" else 0.0
    return _Measured(
        values=tuple(each.values[0] for each in known),
        rows=known[0].rows,
        groups=known[0].groups,
        value=math.exp(nats) if mode == "text" else mean,
        scale=known[0].scale,
    )


def _above_floor(base: _Measured, task: Task | None) -> bool:
    """Whether the base is worth more there than what needs no model; True where that is not
    known."""
    if task is None:
        return True
    ids = [row.split("\t", maxsplit=1)[0] for row in base.rows]
    floor = floor_of(task, PART, ids, METRICS[task.spec.metric].main)
    if floor is None:
        return True
    above = paired_difference(base.values, [floor.values], base.groups, scale=base.scale)
    return above.low > 0


def _of_run(record: RunRecord, content: str, mode: Mode) -> _Measured | None:
    entries = (each for each in record.outcome.elsewhere if each.content == content)
    entry = next(entries, None)
    if entry is None:
        return None
    if mode == "text":
        return _of_text(record, entry)
    scores = entry.scores if mode == "answers" else entry.likeliest
    return None if scores is None else _of_answers(record, scores)


def _of_answers(record: RunRecord, scores: Scores) -> _Measured:
    rows = read_answers(record.folder / scores.file)
    return _Measured(
        values=(tuple(values_in(record.folder, scores)),),
        rows=tuple(f"{row.id}\t{row.target}" for row in rows),
        groups=tuple(row.group for row in rows),
        value=scores.main.value,
        scale=metric_of(scores.main.name).scale,
    )


def _of_text(record: RunRecord, entry: Elsewhere) -> _Measured | None:
    """Nats a token are a ratio of sums: each document has them plus its influence on them."""
    assert entry.text is not None
    path = record.folder / entry.text.file
    pairs = _documents(path, path.stat().st_mtime_ns)
    tokens, mean = sum(count for _, count in pairs), entry.text.nats
    share = len(pairs) / tokens
    values = tuple(mean + share * (nats - mean * count) for nats, count in pairs)
    rows = tuple(f"{entry.text.sha256}:{number}:{count}" for number, (_, count) in enumerate(pairs))
    return _Measured(values=(values,), rows=rows, groups=rows, value=math.exp(mean), scale=None)


@lru_cache(maxsize=256)
def _documents(path: Path, stamp: int) -> tuple[tuple[float, int], ...]:
    try:
        content = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return tuple((float(nats), int(count)) for nats, count in content)
    except (OSError, ValueError, TypeError) as broken:
        raise RunError(f"{path}: damaged or cut short ({broken})") from None


def forgetting_table(result: StudyResult, all_changes: Sequence[Change]) -> Table | None:
    """None where the study asks for none."""
    if not result.study.forgetting:
        return None
    rows = [_row(change) for change in all_changes]

    def notes(language: Language) -> list[str]:
        unknown = {
            (change.on, change.mode): change for change in all_changes if not change.informative
        }
        names = [_measure(change, language) for change in unknown.values()]
        comma = "、" if language == "ja" else ", "
        no_skill = [say(language, "forgetting.no_skill", names=comma.join(names))] * bool(names)
        return [say(language, "forgetting.rule"), *no_skill, *_costs(result, language)]

    title = phrase("forgetting.title")
    return Table(
        name="forgetting", title=title, columns=COLUMNS, rows=tuple(rows), notes=lines(notes)
    )


def _row(change: Change) -> tuple[Content, ...]:
    model_task = " · ".join(change.key[:2])
    method = f"{change.key[2]} - {change.other}" if change.other else change.key[2]
    on = said(lambda language: _measure(change, language))
    form = ".2f" if change.mode == "text" else ".3f"
    values = [Number(value=value, form=form) for value in (change.value, change.against)]
    return (model_task, method, on, change.n, change.seeds, *values, _difference(change))


def _difference(change: Change) -> Estimated:
    if change.mode == "text":
        value, low, high = change.ratio
        text = f"× {value:.3f} [{low:.3f}, {high:.3f}]"
    else:
        value, low, high = (
            change.difference.mean, change.difference.low, change.difference.high,
        )  # fmt: skip
        text = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    return Estimated(value=value, low=low, high=high, words=Said(en=text, ja=text))


def _measure(change: Change, language: Language) -> str:
    return say(language, ON[change.mode], name=change.on)


def _costs(result: StudyResult, language: Language) -> list[str]:
    """What these scores took, and the untouched base's rows."""
    runs = [(cell, record) for cell in result.chosen.values() for record in result.seeds(cell)]
    names = {choice.label for choice in result.study.forgetting}
    elsewhere = [
        sum(
            {
                each.name: each.seconds for each in record.outcome.elsewhere if each.name in names
            }.values()
        )
        for _, record in runs
    ]
    of_base = [
        scores.answer_s * scores.main.n
        for cell, record in runs
        if not method_of(cell.config).tuned
        for scores in record.outcome.scores
    ]
    training = [
        (cost.step_s_mean or 0.0) * (record.outcome.steps or 0)
        for _, record in runs
        if (cost := record.cost())
    ]
    return [
        say(
            language,
            "forgetting.costs",
            base_s=sum(of_base),
            base_rows=len({cell.key for cell, _ in runs if not method_of(cell.config).tuned}),
            runs=sum(1 for seconds in elsewhere if seconds),
            seconds=sum(elsewhere),
            training_s=sum(training),
        )
    ]


def forgetting_statements(all_changes: Sequence[Change], language: Language) -> list[str]:
    """A sentence for each model and task that was tuned on: what became of the rest."""
    statements = []
    for model_task in dict.fromkeys(change.key[:2] for change in all_changes):
        of_task = [change for change in all_changes if change.key[:2] == model_task]
        own = [change for change in of_task if change.informative and not change.other]
        if not own:
            continue
        parts = []
        for method in dict.fromkeys(change.key[2] for change in own):
            said_of = [_said(change, language) for change in own if change.key[2] == method]
            parts.append(f"{method}: {('、' if language == 'ja' else ', ').join(said_of)}")
        joined = ("。" if language == "ja" else "; ").join(parts)
        where = " · ".join(model_task)
        statements.append(say(language, "forgetting.sentence", where=where, parts=joined))
    return statements


def _said(change: Change, language: Language) -> str:
    name = _measure(change, language)
    if change.mode == "text":
        value, low, high = (100 * (each - 1) for each in change.ratio)
        return say(
            language,
            "forgetting.text_change",
            name=name,
            before=change.against,
            after=change.value,
            change=value,
            low=low,
            high=high,
        )
    each = change.difference
    return say(
        language,
        "forgetting.score_change",
        name=name,
        change=100 * each.mean,
        low=100 * each.low,
        high=100 * each.high,
    )
