"""What tuning did to what a model was not tuned on: a finished run on other tasks, and on running
text."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from tsugiki.config.run import RunConfig, TaskChoice, TextChoice
from tsugiki.config.study import Elsewhere as Choice
from tsugiki.data.documents import Documents, read_documents
from tsugiki.data.leaks import refuse_leak
from tsugiki.data.prompts import Tokens, pad_id_of
from tsugiki.data.tasks import Task, load_task, task_digest
from tsugiki.errors import DataError, TsugikiError, reason_of
from tsugiki.model.loading import Base
from tsugiki.runs.events import SILENT, Events
from tsugiki.runs.finished import load_trained
from tsugiki.runs.identity import key_of
from tsugiki.runs.inputs import tokens_of
from tsugiki.runs.preflight import look_at_rows
from tsugiki.runs.reading import RunRecord, read_record
from tsugiki.runs.record import Elsewhere, ReadText
from tsugiki.runs.scoring import scores_of
from tsugiki.runs.store import Run
from tsugiki.score.choices import choose_all
from tsugiki.score.evaluate import evaluate, summarise
from tsugiki.score.failures import FailureClass, classify
from tsugiki.score.perplexity import WINDOW, nats_of

PART = "test"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Something that a run is scored on besides its own task, read from its files."""

    choice: Choice
    content: Task | Documents

    @property
    def name(self) -> str:
        return self.choice.label


def read_wanted(choice: Choice) -> Wanted:
    """Raises `DataError` for what cannot be read."""
    content = read_documents(choice) if isinstance(choice, TextChoice) else load_task(choice)
    return Wanted(choice=choice, content=content)


def read_all(choices: Sequence[Choice]) -> tuple[list[Wanted], dict[Choice, Exception]]:
    """What can be read of them, and why the rest cannot."""
    every, refused = list[Wanted](), dict[Choice, Exception]()
    for choice in choices:
        try:
            every.append(read_wanted(choice))
        except (TsugikiError, OSError) as broken:
            refused[choice] = broken
    return every, refused


def config_on(config: RunConfig, choice: TaskChoice) -> RunConfig:
    """The run's own settings on another task."""
    return config.model_copy(update={"task": choice})


def content_of(config: RunConfig, wanted: Wanted) -> str:
    """A digest of the task file, rows, decoding and shots, or of the texts: what a score there
    depends on besides the run."""
    if isinstance(wanted.content, Documents):
        return wanted.content.sha256
    assert isinstance(wanted.choice, TaskChoice)
    key = key_of(config_on(config, wanted.choice), wanted.content, PART)
    what = [task_digest(wanted.content), key.model_dump_json(exclude={"ends"}), config.shots]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def kept(record: RunRecord, wanted: Wanted) -> Elsewhere | None:
    """What the run is worth there, if that is known."""
    content = content_of(record.config, wanted)
    entries = (entry for entry in record.outcome.elsewhere if entry.content == content)
    return next(entries, None)


def missing_of(record: RunRecord, every: Sequence[Wanted]) -> list[Wanted]:
    """Those that are not the run's own task, and that it was not scored on."""
    named = record.provenance.task
    own = named.name if named is not None else load_task(record.config.task).name
    return [
        each
        for each in every
        if not (isinstance(each.content, Task) and each.content.name == own)
        and kept(record, each) is None
    ]


def score_elsewhere(
    record: RunRecord, every: Sequence[Wanted], events: Events = SILENT
) -> RunRecord:
    """Scores a finished run on what it was not tuned on, as far as that was not done; adds each to
    the record as soon as it is there.

    Raises:
        DataError: rows of the test are those that the run was trained on, or do not fit (all that
            can be scored was).
        RunError: its weights are gone.
    """
    reasons, left = list[str](), list[Wanted]()
    for wanted in missing_of(record, every):
        try:
            if isinstance(wanted.content, Task):
                refuse_leak(wanted.content, record.outcome.trained_on, PART)
            left.append(wanted)
        except TsugikiError as refused:
            reasons.append(str(refused))
    if left:
        base, run = load_trained(record), Run(record.folder)
    for wanted in left:
        began = time.perf_counter()
        try:
            entry, files = _score(base, record, wanted, events)
        except (TsugikiError, OSError) as broken:
            reasons.append(f"{wanted.name}: {reason_of(broken)}")
            continue
        run.add_elsewhere(entry.model_copy(update={"seconds": time.perf_counter() - began}), files)
    if reasons:
        raise DataError("; ".join(reasons))
    return read_record(record.folder).relabelled(record.config, record.wanted) if left else record


Files = Mapping[str, Sequence[object]]


def _score(
    base: Base, record: RunRecord, wanted: Wanted, events: Events
) -> tuple[Elsewhere, Files]:
    if isinstance(wanted.content, Documents):
        return _read(base, wanted.name, wanted.content, events)
    assert isinstance(wanted.choice, TaskChoice)
    config, task = config_on(record.config, wanted.choice), wanted.content
    rows = tokens_of(base, task, config, PART)
    folder, room = base.source.folder, base.vocab_rows
    look_at_rows(folder, base.tokenizer, task, {PART: rows}, config, vocab_rows=room)
    heard = events.answers(PART)
    answered = evaluate(base, task.spec, PART, rows, config.score, heard)
    modes = {"": answered}
    if task.spec.closed:
        texts = choose_all(base.model, base.tokenizer, rows, base.numerics, heard)["sum"]
        chosen = [
            replace(row, answer=text, ended=True, failure=_class_of(text, tokens))
            for row, text, tokens in zip(answered.predictions, texts, rows, strict=True)
        ]
        modes["likeliest-"] = summarise(task.spec, PART, chosen, 0.0)
    scores, content = {}, content_of(record.config, wanted)
    for mode, evaluation in modes.items():
        made = scores_of(evaluation, config, task, rows)
        name = f"elsewhere-{mode}{content[:8]}.jsonl"
        scores[mode] = made.model_copy(update={"answers": name})
    entry = Elsewhere(
        name=wanted.name,
        content=content,
        scores=scores[""],
        likeliest=scores.get("likeliest-"),
        seconds=0.0,
    )
    files = {scores[mode].file: [*map(asdict, some.predictions)] for mode, some in modes.items()}
    return entry, files


def _class_of(text: str, row: Tokens) -> FailureClass:
    example = row.example
    return classify(text, example.target, example.candidates, ended=True, was_cut=row.was_cut)


def _read(base: Base, name: str, content: Documents, events: Events) -> tuple[Elsewhere, Files]:
    window = min(WINDOW, base.max_positions)  # the same for every run of a model
    pad = pad_id_of(base.tokenizer)
    each = nats_of(base, content.texts, window, pad, events.answers(PART))
    nats, tokens = sum(some for some, _ in each), sum(count for _, count in each)
    file = f"elsewhere-{content.sha256[:8]}.jsonl"
    text = ReadText(
        sha256=content.sha256, window=window, documents=len(each), tokens=tokens,
        nats=nats / tokens, file=file,
    )  # fmt: skip
    return Elsewhere(name=name, content=content.sha256, text=text, seconds=0.0), {file: each}
