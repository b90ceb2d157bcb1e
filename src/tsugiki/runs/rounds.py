"""Which configurations train together, and when: rounds over one base, each run locked while it is
worked on; what keeps one of them from its end does not end the others.

The longest of each family come first, together; they hand their steps over to the shorter ones,
which then finish together. A round that does not fit is halved.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch

from tsugiki.config.run import RunConfig
from tsugiki.data.leaks import refuse_leak
from tsugiki.data.tasks import Task, load_task
from tsugiki.errors import RunError, message_of, reason_of
from tsugiki.model.loading import BaseSource, find_base
from tsugiki.runs.branching import find_branches
from tsugiki.runs.events import SILENT, Events
from tsugiki.runs.finished import complete
from tsugiki.runs.group import Ended, train_group
from tsugiki.runs.handles import Handles
from tsugiki.runs.identity import keys_of
from tsugiki.runs.imported import adapter_checksum, note_other_base
from tsugiki.runs.inputs import provenance_of
from tsugiki.runs.methods import method_of
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import Outcome, Provenance
from tsugiki.runs.shared import Shared
from tsugiki.runs.store import Run, RunBusy, Store
from tsugiki.score.metrics import check_ready
from tsugiki.train.cost import Cost
from tsugiki.train.engine import Interrupted
from tsugiki.train.lane import DoesNotFit
from tsugiki.words import Message

Faults = dict[RunConfig, str]
Known = dict[RunConfig, tuple[Run, Provenance]]


@dataclass(kw_only=True)
class Rounds:
    """Runs over one base and one task on their way."""

    shared: Shared
    known: Known
    skip_busy: bool
    faults: Faults | None
    skipped: list[RunConfig] = field(default_factory=list)

    def opened(self, config: RunConfig) -> tuple[Run, Provenance]:
        return self.known[config]

    def run(self, wanted: Sequence[RunConfig], most: int | None) -> None:
        """All of them, at most so many together (default: as many as fit)."""
        branches = self.shared.branches = find_branches(wanted, self.shared.steps_of)
        longest = set(branches.longest)
        for first in (True, False):
            waiting = branches.behind(self.skipped)  # theirs is not handed over yet
            left = [
                config
                for config in wanted
                if (config in longest) == first and config not in waiting
            ]
            left.sort(key=self.shared.method.side_by_side)
            if left:
                self._in_rounds(left, most)

    def _in_rounds(self, left: list[RunConfig], given: int | None) -> None:
        shared, device = self.shared, self.shared.source.device
        fit = shared.method.most_lanes(shared.base, left, shared.rows)
        most = (given or fit) if shared.method.together else 1
        while left:
            # As many rounds as needed, evenly filled.
            size = -(-len(left) // -(-len(left) // most))
            try:
                self._together(left[:size])
            except (Interrupted, RunBusy):
                raise
            except Exception as broken:
                said = self._fault(left[:size], broken)
                most = -(-size // 2)
                left = left[size == 1 :]
                if size > 1:
                    said = Message("note.fewer_at_once", reason=said, most=most)
                shared.events.note(said)
            else:
                left = left[size:]
            if device.type == "cuda":
                # Outside the handler: the failed step's tensors are held by its traceback.
                torch.cuda.empty_cache()

    def _fault(self, configs: Sequence[RunConfig], broken: Exception) -> str:
        """Why these runs could not be trained together; of one alone it is kept as its fault.
        Raised where the caller keeps none, but for a device too small for several."""
        full = isinstance(broken, (DoesNotFit, torch.OutOfMemoryError))
        if full and len(configs) > 1:
            return Message("note.not_together", count=len(configs))
        if full:
            helps = self.shared.what_helps(configs[0]) or reason_of(broken)
            said = Message("error.does_not_fit", reason=helps)
            if isinstance(broken, DoesNotFit):
                recording = broken.message
                said = Message("error.does_not_fit_recording", recording=recording, reason=helps)
            broken = RunError(said)
        if self.faults is None:
            raise broken
        if len(configs) == 1:
            self.faults[configs[0]] = reason_of(broken)
        return message_of(broken)

    def _together(self, configs: Sequence[RunConfig]) -> None:
        """One round: locks the runs, trains those that nobody finished meanwhile, keeps each
        end."""
        with ExitStack() as held:
            try:
                for config in configs:
                    held.enter_context(self.known[config][0].lock())
            except RunBusy:
                if not self.skip_busy:
                    raise
                self.skipped += configs
                return
            open_ones = [config for config in configs if self.known[config][0].unfinished]
            if not open_ones:
                return
            self.shared.events.start(open_ones)
            held.callback(self.shared.detach)
            handles = Handles(open_ones, self.opened)
            for ended in train_group(self.shared, open_ones, handles):
                self._keep(handles.runs[ended.number], ended)
                handles.ended(ended.number, self.shared.events)

    def _keep(self, run: Run, ended: Ended) -> None:
        before, files = run.outcome, self.shared.task.files["train"]
        changes: dict[str, object] = {"status": ended.status, "reason": ended.reason}
        if ended.status == "pruned":
            last = run.record().validations[-1]
            reason = f"pruned after step {last.step}"
            changes |= {"reason": reason, "pruned_score": last.scores.main}
        if ended.scores is not None:
            trained = self.shared.method.trains
            changes |= {
                "cost": _of_lanes(ended, before),
                "scores": (ended.scores,),
                "validation_loss": ended.validation_loss,
                "trained_on": dict(files) if trained else {},
                "notes": (*before.notes, *ended.notes),
            }
            weights = ended.weights if trained else {}
            outcome = before.model_copy(update=changes)
            run.keep(outcome, history=ended.history, weights=weights, answers=ended.answers)
            return
        run.keep(before.model_copy(update=changes))


def _of_lanes(ended: Ended, before: Outcome) -> Cost | None:
    """Its cost, shared by as many lanes as made its first steps."""
    return None if ended.cost is None else replace(ended.cost, lanes=before.lanes or 1)


def run_group(
    configs: Sequence[RunConfig],
    store: Store,
    events: Events = SILENT,
    *,
    exclusive: bool = True,
    study: str | None = None,
    lanes: int | None = None,
    skip_busy: bool = False,
    prune: bool = False,
    faults: Faults | None = None,
) -> list[RunRecord]:
    """Trains and scores on validation configurations that share a base model, a task and what
    `Method.alike` says; finished ones are only read.

    One run is a group of one. LoRA runs train together, at most `lanes` of them (default: as many
    as a CUDA device holds; on a CPU one at a time). `exclusive` is False when other processes use
    the device: step times then need a probe. `study` names the study that asked for the runs; it
    may drop their weights later, never those of other runs. With `prune` the lower half of the runs
    that train together ends after a quarter, and again after half of the steps. With `skip_busy`
    runs that another process works on are left to it, else `RunBusy` is raised.

    A run that fails (diverges, does not learn) is recorded as failed with its reason. What else
    keeps one run from its end (no room, a full disk) is raised; with `faults` it is written there,
    and the other runs go on.
    """
    first = configs[0]
    alike = {method_of(config).alike(config) for config in configs}
    assert len(alike) == 1, "a group shares its model, its task and how it trains"
    task = load_task(first.task)
    for part in ("validation", "test"):
        refuse_leak(task, task.files["train"], part)
    source = find_base(first.model, first.method, first.train.precision)
    known = _opened(configs, store, source, task)
    wanted = _unfinished(known, task, events, prune=prune, say_finished=not skip_busy)
    # Before the model is loaded for nothing.
    all_busy = skip_busy and all(known[config][0].busy for config in wanted)
    if wanted and not all_busy:
        check_ready(task.spec.metric)
        note_other_base(first, events)
        shared = Shared(
            first=first,
            method=method_of(first),
            task=task,
            source=source,
            events=events,
            exclusive=exclusive,
            study=study,
            prune=prune,
        )
        shared.prepare()
        Rounds(shared=shared, known=known, skip_busy=skip_busy, faults=faults).run(wanted, lanes)
    return [
        run.record().relabelled(config, keys_of(config, task))
        for config, (run, _) in known.items()
        if config not in (faults or {}) and not (skip_busy and run.status == "new")
    ]


def _opened(configs: Sequence[RunConfig], store: Store, source: BaseSource, task: Task) -> Known:
    known, adapter = Known(), adapter_checksum(configs[0])
    for config in configs:
        provenance = provenance_of(config, source, task, adapter)
        known[config] = (store.open(config, provenance), provenance)
    return known


def _unfinished(
    known: Known, task: Task, events: Events, *, prune: bool, say_finished: bool
) -> list[RunConfig]:
    """What is to be trained; of configurations that ask for one run in other words, the first.
    `say_finished`: what is finished is said (by the study's own process, not by each worker)."""
    for config, (run, _) in known.items():
        if run.status == "pruned" and not prune:
            with run.lock():
                run.start_over()  # what was pruned in one search is wanted in full now
        elif not run.unfinished and complete(run, config, task, events) and say_finished:
            events.note(Message("note.finished_before", run=run.folder.name))
    first = {run.folder: config for config, (run, _) in reversed(known.items()) if run.unfinished}
    return [config for config in known if config in first.values()]
