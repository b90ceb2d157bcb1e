"""The main path: configurations that share a base model and a task become outcomes.

    load → tokenise → lanes → fit → evaluate → outcomes

Read `train_group` from top to bottom. It writes nothing: how each run ended is yielded as soon as
it is known (`Ended`), and `runs/rounds` makes the `Outcome` of it that the store keeps.

Shared    what all of them use, loaded once: base model, task, rows as ids, who is told of progress
Handles   one handle for each run's folder: where its checkpoints go, what is noted while it trains
Watch     the engine's callback: scores a sample of validation, prunes, hands checkpoints over
Lane      parameters to move, their optimizer, and where their rows come from
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tsugiki.config.run import RunConfig
from tsugiki.runs.events import Events
from tsugiki.runs.handles import Handles
from tsugiki.runs.record import Scores, Status
from tsugiki.runs.scoring import scores_of
from tsugiki.runs.shared import Shared
from tsugiki.runs.symptoms import lost_updates
from tsugiki.runs.watch import Watch
from tsugiki.score.predict import Prediction
from tsugiki.train.cost import Cost
from tsugiki.train.engine import fit
from tsugiki.train.history import History
from tsugiki.train.lane import Lane
from tsugiki.words import Message


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one of the runs ended: `number` counts them as they were given. Failed and pruned ones
    have a reason and no scores."""

    number: int
    status: Status
    reason: str = ""
    cost: Cost | None = None
    scores: Scores | None = None
    validation_loss: float | None = None
    history: History | None = None
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    answers: Sequence[Prediction] = ()
    notes: tuple[str, ...] = ()


def train_group(shared: Shared, configs: Sequence[RunConfig], handles: Handles) -> Iterator[Ended]:
    """Trains configurations over one base together, each to its own end, and scores each on
    validation.

    Args:
        shared: task, base, rows, and who listens.
        configs: they agree in all that one base and one step must have in common
            (`Method.alike`): model, task, length, precision.
        handles: of their folders, in the same order.

    Raises:
        Interrupted: on Ctrl-C; the same call goes on from the checkpoints.
        DoesNotFit: the device does not hold so many together (making the step says so).
    """
    base, task, events = shared.load(), shared.task, shared.events
    rows, validation = shared.rows, shared.validation  # tokenised at the first use
    size = base.num_parameters
    lanes = shared.method.lanes(base, configs, len(rows))
    handles.start_runs(shared, lanes, size)
    with shared.open_step(lanes, handles.all_at_their_end(lanes)) as step:
        first_kind = step.kind
        handles.note_step(shared, first_kind)
        results = fit(
            step,
            lanes,
            base.device,
            folders=handles.checkpoints,
            on_progress=events.on_train,
            callback=Watch(shared, configs, lanes, handles, step),
            on_values=handles.values(events),
        )
        if step.kind != first_kind:
            handles.note_step(shared, step.kind)
            events.note(Message("note.memory_ran_out", step=step.kind))
    lost = _lost(lanes, events)
    for number, result in enumerate(results):
        if result.failure is not None:
            yield Ended(number=number, status="failed", reason=result.failure)
        elif result.pruned:
            yield Ended(number=number, status="pruned")
    trained = [number for number, result in enumerate(results) if result.whole]
    if not trained:
        return
    settings, on_progress = configs[0].score, events.answers("validation")
    answering = shared.method.answering
    evaluations = answering.evaluate(
        base, task.spec, "validation", validation, settings, on_progress, lanes=trained
    )
    for number, evaluation in zip(trained, evaluations, strict=True):
        yield Ended(
            number=number,
            status="done",
            cost=results[number].cost,
            scores=scores_of(evaluation, configs[number], task, validation),
            validation_loss=answering.loss(base, validation, number),
            history=results[number].history,
            weights=lanes[number].own_tensors(),
            notes=lost[number],
            answers=evaluation.predictions,
        )


def _lost(lanes: Sequence[Lane], events: Events) -> list[tuple[str, ...]]:
    """Of each lane what is to be said of updates that its storage cannot hold."""
    lost: list[tuple[str, ...]] = [
        tuple(lost_updates(lane.name, lane.lost_to_rounding())) for lane in lanes
    ]
    for said in itertools.chain.from_iterable(lost):
        events.note(said)
    return lost
