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

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from tsugiki.config import RunConfig
from tsugiki.data.prompts import Tokens, pad_id_of
from tsugiki.data.tasks import Task, load_task, refuse_leak
from tsugiki.model.loading import Base, find_base, load_base, num_parameters
from tsugiki.model.lora import attach, detach
from tsugiki.score.evaluate import Evaluation, evaluate
from tsugiki.score.metrics import check_ready
from tsugiki.study.inputs import Listener, longest_of, tokens_of, with_what
from tsugiki.study.store import Run, RunRecord, Store
from tsugiki.train.captured import open_step
from tsugiki.train.checkpoint import latest_checkpoint, save_checkpoint, step_of
from tsugiki.train.engine import fit
from tsugiki.train.lane import DidNotLearn, Lane

UNFINISHED = ("new", "running")


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
    rows, validation = tokens_of(base, task, config, "train"), tokens_of(base, task, config, "validation")
    check_ready(task.spec.metric)
    lane = make_lane(base, config, len(rows))
    run.begin(config, start.what)
    run.update(status="running", alone=start.alone, study=start.study, trainable=lane.num_trainable, total=num_parameters(base.model), steps=lane.steps)
    run.update(max_length=longest_of(base, config))
    if (kept := latest_checkpoint(run.checkpoints)) is not None:
        listener.note(f"{lane.name}: going on from step {step_of(kept)} of {lane.steps}")
    try:
        with open_step(base.model, lane, rows, pad_id=pad_id_of(base.tokenizer), device=base.device, numerics=base.numerics) as step:
            run.update(step=step.kind)
            watch = partial(_score_sample, base, task, config, validation, run, step)
            at = watch_steps(lane.steps, config.score.during)
            result = fit(step, [lane], base.device, folders=[run.checkpoints], on_progress=listener.on_train, watch=watch, watch_at=at)[0]
    except DidNotLearn as failure:
        run.update(status="failed", reason=str(failure))
        return
    run.write("history.json", asdict(result.history))
    saved = save_checkpoint(run.weights, lane.step, _parameters_only(lane), {"moving_steps": lane.moving_steps})
    run.update(measurement=result.measurement.to_json(), weights_bytes=(saved / "lane.safetensors").stat().st_size)
    score_part(base, task, config, "validation", validation, run, listener)
    run.update(status="done", trained_on=task.files["train"])
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def watch_steps(steps: int, times: int) -> list[int]:
    """The steps after which validation is looked at: `times` of them, evenly spread; the last step is scored in full anyway."""
    return sorted({round(steps * number / (times + 1)) for number in range(1, times + 1)} - {0, steps})


def _score_sample(base: Base, task: Task, config: RunConfig, validation: list[Tokens], run: Run, step: Any, lane: Lane) -> None:
    """Adds one line to `during.json`: score and failure classes of the first rows of validation after `lane.step` steps."""
    with step.paused():
        evaluation = evaluate(base, task.spec, "validation", validation[: config.score.during_rows], config.score)
    earlier = [one for one in run.during() if one["step"] < lane.step]
    run.write("during.json", [*earlier, {"step": lane.step, **evaluation.to_json()}])


def make_lane(base: Base, config: RunConfig, num_rows: int) -> Lane:
    """LoRA: a lane of adapter parameters over the frozen base. Full fine-tuning: a lane of the base's own parameters."""
    if config.lora is None:
        return Lane(f"FT {config.train.learning_rate:g}", dict(base.model.named_parameters()), config.train, num_rows)
    grafted = attach(base.model, config.lora, config.train.seed)
    name = f"LoRA {config.lora.targets} r{config.lora.rank} {config.train.learning_rate:g}"
    watched = tuple(name for name in grafted.parameters if name.endswith(".B"))
    return Lane(name, grafted.parameters, config.train, num_rows, flat=grafted.flat, watched=watched, clock=grafted.clock)


def score_part(base: Base, task: Task, config: RunConfig, part: str, rows: list[Tokens], run: Run, listener: Listener) -> Evaluation:
    heard = listener.on_score
    evaluation = evaluate(base, task.spec, part, rows, config.score, (lambda done, total: heard(part, done, total)) if heard else None)
    run.write_answers(part, [asdict(one) for one in evaluation.predictions])
    run.update(evaluations={**run.record().happened.get("evaluations", {}), part: evaluation.to_json()})
    return evaluation


def _parameters_only(lane: Lane) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in lane.state_tensors().items() if name.startswith("param/")}
