"""What can be done with a finished run: score it on another part, use its weights, time its steps,
drop its weights."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from tsugiki.config.run import RunConfig
from tsugiki.data.prompts import pad_id_of
from tsugiki.data.tasks import load_task, refuse_leak
from tsugiki.errors import RunError
from tsugiki.model.export import import_adapter
from tsugiki.model.loading import Base, find_base, load_base
from tsugiki.runs.group import make_lanes
from tsugiki.runs.inputs import SEMANTICS, Listener, tokens_of, with_data
from tsugiki.runs.preflight import look_at_rows
from tsugiki.runs.scoring import score_part
from tsugiki.runs.store import Run, RunRecord, read_record
from tsugiki.train.captured import open_step
from tsugiki.train.checkpoint import latest_checkpoint, read_checkpoint, step_of
from tsugiki.train.engine import fit
from tsugiki.train.meter import Measurement, free_memory

PAPER_BATCH = 8
PROBE_STEPS = 40


def score_run(record: RunRecord, part: str, listener: Listener = Listener()) -> RunRecord:
    """Scores a finished run on one part from its kept weights, unless that was done; adds the
    result to the record.

    Raises:
        DataError: the part is cut from a file the run was trained on.
        RunError: the run is not finished, or its weights are gone.
    """
    if record.evaluation(part) is not None:
        return record
    if record.status != "done":
        raise RunError(f"{record.folder}: {_why_not_done(record)}")
    if record.semantics != SEMANTICS:
        raise RunError(
            f"{record.folder}: was trained by an earlier version of tsugiki, where answers ended "
            "and rows were drawn by other rules (semantics "
            f"{record.semantics}, now {SEMANTICS}). What it scored is kept; to score more, give "
            "its run or study command again"
        )
    task = load_task(record.config.task)
    if part != "train":
        refuse_leak(task, record.happened["trained_on"], part)
    if with_data(task) != {key: record.with_what[key] for key in ("task_sha256", "data")}:
        raise RunError(
            f"{record.folder}: the task file or its data changed since this run was trained. Run "
            "it again to score it"
        )
    base = load_trained(record)
    rows = tokens_of(base, task, record.config, part)
    for note in look_at_rows(
        base.source.folder,
        base.tokenizer,
        task,
        {part: rows},
        record.config,
        vocab_rows=base.vocab_rows,
    ):
        listener.note(note)
    score_part(base, task, record.config, part, rows, Run(record.folder), listener)
    return read_record(record.folder)


def _why_not_done(record: RunRecord) -> str:
    if record.status == "failed":
        return f"this run failed: {record.happened['reason']}"
    kept = latest_checkpoint(record.folder / "checkpoint")
    place = (
        f"at step {step_of(kept)} of {record.happened.get('steps', '?')}"
        if kept
        else "before its first checkpoint"
    )
    return f"this run is not finished (it stands {place}). Give its run or study command again"


def load_trained(record: RunRecord) -> Base:
    """The base model with the run's trained parameters in place."""
    path = latest_checkpoint(record.folder / "weights")
    if record.status != "done":
        raise RunError(f"{record.folder}: {_why_not_done(record)}")
    if path is None and record.config.adapter is None:
        lost = "its weights were not kept (of full fine-tuning a study keeps the best cell's)"
        raise RunError(
            f"{record.folder}: {lost}. Take another run, or delete this folder and give the study "
            "command again"
        )
    config = record.config
    source = find_base(config.model, config.method, config.train.precision)
    kept = (record.with_what["model_sha256"], record.with_what["settings_sha256"])
    settings = (
        source.settings_checksum if record.semantics == SEMANTICS else kept[1]
    )  # was taken over other files then
    if kept != (source.checksum, settings):
        was, now = kept[0][:12], source.checksum[:12]
        raise RunError(
            f"{record.folder}: was trained over weights of sha256 {was}; {source.folder} has "
            f"changed since (now {now}), or its tokenizer has"
        )
    base = load_base(source)
    if config.adapter is not None:
        import_adapter(base.model, record.folder / "adapter")
        return base
    assert path is not None, "refused above"
    [lane] = make_lanes(base, [config], num_rows=config.train.batch)
    lane.load_state(read_checkpoint(path)[0], step=0, moving_steps=0)
    return base


def measure_solo(record: RunRecord) -> None:
    """Adds `solo`: what a step costs with the device to itself, at the paper's batch of 8 and at
    the run's own.

    The run's own measurement serves where it was alone; otherwise a probe trains `PROBE_STEPS`
    fresh steps on the same rows twice and times the second time round: on a GPU the first meeting
    with each shape loads its kernels.
    """
    batch = record.config.train.batch
    if "solo" in record.happened or record.status != "done" or record.config.adapter is not None:
        return
    solo = {}
    for wanted in sorted({PAPER_BATCH, batch}):
        if wanted == batch and record.happened["alone"]:
            solo[str(wanted)] = record.happened["measurement"]
        elif (measured := _probe(record.config, wanted)) is not None:
            solo[str(wanted)] = measured.to_json()
    Run(record.folder).update(solo=solo)


def _probe(config: RunConfig, batch: int) -> Measurement | None:
    """The measurement, or None when the batch does not fit into the device's memory."""
    try:
        return _timed_steps(config, batch)
    except torch.OutOfMemoryError:
        return None


def _timed_steps(config: RunConfig, batch: int) -> Measurement:
    task, source = (
        load_task(config.task),
        find_base(config.model, config.method, config.train.precision),
    )
    held = free_memory(source.device)  # a study's earlier models would count as this run's memory
    base = load_base(source)
    rows = tokens_of(base, task, config, "train")[: PROBE_STEPS * batch]
    train = config.train.model_copy(
        update={
            "batch": batch,
            "micro_batch": math.gcd(batch, config.train.micro_batch or batch),
            "epochs": 1.0,
            "learning_rate": 1e-6,
        }
    )
    [lane] = make_lanes(base, [config.model_copy(update={"train": train})], len(rows))
    with open_step(
        base.model,
        [lane],
        rows,
        pad_id=pad_id_of(base.tokenizer),
        device=base.device,
        numerics=base.numerics,
    ) as step:
        for _ in range(2):
            lane.step = 0
            measurement = fit(step, [lane], base.device, folders=[None])[0].measurement
    peaks = {
        name: value - held
        for name in ("peak_allocated_bytes", "peak_reserved_bytes")
        if (value := getattr(measurement, name)) is not None
    }
    return replace(measurement, **peaks)


def drop_weights(folder: Path) -> None:
    """Deletes the trained weights of a run (a study keeps those of the chosen cells); scores and
    answers stay."""
    shutil.rmtree(folder / "weights", ignore_errors=True)
