"""Scores of a part of a task, kept in a run's folder with every answer; the loss on its answers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict

from tsugiki.config.run import RunConfig
from tsugiki.data.prompts import Tokens, pad_id_of
from tsugiki.data.tasks import Task
from tsugiki.model.loading import Base
from tsugiki.model.lora import bank_of
from tsugiki.runs.inputs import Listener
from tsugiki.runs.store import Run
from tsugiki.score.choices import log_probs
from tsugiki.score.evaluate import Evaluation, evaluate_lanes


def score_part(
    base: Base,
    task: Task,
    config: RunConfig,
    part: str,
    rows: list[Tokens],
    run: Run,
    listener: Listener,
) -> None:
    """Scores a model of one lane on a part and adds the result to its record."""
    [evaluation] = evaluations_of(base, task, config, part, rows, listener)
    keep_evaluation(run, part, evaluation)


def evaluations_of(
    base: Base, task: Task, config: RunConfig, part: str, rows: list[Tokens], listener: Listener
) -> list[Evaluation]:
    heard = listener.on_score
    return evaluate_lanes(
        base,
        task.spec,
        part,
        rows,
        config.score,
        (lambda done, total: heard(part, done, total)) if heard else None,
    )


def keep_evaluation(run: Run, part: str, evaluation: Evaluation) -> None:
    """Adds scores and answers of one part to a run's record."""
    run.write_answers(part, [asdict(one) for one in evaluation.predictions])
    run.update(
        evaluations={**run.record().happened.get("evaluations", {}), part: evaluation.to_json()}
    )


def losses_of(base: Base, rows: list[Tokens]) -> list[float]:
    """Mean loss a target token of these rows, for each lane of the model: what a score is not."""
    pairs, pad_id, bank = (
        [(row.prompt_ids, row.target_ids) for row in rows],
        pad_id_of(base.tokenizer),
        bank_of(base.model),
    )
    losses = []
    for lane in range(1 if bank is None else len(bank.shares)):
        with nullcontext() if bank is None else bank.only(lane):
            read = log_probs(base.model, pairs, pad_id, base.numerics)
        losses.append(-sum(map(sum, read)) / sum(map(len, read)))
    return losses
