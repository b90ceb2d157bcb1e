"""The main path: a configuration becomes a record. Read it from top to bottom.

task    = load_task(…)                    rows of text, split
source  = find_base(…)                    which weights, which precision; this names the run
base    = load_base(source)               model and tokenizer
rows    = tokenize(…)                     ids, with room for the answer
lane    = make_lane(base, config, …)      LoRA's adapters, or the base's own parameters
          fit(step, [lane], …)            the one loop
          evaluate(base, …)               answers generated, scored on validation
"""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import tsugiki
from tsugiki.config import RunConfig
from tsugiki.data.prompts import Tokens, check_tokenizer, tokenize
from tsugiki.data.tasks import SPLITS, Task, load_task, refuse_leak, task_digest
from tsugiki.errors import RunError
from tsugiki.model.loading import Base, BaseSource, find_base, load_base, num_parameters
from tsugiki.model.lora import attach, detach
from tsugiki.score.evaluate import Evaluation, evaluate
from tsugiki.score.metrics import check_ready
from tsugiki.study.store import Run, RunRecord, Store, read_record
from tsugiki.train.checkpoint import latest_checkpoint, read_checkpoint, save_checkpoint
from tsugiki.train.engine import Progress, fit
from tsugiki.train.lane import DidNotLearn, Lane
from tsugiki.train.meter import Measurement, device_name
from tsugiki.train.step import EagerStep

PAPER_BATCH = 8
PROBE_STEPS = 40
UNFINISHED = ("new", "running")


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who wants to hear of progress: training steps, answers (part, done, all), and remarks worth keeping on the screen."""

    on_train: Callable[[Progress], None] | None = None
    on_score: Callable[[str, int, int], None] | None = None
    on_note: Callable[[str], None] | None = None

    def note(self, text: str) -> None:
        if self.on_note:
            self.on_note(text)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a run folder opens with: its inputs, whether the device is its own, the study that asked."""

    what: Mapping[str, Any]
    alone: bool
    study: str | None


def run_group(configs: Sequence[RunConfig], store: Store, listener: Listener = Listener(), *, alone: bool = True, study: str | None = None) -> list[RunRecord]:
    """Train and score on validation configurations that share a base model and a task; finished ones are only read.

    One run is a group of one. `alone` is False when other processes share the device: step times then need a probe.
    `study` names the study that asked for the runs; it may drop their weights later, never those of other runs.
    A run that fails (diverges, does not learn) is recorded as failed with its reason.
    """
    first = configs[0]
    assert all((one.model, one.task) == (first.model, first.task) for one in configs), "a group shares its model and its task"
    task = load_task(first.task)
    for part in ("validation", "test"):
        refuse_leak(task, task.files["train"], part)
    base: Base | None = None
    records = []
    for config in configs:
        source = find_base(config.model, config.method, config.train.precision)
        what = with_what(source, task)
        run = store.open(config, what)
        if run.status in UNFINISHED:
            with run.lock():
                if base is None or base.source != source:
                    base = load_base(source)
                if run.status in UNFINISHED:  # another process may just have finished it
                    _train_and_score(base, task, config, run, _Start(what=what, alone=alone, study=study), listener)
                detach(base.model)
            if config.method == "full":
                base = None  # its weights were moved
        else:
            listener.note(f"{run.folder.name}: finished before; nothing was run")
        records.append(run.record())
    return records


def _train_and_score(base: Base, task: Task, config: RunConfig, run: Run, start: _Start, listener: Listener) -> None:
    rows, validation = _tokens(base, task, config, "train"), _tokens(base, task, config, "validation")
    check_ready(task.spec.metric)
    lane = make_lane(base, config, len(rows))
    step = EagerStep(base.model, rows, _pad_id(base), base.device, base.numerics)
    run.begin(config, start.what)
    run.update(status="running", alone=start.alone, study=start.study, trainable=lane.num_trainable, total=num_parameters(base.model), steps=lane.steps)
    run.update(max_length=_longest(base, config))
    if (kept := latest_checkpoint(run.checkpoints)) is not None:
        listener.note(f"{lane.name}: going on from step {int(kept.name.removeprefix('step-'))} of {lane.steps}")
    try:
        result = fit(step, [lane], base.device, folders=[run.checkpoints], on_progress=listener.on_train)[0]
    except DidNotLearn as failure:
        run.update(status="failed", reason=str(failure))
        return
    run.write("history.json", asdict(result.history))
    saved = save_checkpoint(run.weights, lane.step, _parameters_only(lane), {"moving_steps": lane.moving_steps})
    run.update(measurement=result.measurement.to_json(), weights_bytes=(saved / "lane.safetensors").stat().st_size)
    _score_part(base, task, config, "validation", validation, run, listener)
    run.update(status="done", trained_on=task.files["train"])
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def make_lane(base: Base, config: RunConfig, num_rows: int) -> Lane:
    """LoRA: a lane of adapter parameters over the frozen base. Full fine-tuning: a lane of the base's own parameters."""
    if config.lora is None:
        return Lane(f"FT {config.train.learning_rate:g}", dict(base.model.named_parameters()), config.train, num_rows)
    grafted = attach(base.model, config.lora, config.train.seed)
    name = f"LoRA {config.lora.targets} r{config.lora.rank} {config.train.learning_rate:g}"
    watched = tuple(name for name in grafted.parameters if name.endswith(".B"))
    return Lane(name, grafted.parameters, config.train, num_rows, watched=watched, clock=grafted.clock)


