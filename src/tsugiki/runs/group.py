"""The main path: configurations become records. Read it from top to bottom.

task    = load_task(…)                    rows of text, split
source  = find_base(…)                    which weights, which precision; this names the run
base    = load_base(source)               model and tokenizer
rows    = tokenize(…)                     ids, with room for the answer
lanes   = make_lanes(base, configs, …)    LoRA's adapters, or the base's own parameters
          fit(step, lanes, …)             the one loop
          evaluate_lanes(base, …)         answers generated, scored on validation

LoRA runs over one base and one task train together, as lanes; runs that differ in their epochs
alone share their first steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from tsugiki.config.run import RunConfig
from tsugiki.data.batch import num_steps
from tsugiki.data.prompts import Tokens, pad_id_of
from tsugiki.data.tasks import Task, drawn, load_task, refuse_leak
from tsugiki.errors import RunError, reason_of, told
from tsugiki.fast.cuda_graphs import why_plain
from tsugiki.model.loading import (
    Base,
    BaseSource,
    count_parameters,
    find_base,
    load_base,
    num_parameters,
    why_fp32,
)
from tsugiki.model.look import WITHOUT_CACHE, look_of
from tsugiki.model.lora import attach_lanes, detach
from tsugiki.runs.imported import adapter_checksum, attach_imported
from tsugiki.runs.inputs import Listener, longest_of, tokens_of, with_what
from tsugiki.runs.preflight import look_at_rows
from tsugiki.runs.scoring import evaluations_of, keep_evaluation, losses_of, score_part
from tsugiki.runs.store import Run, RunBusy, RunRecord, Store
from tsugiki.score.evaluate import evaluate_lanes
from tsugiki.score.metrics import check_ready
from tsugiki.train.captured import open_step
from tsugiki.train.checkpoint import latest_checkpoint, read_state, save_checkpoint, step_of
from tsugiki.train.engine import FitResult, Interrupted, Visit, fit, is_end
from tsugiki.train.lane import DoesNotFit, Lane, shared_steps
from tsugiki.train.memory import lanes_that_fit, refuse_no_room, what_helps
from tsugiki.train.meter import free_memory
from tsugiki.train.step import EagerStep

UNFINISHED = ("new", "running")


@dataclass(kw_only=True)
class _Group:
    """Runs over one base and one task on their way: what they share, who listens, and which handed
    steps on to which."""

    task: Task
    source: BaseSource
    base: Base
    rows: list[Tokens]
    validation: list[Tokens]
    watched: list[Tokens]  # of validation, those that are answered during training
    noted: Mapping[str, Any]  # what the look before the first step found: for the record
    what: Mapping[str, Any]
    store: Store
    listener: Listener
    alone: bool
    study: str | None
    skip_busy: bool
    prune: bool
    faults: dict[RunConfig, str] | None
    moved: bool = (
        False  # the base's own weights were trained: they are loaded anew for the next run
    )
    heirs: dict[RunConfig, dict[int, list[RunConfig]]] = field(default_factory=dict)
    skipped: list[RunConfig] = field(default_factory=list)

    def run_of(self, config: RunConfig) -> Run:
        return self.store.open(config, self.what)

    def steps_of(self, config: RunConfig) -> int:
        return num_steps(len(self.rows), config.train.batch, config.train.epochs)


def run_group(
    configs: Sequence[RunConfig],
    store: Store,
    listener: Listener = Listener(),
    *,
    alone: bool = True,
    study: str | None = None,
    lanes: int | None = None,
    skip_busy: bool = False,
    prune: bool = False,
    faults: dict[RunConfig, str] | None = None,
) -> list[RunRecord]:
    """Train and score on validation configurations that share a base model, a task and
    `group_key`; finished ones are only read.

    One run is a group of one. LoRA runs train together, at most `lanes` of them (default: as many
    as a CUDA device holds; on a CPU one at a time). `alone` is False when other processes share
    the device: step times then need a probe. `study` names the study that asked for the runs; it
    may drop their weights later, never those of other runs. With `prune` the lower half of the
    runs that train together ends after a quarter, and again after half of the steps. With
    `skip_busy` runs that another process works on are left to it, else `RunBusy` is raised. A run
    that fails (diverges, does not learn) is recorded as failed with its reason. What else keeps
    one run from its end (no room, a full disk) is raised; with `faults` it is written there, and
    the other runs go on.
    """
    first = configs[0]
    assert len({group_key(one) for one in configs}) == 1, (
        "a group shares its model, its task and how it trains"
    )
    task = load_task(first.task)
    for part in ("validation", "test"):
        refuse_leak(task, task.files["train"], part)
    source = find_base(first.model, first.method, first.train.precision)
    what = {**with_what(source, task), **adapter_checksum(first)}
    runs = {config: store.open(config, what) for config in configs}
    for run in runs.values():
        if run.status == "pruned" and not prune:
            with run.lock():
                run.start_over()  # what was pruned in one search is wanted in full now
        if run.status not in UNFINISHED:
            listener.note(f"{run.folder.name}: finished before; nothing was run")
    wanted = [config for config, run in runs.items() if run.status in UNFINISHED]
    if wanted:
        check_ready(task.spec.metric)
        shared = {**_prepare(task, source, first, listener), "what": what}
        group = _Group(
            **shared,
            store=store,
            listener=listener,
            alone=alone,
            study=study,
            skip_busy=skip_busy,
            prune=prune,
            faults=faults,
        )
        _run_all(group, wanted, lanes)
    return [
        runs[config].record()
        for config in configs
        if config not in (faults or {}) and not (skip_busy and runs[config].status == "new")
    ]


def _prepare(
    task: Task, source: BaseSource, first: RunConfig, listener: Listener
) -> dict[str, Any]:
    """Loads model and tokenizer, makes ids of the rows, and says what a look at them found; what
    must not be trained on is refused here."""
    if (said := why_fp32(first.train.precision, source.numerics, source.device)) is not None:
        listener.note(said)
    if first.method == "full":
        refuse_no_room(count_parameters(source.folder), source.numerics, source.device)
    free_memory(source.device)
    base = load_base(source)
    left_out: list[str] = []
    rows, validation = (
        tokens_of(base, task, first, part, left_out) for part in ("train", "validation")
    )
    notes = look_at_rows(
        source.folder,
        base.tokenizer,
        task,
        {"train": rows, "validation": validation},
        first,
        vocab_rows=base.vocab_rows,
    )
    if left_out:
        notes.append(
            f"train: {len(left_out)} rows do not fit into {longest_of(base, first)} tokens and are "
            f"left out (first: row {left_out[0]})"
        )
    notes += [
        said
        for said in (why_plain(base.model, base.device, base.numerics, first.train.step),)
        if said is not None
    ]
    notes += [] if look_of(base.model).cached else [WITHOUT_CACHE]
    for note in notes:
        listener.note(note)
    ends = base.tokenizer.convert_ids_to_tokens(sorted(rows[0].ending.stops))
    targets = sum(len(row.target_ids) for row in rows) / len(rows)
    noted = {"notes": notes, "left_out": len(left_out), "ends": ends, "target_tokens": targets}
    few = min(first.score.during_rows, len(validation))
    return {
        "task": task,
        "source": source,
        "base": base,
        "rows": rows,
        "validation": validation,
        "watched": drawn(validation, few),
        "noted": noted,
    }


def group_key(config: RunConfig) -> RunConfig:
    """What runs must have in common to be given to `run_group` together: for LoRA all but the
    adapter and its course; for full fine-tuning, which moves the base itself, all but the epochs;
    an imported adapter stands alone."""
    free = {"epochs": 1.0}
    if config.adapter is not None:
        return config
    if config.method == "full":
        return config.model_copy(update={"train": config.train.model_copy(update=free)})
    kept = {
        name: getattr(config.train, name)
        for name in ("max_length", "long_rows", "precision", "step")
    }
    return config.model_copy(
        update={"lora": None, "train": type(config.train)(learning_rate=1.0, **free, **kept)}
    )


def _run_all(group: _Group, wanted: list[RunConfig], lanes: int | None) -> None:
    """First the longest of each family, together; they hand their steps on to the shorter ones,
    which then finish together."""
    trunks = _find_heirs(group, wanted)
    for first in (True, False):
        skipped = {
            heir
            for trunk in group.skipped
            for heirs in group.heirs.get(trunk, {}).values()
            for heir in heirs
        }  # theirs is not handed on yet
        left = [
            config for config in wanted if (config in trunks) == first and config not in skipped
        ]
        left.sort(
            key=lambda config: config.lora.targets if config.lora else ""
        )  # side by side, lanes skip what none of them adapts
        most = _most_lanes(group, left, lanes) if left else 1
        while left:
            size = -(-len(left) // -(-len(left) // most))  # as many rounds as needed, evenly filled
            try:
                _run_together(group, left[:size])
            except (Interrupted, RunBusy):
                raise
            except Exception as broken:
                said = _fault(group, left[:size], broken)
                most = -(-size // 2)
                left = left[size == 1 :]
                group.listener.note(f"{said}; going on with {most} at a time" if size > 1 else said)
            else:
                left = left[size:]
            if group.source.device.type == "cuda":
                # outside the handler: the failed step's tensors are held by its traceback
                torch.cuda.empty_cache()


def _fault(group: _Group, configs: list[RunConfig], broken: Exception) -> str:
    """Why these runs could not be trained together; of one alone it is kept as its fault. Raised
    where the caller keeps none, but for a device too small for several, which may hold fewer."""
    full = isinstance(broken, (DoesNotFit, torch.OutOfMemoryError))
    if full and len(configs) > 1:
        return f"{len(configs)} runs do not fit together"
    if full:
        helps = (
            what_helps(group.base.model, configs[0], group.source.numerics, group.source.device)
            if "base" in vars(group)
            else str(broken)
        )
        broken = RunError(f"does not fit: {helps}")
    if group.faults is None:
        raise broken
    if len(configs) == 1:
        group.faults[configs[0]] = reason_of(broken)
    return told(broken)


def _most_lanes(group: _Group, configs: list[RunConfig], asked: int | None) -> int:
    if configs[0].method == "full" or configs[0].adapter is not None:
        return 1
    return asked or lanes_that_fit(group.base.model, group.base.device, configs, group.rows)


def _find_heirs(group: _Group, wanted: list[RunConfig]) -> list[RunConfig]:
    """The runs that begin at the beginning. The others share their first steps with a longer one
    of them, and go on from its checkpoint."""
    trunks: list[RunConfig] = []
    families: dict[RunConfig, RunConfig] = {}
    for config in sorted(wanted, key=lambda one: -one.train.epochs):
        family = config.model_copy(
            update={"train": config.train.model_copy(update={"epochs": 1.0})}
        )
        trunk = families.setdefault(family, config)
        steps = group.steps_of(config)
        shared = shared_steps(config.train, steps, trunk.train, group.steps_of(trunk))
        if trunk is config or 2 * shared < steps or config.score.during:
            trunks.append(config)
        else:
            group.heirs.setdefault(trunk, {}).setdefault(shared, []).append(config)
    return [config for config in wanted if config in trunks]


def _run_together(group: _Group, configs: list[RunConfig]) -> None:
    runs = [group.run_of(config) for config in configs]
    with ExitStack() as held:
        try:
            for run in runs:
                held.enter_context(run.lock())
        except RunBusy:
            if not group.skip_busy:
                raise
            group.skipped += configs
            return
        here = [
            (config, run)
            for config, run in zip(configs, runs, strict=True)
            if run.status in UNFINISHED
        ]  # another process may just have finished some
        if here:
            group.listener.start([config for config, _ in here])
            if group.moved:
                vars(group).pop("base", None)  # freed before the next is loaded, which may fail
                group.base = load_base(group.source)
            group.moved = configs[0].method == "full"
            held.callback(detach, group.base.model)
            if here[0][0].adapter is not None:
                _score_imported(group, *here[0])
            else:
                _train_and_score(group, *(list(one) for one in zip(*here, strict=True)))


def _score_imported(group: _Group, config: RunConfig, run: Run) -> None:
    attach_imported(
        group.base,
        config,
        run,
        group.study,
        begin=lambda: run.begin(config, group.what),
        note=group.listener.note,
    )
    run.update(max_length=longest_of(group.base, config), **group.noted)
    score_part(group.base, group.task, config, "validation", group.validation, run, group.listener)
    run.update(status="done")


def _train_and_score(group: _Group, configs: list[RunConfig], runs: list[Run]) -> None:
    base, listener = group.base, group.listener
    size = num_parameters(base.model)
    lanes = make_lanes(base, configs, len(group.rows))
    for lane, config, run in zip(lanes, configs, runs, strict=True):
        run.begin(config, group.what)
        total = size + (lane.num_trainable if config.lora else 0)
        run.update(
            status="running",
            study=group.study,
            trainable=lane.num_trainable,
            total=total,
            steps=lane.steps,
            max_length=longest_of(base, config),
            **group.noted,
        )
        lane.visits = frozenset(
            [
                *watch_steps(lane.steps, config.score.during),
                *rungs(group, lane.steps),
                *group.heirs.get(config, {}),
            ]
        )
        kept = latest_checkpoint(run.checkpoints)
        if kept is not None and step_of(kept) < lane.steps:
            listener.note(f"{lane.name}: going on from step {step_of(kept)} of {lane.steps}")
    if group.prune and (len(lanes) == 1 or not any(rungs(group, lane.steps) for lane in lanes)):
        why = "one cell alone has no rivals" if len(lanes) == 1 else "fewer than eight steps"
        listener.note(f"{lanes[0].name}: nothing is pruned here: {why}")
    with _open(group, lanes, runs) as step:
        for run in runs:
            _note_company(group, run, len(lanes))
            if "step" not in run.record().happened:
                run.update(step=step.kind)
        visit = partial(
            _visit, group, step, dict(zip(lanes, zip(configs, runs, strict=True), strict=True))
        )
        results = fit(
            step,
            lanes,
            base.device,
            folders=[run.checkpoints for run in runs],
            on_progress=listener.on_train,
            visit=visit,
        )
    _finish(group, configs, runs, lanes, results)


def _note_company(group: _Group, run: Run, lanes: int) -> None:
    """Whether the run's times are those of a device of its own, and of how many lanes they are a
    share. A run that others trained for (its first steps, or before a kill) keeps what was so
    then."""
    before = run.record().happened
    first_time = "lanes" not in before
    run.update(
        alone=before.get("alone", True) and group.alone and lanes == 1 and "shared" not in before
    )
    if first_time:
        run.update(lanes=lanes)


def _open(group: _Group, lanes: list[Lane], runs: list[Run]) -> AbstractContextManager[Any]:
    """The step; the plain one, which costs nothing to make, when every lane is at its end
    already."""
    base, pad_id = group.base, pad_id_of(group.base.tokenizer)
    if all(
        (kept := latest_checkpoint(run.checkpoints)) is not None and is_end(read_state(kept), lane)
        for lane, run in zip(lanes, runs, strict=True)
    ):
        return nullcontext(EagerStep(base.model, group.rows, pad_id, base.device, base.numerics))
    return open_step(
        base.model, lanes, group.rows, pad_id=pad_id, device=base.device, numerics=base.numerics
    )


def _finish(
    group: _Group,
    configs: list[RunConfig],
    runs: list[Run],
    lanes: list[Lane],
    results: list[FitResult],
) -> None:
    """Keeps what was trained, lets all lanes answer validation in one pass, and closes the
    records."""
    good = [
        number
        for number, result in enumerate(results)
        if result.failure is None and not result.pruned
    ]
    for number in good:
        run, lane, result = runs[number], lanes[number], results[number]
        run.write("history.json", asdict(result.history))
        saved = save_checkpoint(
            run.weights, lane.step, _parameters_only(lane), {"moving_steps": lane.moving_steps}
        )
        measurement = {**result.measurement.to_json(), "lanes": run.record().happened["lanes"]}
        run.update(
            measurement=measurement, weights_bytes=(saved / "lane.safetensors").stat().st_size
        )
    if good:
        losses = losses_of(group.base, group.validation)
        for number, evaluation in enumerate(
            evaluations_of(
                group.base, group.task, configs[0], "validation", group.validation, group.listener
            )
        ):
            if number in good:
                keep_evaluation(runs[number], "validation", evaluation)
                runs[number].update(
                    status="done",
                    trained_on=group.task.files["train"],
                    validation_loss=losses[number],
                )
    for run, result in zip(runs, results, strict=True):
        if result.failure is not None:
            run.update(status="failed", reason=result.failure)
        elif result.pruned:
            run.update(
                status="pruned",
                reason=f"pruned after step {run.during()[-1]['step']}",
                pruned=run.during()[-1]["main"],
            )
        if result.failure is None:
            shutil.rmtree(run.checkpoints, ignore_errors=True)


def watch_steps(steps: int, times: int) -> list[int]:
    """The steps after which validation is looked at: `times` of them, evenly spread; the last step
    is scored in full anyway."""
    return sorted(
        {round(steps * number / (times + 1)) for number in range(1, times + 1)} - {0, steps}
    )


def _visit(
    group: _Group, step: Any, known: Mapping[Lane, tuple[RunConfig, Run]], visits: list[Visit]
) -> None:
    """Looks at validation where that was asked for, prunes, and hands a lane's steps on to the
    runs that share them."""
    watched = []
    for visit in visits:
        config, run = known[visit.lane]
        if visit.lane.step in [
            *watch_steps(visit.lane.steps, config.score.during),
            *rungs(group, visit.lane.steps),
        ]:
            watched.append(visit)
        for heir in group.heirs.get(config, {}).get(visit.lane.step, []):
            _hand_on(group, visit, run, heir)
    if not watched:
        return
    score = known[watched[0].lane][0].score
    with step.paused():
        evaluations = evaluate_lanes(
            group.base, group.task.spec, "validation", group.watched, score
        )
    found = dict(zip(known, evaluations, strict=True))
    for (
        visit
    ) in watched:  # adds one line to `during.json`: score and failure classes after so many steps
        run, step_now = known[visit.lane][1], visit.lane.step
        earlier = [one for one in run.during() if one["step"] < step_now]
        run.write("during.json", [*earlier, {"step": step_now, **found[visit.lane].to_json()}])
    ranked = sorted(
        (visit for visit in watched if visit.lane.step in rungs(group, visit.lane.steps)),
        key=lambda visit: -found[visit.lane].main.value,
    )
    for visit in ranked[-(-len(ranked) // 2) :]:
        visit.prune()


def rungs(group: _Group, steps: int) -> list[int]:
    """The steps after which the lower half of the lanes ends (successive halving: Jamieson &
    Talwalkar 2016)."""
    return [steps // 4, steps // 2] if group.prune and steps >= 8 else []


def _hand_on(group: _Group, visit: Visit, giver: Run, heir: RunConfig) -> None:
    """Writes the lane's checkpoint into the folder of a run that goes on from it, unless another
    process works on that."""
    run = group.run_of(heir)
    try:
        with run.lock():
            kept = latest_checkpoint(run.checkpoints)
            if run.status in UNFINISHED and (kept is None or step_of(kept) < visit.lane.step):
                run.begin(heir, group.what)
                visit.save(run.checkpoints)
                shared = {"from": giver.folder.name, "steps": visit.lane.step}
                there = giver.record().happened
                run.update(
                    status="running",
                    study=group.study,
                    shared=shared,
                    step=there["step"],
                    lanes=there["lanes"],
                    alone=False,
                )
    except RunBusy:
        return


def make_lanes(base: Base, configs: Sequence[RunConfig], num_rows: int) -> list[Lane]:
    """LoRA: a lane of adapter parameters over the frozen base for each run. Full fine-tuning: one
    lane of the base's own parameters."""
    return list(_lanes(base, configs, num_rows))


def _lanes(base: Base, configs: Sequence[RunConfig], num_rows: int) -> Iterator[Lane]:
    adapters = [(config.lora, config.train.seed) for config in configs if config.lora is not None]
    if not adapters:
        [config] = configs
        yield Lane(
            f"FT {config.train.learning_rate:g}",
            dict(base.model.named_parameters()),
            config.train,
            num_rows,
        )
        return
    for config, grafted in zip(configs, attach_lanes(base.model, adapters), strict=True):
        name = (
            f"LoRA {grafted.config.targets} r{grafted.config.rank} {config.train.learning_rate:g}"
        )
        watched = tuple(name for name in grafted.parameters if name.endswith(".B"))
        yield Lane(
            name, grafted.parameters, config.train, num_rows, grafted=grafted, watched=watched
        )


def _parameters_only(lane: Lane) -> dict[str, torch.Tensor]:
    return {
        name: tensor for name, tensor in lane.state_tensors().items() if name.startswith("param/")
    }
