"""Three scores from one checkpoint: answers generated freely, spelled among the candidates, and
chosen by log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass

from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError
from tsugiki.runs.events import SILENT, Events
from tsugiki.runs.finished import load_trained, refuse_chooser, score_run
from tsugiki.runs.inputs import tokens_of
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.store import Run
from tsugiki.score.choices import ANSWER_MODES, choose_all
from tsugiki.score.metrics import per_example, score
from tsugiki.score.rules import METRICS
from tsugiki.score.statistics import mcnemar, paired_difference


@dataclass(frozen=True, kw_only=True)
class ModeScore:
    """An answer mode: its score with interval, and what it gains over free generation (paired, by
    group; McNemar's p)."""

    mode: str
    score: str
    value: float
    low: float
    high: float
    n: int
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    p: float | None = None


def answer_modes(record: RunRecord, part: str, events: Events = SILENT) -> list[ModeScore]:
    """One row per mode, free generation first.

    The choices are kept as `answer-modes-PART.json`; what stands there is not computed again.

    Raises:
        ConfigError: the task has no candidates: its answers are free text.
    """
    refuse_chooser(record)
    spec = load_task(record.config.task).spec
    if not spec.closed:
        raise ConfigError(
            f'--answer-modes: task "{spec.name}" has no candidates to choose among: its answers '
            "are free "
            "text"
        )
    record = score_run(record, part, events)
    answers = record.answers(part)
    main = METRICS[spec.metric].main
    targets, groups = [row.target for row in answers], [row.group for row in answers]
    texts = {"free": [row.answer for row in answers], **_chosen(record, part, events)}
    values = {mode: per_example(spec.metric, some, targets)[main] for mode, some in texts.items()}
    right_or_wrong, scale = METRICS[spec.metric].whole is None, METRICS[spec.metric].scale
    rows = []
    for mode, own in values.items():
        scored = score(main, own, groups, spec.metric)
        value, low, high = scored.value, scored.low, scored.high
        row = ModeScore(mode=mode, score=main, value=value, low=low, high=high, n=len(own))
        if mode != "free":
            gain = paired_difference([own], [values["free"]], groups, scale=scale)
            row = ModeScore(
                mode=mode, score=main, value=value, low=low, high=high, n=len(own),
                gain=gain.mean, gain_low=gain.low, gain_high=gain.high,
                p=mcnemar(own, values["free"], groups).p if right_or_wrong else None,
            )  # fmt: skip
        rows.append(row)
    return rows


def _chosen(record: RunRecord, part: str, events: Events) -> dict[str, list[str]]:
    run = Run(record.folder)
    kept = run.read(f"answer-modes-{part}.json")
    if kept is not None:
        return {mode: kept[mode] for mode in ANSWER_MODES}
    base, task = load_trained(record), load_task(record.config.task)
    rows = tokens_of(base, task, record.config, part)
    heard = events.answers(part)
    chosen = choose_all(base.model, base.tokenizer, rows, base.numerics, heard)
    run.write(f"answer-modes-{part}.json", {mode: chosen[mode] for mode in ANSWER_MODES})
    return {mode: list(chosen[mode]) for mode in ANSWER_MODES}
