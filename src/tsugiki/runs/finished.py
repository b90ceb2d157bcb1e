"""What can be done with a finished run: score it on another part, use its weights, time its
steps."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from tsugiki.config.run import RunConfig
from tsugiki.data.leaks import refuse_leak
from tsugiki.data.tasks import Task, load_task
from tsugiki.errors import RunError
from tsugiki.model.loading import Base, find_base
from tsugiki.runs.events import SILENT, Events
from tsugiki.runs.identity import SEMANTICS, is_of, keys_of
from tsugiki.runs.inputs import tokens_of
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord, read_record
from tsugiki.runs.scoring import score_part
from tsugiki.runs.store import Run
from tsugiki.train.checkpoint import latest_checkpoint, step_of
from tsugiki.train.cost import Cost
from tsugiki.train.engine import fit
from tsugiki.train.meter import free_memory
from tsugiki.words import Message, recognised

PAPER_BATCH = 8
PROBE_STEPS = 40


def score_run(record: RunRecord, part: str, events: Events = SILENT) -> RunRecord:
    """Scores a finished run on one part from its kept weights, unless that was done; adds the
    result to the record.

    Raises:
        DataError: the part is cut from a file the run was trained on.
        RunError: the run is not finished, or its weights are gone.
    """
    scored, earlier = record.scores(part) is not None, record.provenance.semantics != SEMANTICS
    if scored and (record.wanted or earlier):
        return record  # what it scored by earlier rules is kept, and only printed
    if not scored:
        _refuse_unfinished(record)
    if earlier:
        raise RunError(
            f"{record.folder}: was trained by an earlier version of tsugiki, where answers ended "
            "and rows were drawn by other rules (semantics "
            f"{record.provenance.semantics}, now {SEMANTICS}). What it scored is kept; to score "
            "more, give its run or study command again"
        )
    task = load_task(record.config.task)
    if not is_of(record, record.config, task):
        if scored:
            return record  # of the data of then
        raise RunError(Message("error.task_changed", run=record.folder))
    record = record.relabelled(record.config, record.wanted or keys_of(record.config, task))
    if record.scores(part) is None:
        if part != "train":
            refuse_leak(task, record.outcome.trained_on, part)
        _score(record, task, part, events)
        record = read_record(record.folder).relabelled(record.config, record.wanted)
    return record


def _score(record: RunRecord, task: Task, part: str, events: Events) -> None:
    base = load_trained(record, asked_for_text=False)
    rows = tokens_of(base, task, record.config, part)
    folder, room = base.source.folder, base.vocab_rows
    answering, seen = method_of(record.config).answering, {part: rows}
    for note in answering.look_at_rows(
        folder, base.tokenizer, task, seen, record.config, vocab_rows=room
    ):
        events.note(note)
    score_part(base, task, record.config, part, rows, Run(record.folder), events)
    if events.on_scored is not None:
        scored = read_record(record.folder).relabelled(record.config, record.wanted)
        events.on_scored(scored, part)


def _refuse_unfinished(record: RunRecord) -> None:
    if record.status != "done":
        raise RunError(_why_not_done(record))


def complete(run: Run, config: RunConfig, task: Task, events: Events) -> bool:
    """Whether a finished run has what this configuration asks for: scores of validation over its
    rows and within its length limit. Those that it lacks are made from its weights; without
    weights the run starts over."""
    record = run.record().relabelled(config, keys_of(config, task))
    if record.status != "done" or record.scores("validation") is not None:
        return True
    with run.lock():
        if not has_weights(record):
            run.start_over()
            return False
        events.note(Message("note.scored_now", run=run.folder.name))
        _score(record, task, "validation", events)
    return True


def has_weights(record: RunRecord) -> bool:
    """Whether what a finished run trained is still there; of what trains nothing, always."""
    trains = method_of(record.config).trains
    return not trains or latest_checkpoint(record.folder / "weights") is not None


def _why_not_done(record: RunRecord) -> str:
    if record.status == "failed":
        reason = recognised(record.outcome.reason)
        return Message("error.run_failed", run=record.folder, reason=reason)
    kept = latest_checkpoint(record.folder / "checkpoint")
    if kept is None:
        return Message("error.unfinished", run=record.folder)
    steps = "?" if record.outcome.steps is None else record.outcome.steps
    return Message("error.unfinished_at", run=record.folder, step=step_of(kept), steps=steps)


def refuse_chooser(record: RunRecord) -> None:
    """Raises `RunError` for a run whose model writes no text."""
    if not method_of(record.config).answering.writes:
        raise RunError(
            f"{record.folder}: is an encoder's run: it chooses among the answers of its task, "
            "writes none, and is not exported. tsugiki score scores it on another part"
        )


def load_trained(record: RunRecord, *, whole: bool = False, asked_for_text: bool = True) -> Base:
    """The base model with what the run trained in place; `whole`: see `Method.put_back`. Raises
    `RunError` where text is asked for that its model does not write."""
    if asked_for_text:
        refuse_chooser(record)
    _refuse_unfinished(record)
    config, there, method = record.config, record.provenance, method_of(record.config)
    if not has_weights(record):
        raise RunError(Message("error.no_weights_kept", run=record.folder))
    source = find_base(config.model, config.method, config.train.precision)
    # Settings were taken over other files by earlier versions.
    same = there.semantics != SEMANTICS or source.settings_checksum == there.settings_sha256
    if source.checksum != there.model_sha256 or not same:
        was, now = there.model_sha256[:12], source.checksum[:12]
        raise RunError(
            f"{record.folder}: was trained over weights of sha256 {was}; {source.folder} has "
            f"changed since (now {now}), or its tokenizer has"
        )
    base = method.answering.load(source)
    method.put_back(base, record, whole=whole)
    return base


def measure_exclusive(record: RunRecord) -> None:
    """Adds what a step costs beside nothing else of the study, at the paper's batch of 8 and at the
    run's own.

    The run's own cost serves where it was alone; otherwise a probe trains `PROBE_STEPS` fresh steps
    on the same rows twice and times the second time round: on a GPU the first meeting with each
    shape loads its kernels.
    """
    outcome, batch = record.outcome, record.config.train.batch
    trains = method_of(record.config).trains
    if outcome.exclusive_cost is not None or record.status != "done" or not trains:
        return
    costs = {}
    for wanted in sorted({PAPER_BATCH, batch}):
        measured = wanted == batch and outcome.exclusive
        cost = outcome.cost if measured else _probe(record.config, wanted)
        if cost is not None:
            costs[wanted] = cost
    Run(record.folder).change(exclusive_cost=costs)


def _probe(config: RunConfig, batch: int) -> Cost | None:
    """The cost, or None when the batch does not fit into the device's memory."""
    try:
        return _timed_steps(config, batch)
    except torch.OutOfMemoryError:
        return None


def _timed_steps(config: RunConfig, batch: int) -> Cost:
    task = load_task(config.task)
    source = find_base(config.model, config.method, config.train.precision)
    held = free_memory(source.device)  # a study's earlier models would count as this run's memory
    method = method_of(config)
    base = method.answering.load(source)
    rows = tokens_of(base, task, config, "train")[: PROBE_STEPS * batch]
    micro_batch = math.gcd(batch, config.train.micro_batch or batch)
    timed = {"batch": batch, "micro_batch": micro_batch, "epochs": 1.0, "learning_rate": 1e-6}
    train = config.train.model_copy(update=timed)
    probe = config.model_copy(update={"train": train})
    [lane] = method.lanes(base, [probe], len(rows))
    with method.answering.open_step(base, [lane], rows) as step:
        for _ in range(2):
            lane.step = 0
            cost = fit(step, [lane], base.device, folders=[None])[0].cost
    if cost.peak_allocated_bytes is None or cost.peak_reserved_bytes is None:
        return cost
    return replace(
        cost,
        peak_allocated_bytes=cost.peak_allocated_bytes - held,
        peak_reserved_bytes=cost.peak_reserved_bytes - held,
    )
