"""Task × model → `Evaluation`: the scores of one set of answers, with intervals and failure
classes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tsugiki.config.run import ScoreConfig
from tsugiki.config.task import TaskSpec
from tsugiki.data.prompts import Tokens
from tsugiki.model.loading import Base
from tsugiki.model.lora import lanes_on
from tsugiki.score.failures import CLASSES, is_candidate
from tsugiki.score.metrics import Score, per_example, score
from tsugiki.score.predict import Prediction, answers_together, predict_lanes
from tsugiki.score.rules import METRICS


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores by name (the task's metric first), failure classes, candidate rate (None for free
    text), seconds an answer."""

    part: str
    scores: tuple[Score, ...]
    main: Score
    failures: dict[str, int]
    candidate_rate: float | None
    answer_s: float
    predictions: tuple[Prediction, ...]


def summarise(
    spec: TaskSpec, part: str, predictions: Sequence[Prediction], answer_s: float
) -> Evaluation:
    """Scores a set of answers; needs no model."""
    values = per_example(
        spec.metric,
        [prediction.answer for prediction in predictions],
        [prediction.target for prediction in predictions],
    )
    groups = [prediction.group for prediction in predictions]
    counted = Counter(prediction.failure for prediction in predictions)
    scores = {name: score(name, each, groups, spec.metric) for name, each in values.items()}
    return Evaluation(
        part=part,
        scores=tuple(scores.values()),
        main=scores[METRICS[spec.metric].main],
        failures={name: counted[name] for name in CLASSES if counted[name]},
        candidate_rate=sum(is_candidate(prediction.failure) for prediction in predictions)
        / len(predictions)
        if spec.closed
        else None,
        answer_s=answer_s,
        predictions=tuple(predictions),
    )


def evaluate(
    base: Base,
    spec: TaskSpec,
    part: str,
    rows: Sequence[Tokens],
    config: ScoreConfig,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Generates and scores the answers of one part. `answer_s` is wall time over answers, batches
    included."""
    [evaluation] = evaluate_lanes(base, spec, part, rows, config, on_progress)
    return evaluation


def evaluate_lanes(
    base: Base,
    spec: TaskSpec,
    part: str,
    rows: Sequence[Tokens],
    config: ScoreConfig,
    on_progress: Callable[[int, int], None] | None = None,
    lanes: Sequence[int] | None = None,
) -> Iterator[Evaluation]:
    """`evaluate` for each lane of an adapted model (or for these alone), as soon as its answers are
    there. Lanes that answer in one batch share its time."""
    started, shared = time.perf_counter(), 0.0
    answers = predict_lanes(
        base.model,
        base.tokenizer,
        rows,
        max_new_tokens=config.max_new_tokens or spec.max_new_tokens,
        config=config,
        numerics=base.numerics,
        on_progress=on_progress,
        lanes=lanes,
    )
    count = len(lanes) if lanes is not None else lanes_on(base.model).num_lanes
    together = answers_together(base.model, config, base.numerics)
    for predictions in answers:
        spent = time.perf_counter() - started
        shared = shared or spent / count
        yield summarise(spec, part, predictions, (shared if together else spent) / len(rows))
        started = time.perf_counter()
