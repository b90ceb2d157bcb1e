"""Three scores from one checkpoint: answers generated freely, spelled among the candidates, and
chosen by log-likelihood."""

from __future__ import annotations

from typing import Any

from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError
from tsugiki.runs.finished import load_trained, score_run
from tsugiki.runs.inputs import Listener, tokens_of
from tsugiki.runs.store import Run, RunRecord
from tsugiki.score.choices import WAYS, choose_all
from tsugiki.score.metrics import interval, mcnemar, paired_difference, per_example


def three_ways(
    record: RunRecord, part: str, listener: Listener = Listener()
) -> list[dict[str, Any]]:
    """One row a way: its score with interval, and what it gains over free generation (paired, by
    group; McNemar's p).

    The choices are kept as `ways-PART.json`; what stands there is not computed again.

    Raises:
        ConfigError: the task has no candidates: its answers are free text.
    """
    spec = load_task(record.config.task).spec
    if spec.kind == "generation":
        raise ConfigError(
            f'--ways: task "{spec.name}" has no candidates to choose among: its answers are free '
            "text"
        )
    record = score_run(record, part, listener)
    answers = record.answers(part)
    targets, groups = ([one[key] for one in answers] for key in ("target", "group"))
    texts = {"free": [one["answer"] for one in answers], **_chosen(record, part, listener)}
    values = {
        way: per_example(spec.metric, some, targets)[spec.metric] for way, some in texts.items()
    }
    rows = []
    for way, here in values.items():
        low, high = interval(here, groups)
        row = {
            "way": way,
            "score": spec.metric,
            "value": sum(here) / len(here),
            "low": low,
            "high": high,
            "n": len(here),
        }
        if way != "free":
            gain = paired_difference([here], [values["free"]], groups)
            row |= {
                "gain": gain.mean,
                "gain_low": gain.low,
                "gain_high": gain.high,
                "p": mcnemar(here, values["free"], groups).p,
            }
        rows.append(row)
    return rows


def _chosen(record: RunRecord, part: str, listener: Listener) -> dict[str, list[str]]:
    run = Run(record.folder)
    if (kept := run.read(f"ways-{part}.json")) is not None:
        return {way: list(kept[way]) for way in WAYS}
    base, task = load_trained(record), load_task(record.config.task)
    heard = listener.on_score
    rows = tokens_of(base, task, record.config, part)
    chosen = choose_all(
        base.model,
        base.tokenizer,
        rows,
        base.numerics,
        (lambda done, total: heard(part, done, total)) if heard else None,
    )
    run.write(f"ways-{part}.json", chosen)
    return {way: list(chosen[way]) for way in WAYS}
