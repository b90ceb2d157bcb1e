"""Scores kept answers under other tools' rules, and under the other version of the labels; needs no
model. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsugiki.config.run import TaskChoice
from tsugiki.data.tasks import Task, load_task, version_at_hand
from tsugiki.errors import RunError
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import Answer
from tsugiki.score.class_scores import class_scores
from tsugiki.score.rules import pick_rules
from tsugiki.score.statistics import interval
from tsugiki.words import Message


@dataclass(frozen=True, kw_only=True)
class RuleScore:
    """One score by one rule under one version of the labels, with its interval where it has one."""

    rule: str
    labels: str
    score: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int
    signature: str


def rescore(record: RunRecord, part: str, rules: str) -> list[RuleScore]:
    """One row for each rule, score and version of the labels.

    Raises:
        RunError: the part was not scored: there are no answers.
        ConfigError: an unknown rule.
    """
    if record.scores(part) is None:
        raise RunError(Message("error.not_scored", run=record.folder, part=part))
    task, answers = load_task(record.config.task), record.answers(part)
    metric, groups = task.spec.metric, [row.group for row in answers]
    texts, rows = [row.answer for row in answers], list[RuleScore]()
    known = {row.id: row.candidates for row in task.examples[part]}
    for labels, targets in _targets(task, record.config.task, part, answers).items():
        for rule in pick_rules(metric, rules):
            scores = rule.score(texts, targets)
            if rule.taken is not None and all(answer.id in known for answer in answers):
                scores["out_of_label"] = [
                    float(rule.taken(answer.answer) not in known[answer.id]) for answer in answers
                ]
            for name, values in scores.items():
                low, high = interval(values, groups)
                row = RuleScore(
                    rule=rule.name, labels=labels, score=name, value=float(np.mean(values)),
                    low=low, high=high, n=len(values), signature=rule.signature(),
                )  # fmt: skip
                rows.append(row)
        if task.spec.fixed_answers:
            words, n = task.spec.fixed_answers, len(texts)
            for name, value in class_scores(texts, targets, words).items():
                row = RuleScore(
                    rule="tsugiki", labels=labels, score=name, value=value, n=n, signature=name
                )
                rows.append(row)
    return rows


def _targets(
    task: Task, choice: TaskChoice, part: str, answers: Sequence[Answer]
) -> dict[str, list[str]]:
    """What is right by each version of the data that is at hand and has the same rows; the run's
    own first."""
    own = f"v{task.version}" if task.version else "-"
    targets_by_version = {own: [row.target for row in answers]}
    for version in task.spec.versions:
        if version == task.version or not version_at_hand(choice, version):
            continue
        other = load_task(choice.model_copy(update={"version": version}))
        targets = {
            example.id: example.target
            for some in ("validation", "test")
            for example in other.examples[some]
        }
        if all(row.id in targets for row in answers):
            targets_by_version[f"v{version}"] = [targets[row.id] for row in answers]
    return targets_by_version
