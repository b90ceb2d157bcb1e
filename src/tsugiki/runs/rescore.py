"""Scores kept answers under other tools' rules, and under the other version of the labels; needs
no model. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tsugiki.config.run import TaskChoice
from tsugiki.data.tasks import Task, load_task, version_at_hand
from tsugiki.errors import RunError
from tsugiki.runs.store import RunRecord
from tsugiki.score.metrics import interval
from tsugiki.score.rules import class_scores, pick_rules, score_by, signature_of

Rows = list[dict[str, Any]]


def rescore(record: RunRecord, part: str, rules: str) -> Rows:
    """One row for each rule, score and version of the labels: rule, labels, name, value, low,
    high, n, signature.

    Raises:
        RunError: the part was not scored: there are no answers.
        ConfigError: an unknown rule.
    """
    if record.evaluation(part) is None:
        raise RunError(
            f"{record.folder}: was not scored on {part}. Run: tsugiki score {record.folder} --part "
            f"{part}"
        )
    task, answers = load_task(record.config.task), record.answers(part)
    metric = task.spec.metric
    rows: Rows = []
    for version, labelled in _label_versions(task, record.config.task, part, answers).items():
        groups = [one["group"] for one in labelled]
        texts, targets = ([one[key] for one in labelled] for key in ("answer", "target"))
        for rule in pick_rules(metric, rules):
            for name, values in score_by(rule, metric, texts, targets).items():
                low, high = interval(values, groups)
                rows.append(
                    _row(
                        rule,
                        version,
                        name,
                        float(np.mean(values)),
                        low,
                        high,
                        len(values),
                        signature_of(rule, metric),
                    )
                )
        if task.spec.kind == "classification":
            labels = list(task.spec.labels.values())
            rows += [
                _row("tsugiki", version, name, value, None, None, len(texts), name)
                for name, value in class_scores(texts, targets, labels).items()
            ]
    return rows


def _row(
    rule: str,
    labels: str,
    name: str,
    value: float,
    low: float | None,
    high: float | None,
    n: int,
    signature: str,
) -> dict[str, Any]:
    return {
        "rule": rule,
        "labels": labels,
        "score": name,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "signature": signature,
    }


def _label_versions(
    task: Task, choice: TaskChoice, part: str, answers: Sequence[Mapping[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The answers with the labels of each version of the data that is at hand and has the same
    rows; the run's own first."""
    own = f"v{task.version}" if task.version else "-"
    found = {own: [dict(one) for one in answers]}
    for version in task.spec.versions:
        if version == task.version or not version_at_hand(choice, version):
            continue
        other = load_task(choice.model_copy(update={"version": version}))
        targets = {
            example.id: example.target
            for some in ("validation", "test")
            for example in other.examples[some]
        }
        if all(one["id"] in targets for one in answers):
            found[f"v{version}"] = [{**one, "target": targets[one["id"]]} for one in answers]
    return found