def score_run(record: RunRecord, part: str, listener: Listener = Listener()) -> RunRecord:
    """Scores a finished run on one part from its kept weights, unless that was done; adds the result to the record.

    Raises:
        DataError: the part is cut from a file the run was trained on.
        RunError: the run is not finished, or its weights are gone.
    """
    if record.evaluation(part) is not None:
        return record
    if record.status != "done":
        raise RunError(f"{record.folder}: {_why_not_done(record)}")
    task = load_task(record.config.task)
    if part != "train":
        refuse_leak(task, record.happened["trained_on"], part)
    if with_data(task) != {key: record.with_what[key] for key in ("task_sha256", "data")}:
        raise RunError(f"{record.folder}: the task file or its data changed since this run was trained. Run it again to score it")
    base = load_trained(record)
    _score_part(base, task, record.config, part, _tokens(base, task, record.config, part), Run(record.folder), listener)
    return read_record(record.folder)


def _why_not_done(record: RunRecord) -> str:
    if record.status == "failed":
        return f"this run failed: {record.happened['reason']}"
    kept = latest_checkpoint(record.folder / "checkpoint")
    place = f"at step {int(kept.name.removeprefix('step-'))} of {record.happened.get('steps', '?')}" if kept else "before its first checkpoint"
    return f"this run is not finished (it stands {place}). Give its run or study command again"


def load_trained(record: RunRecord) -> Base:
    """The base model with the run's trained parameters in place."""
    path = latest_checkpoint(record.folder / "weights")
    if record.status != "done":
        raise RunError(f"{record.folder}: {_why_not_done(record)}")
    if path is None:
        raise RunError(f"{record.folder}: its weights were not kept. Run it again to score it")
    config = record.config
    source = find_base(config.model, config.method, config.train.precision)
    kept = (record.with_what["model_sha256"], record.with_what["settings_sha256"])
    if kept != (source.checksum, source.settings_checksum):
        was, now = kept[0][:12], source.checksum[:12]
        raise RunError(f"{record.folder}: was trained over weights of sha256 {was}; {source.folder} has changed since (now {now}), or its tokenizer has")
    base = load_base(source)
    lane = make_lane(base, config, num_rows=config.train.batch)
    lane.load_state(read_checkpoint(path)[0], step=0, moving_steps=0)
    return base


def _score_part(base: Base, task: Task, config: RunConfig, part: str, rows: list[Tokens], run: Run, listener: Listener) -> Evaluation:
    heard = listener.on_score
    evaluation = evaluate(base, task.spec, part, rows, config.score, (lambda done, total: heard(part, done, total)) if heard else None)
    run.write_answers(part, [asdict(one) for one in evaluation.predictions])
    run.update(evaluations={**run.record().happened.get("evaluations", {}), part: evaluation.to_json()})
    return evaluation


def measure_solo(record: RunRecord) -> None:
    """Adds `solo`: what a step costs with the device to itself, at the paper's batch of 8 and at the run's own.

    The run's own measurement serves where it was alone; otherwise a probe trains `PROBE_STEPS` fresh steps on the
    same rows twice and times the second time round: on a GPU the first meeting with each shape loads its kernels.
    """
    batch = record.config.train.batch
    if "solo" in record.happened or record.status != "done":
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
    task = load_task(config.task)
    base = load_base(find_base(config.model, config.method, config.train.precision))
    rows = _tokens(base, task, config, "train")[: PROBE_STEPS * batch]
    train = config.train.model_copy(
        update={"batch": batch, "micro_batch": math.gcd(batch, config.train.micro_batch or batch), "epochs": 1.0, "learning_rate": 1e-6}
    )
    lane = make_lane(base, config.model_copy(update={"train": train}), len(rows))
    step = EagerStep(base.model, rows, _pad_id(base), base.device, base.numerics)
    for _ in range(2):
        lane.step = 0
        measurement = fit(step, [lane], base.device, folders=[None])[0].measurement
    return measurement


def _tokens(base: Base, task: Task, config: RunConfig, part: str) -> list[Tokens]:
    vocab_size = base.model.get_input_embeddings().weight.shape[0]
    check_tokenizer(base.tokenizer, vocab_size)
    return tokenize(base.tokenizer, task, task.examples[part], _longest(base, config), config.score.max_new_tokens)


def _longest(base: Base, config: RunConfig) -> int:
    """Tokens a row may have: what was asked, or what the model has positions for."""
    return min(config.train.max_length, base.max_positions)


def _pad_id(base: Base) -> int:
    return int(base.tokenizer.eos_token_id if base.tokenizer.pad_token_id is None else base.tokenizer.pad_token_id)


def _parameters_only(lane: Lane) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in lane.state_tensors().items() if name.startswith("param/")}


def with_what(source: BaseSource, task: Task) -> dict[str, Any]:
    """Everything a result depends on besides the configuration."""
    return {
        "model_sha256": source.checksum,
        "settings_sha256": source.settings_checksum,
        **with_data(task),
        "numerics": asdict(source.numerics),
        "device_type": source.device.type,
        "device": device_name(source.device),
        "threads": torch.get_num_threads(),
        "rows": {part: len(task.examples[part]) for part in SPLITS},
        "task": {"name": task.name, "version": task.version, "split": task.split, "format": task.format},
        "versions": {
            "python": platform.python_version(),
            "tsugiki": tsugiki.__version__,
            **{name: version(name) for name in ("torch", "transformers", "tokenizers")},
        },
    }


def with_data(task: Task) -> dict[str, Any]:
    """What of the inputs comes from the task: the sense of its file, and the git blob id of every data file."""
    return {"task_sha256": task_digest(task), "data": {part: dict(task.files[part]) for part in SPLITS}}


def drop_weights(folder: Path) -> None:
    """Deletes the trained weights of a run (a study keeps those of the chosen cells); scores and answers stay."""
    shutil.rmtree(folder / "weights", ignore_errors=True)
