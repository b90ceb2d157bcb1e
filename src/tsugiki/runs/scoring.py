"""Scores of a part of a task with their key."""

from __future__ import annotations

from collections.abc import Sequence

from tsugiki.config.run import RunConfig
from tsugiki.data.prompts import Tokens
from tsugiki.data.tasks import Task
from tsugiki.model.loading import Base
from tsugiki.runs.events import Events
from tsugiki.runs.identity import key_of
from tsugiki.runs.methods import method_of
from tsugiki.runs.record import Scores
from tsugiki.runs.store import Run
from tsugiki.score.evaluate import Evaluation


def scores_of(
    evaluation: Evaluation, config: RunConfig, task: Task, rows: Sequence[Tokens]
) -> Scores:
    """What is kept of an evaluation, with what it depends on."""
    ends = tuple(sorted(rows[0].ending.stops))
    key = key_of(config, task, evaluation.part)
    return unkeyed(evaluation).model_copy(update={"key": key.model_copy(update={"ends": ends})})


def unkeyed(evaluation: Evaluation) -> Scores:
    """The same without a key: of a sample that was drawn from a part."""
    return Scores(
        part=evaluation.part,
        scores=evaluation.scores,
        main=evaluation.main,
        failures=evaluation.failures,
        candidate_rate=evaluation.candidate_rate,
        answer_s=evaluation.answer_s,
    )


def score_part(
    base: Base,
    task: Task,
    config: RunConfig,
    part: str,
    rows: Sequence[Tokens],
    run: Run,
    events: Events,
) -> None:
    """Scores a model of one lane on a part and adds the result to its record."""
    answering, heard = method_of(config).answering, events.answers(part)
    [evaluation] = answering.evaluate(base, task.spec, part, rows, config.score, heard)
    run.add_scores(scores_of(evaluation, config, task, rows), evaluation.predictions)
