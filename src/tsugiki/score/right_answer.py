"""Answers of an encoder: the likeliest of those that a row has, in batches of like length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from tsugiki.config.run import ScoreConfig
from tsugiki.config.task import TaskSpec
from tsugiki.data.batch import longest_first
from tsugiki.data.pairs import collate_pairs, options_of
from tsugiki.data.prompts import Tokens, pad_id_of
from tsugiki.model.loading import Base
from tsugiki.score.decode import rows_at_once
from tsugiki.score.evaluate import Evaluation, summarise
from tsugiki.score.predict import EAGER_BATCH, prediction_of

OnProgress = Callable[[int, int], None]


def evaluate_encoder(
    base: Base,
    spec: TaskSpec,
    part: str,
    rows: Sequence[Tokens],
    config: ScoreConfig,
    on_progress: OnProgress | None = None,
    lanes: Sequence[int] | None = None,
) -> Iterator[Evaluation]:
    """Answers and scores one part: as text, by the same rules as answers that are written. An
    encoder is one lane: `lanes` names it."""
    started = time.perf_counter()
    logits = _logits(base, rows, config.batch or EAGER_BATCH, on_progress)
    predictions = [
        prediction_of(row, options_of(row).texts[int(own.argmax())], ended=True)
        for row, own in zip(rows, logits, strict=True)
    ]
    yield summarise(spec, part, predictions, (time.perf_counter() - started) / len(rows))


def mean_loss(base: Base, rows: Sequence[Tokens]) -> float:
    """Mean cross-entropy of a row's right answer, in nats."""
    losses = [
        F.cross_entropy(own, torch.tensor(options_of(row).texts.index(row.example.target)))
        for row, own in zip(rows, _logits(base, rows, EAGER_BATCH, None), strict=True)
    ]
    return float(torch.stack(losses).mean())


@torch.inference_mode()
def _logits(
    base: Base, rows: Sequence[Tokens], batch: int, on_progress: OnProgress | None
) -> list[torch.Tensor]:
    """The logits of each row's answers, in fp32 on the CPU."""
    pad, done = pad_id_of(base.tokenizer), dict[int, torch.Tensor]()
    for group in longest_first([len(row) for row in rows], partial(rows_at_once, batch)):
        pairs = collate_pairs([rows[index] for index in group], group, pad).to(base.device)
        with base.numerics.autocast(base.device):
            logits = base.model(pairs.ids, pairs.mask, pairs.types, pairs.index).float().cpu()
        for index, own in zip(group, logits, strict=True):
            done[index] = own[: len(options_of(rows[index]).texts)]
        if on_progress:
            on_progress(len(done), len(rows))
    return [done[index] for index in range(len(rows))]
