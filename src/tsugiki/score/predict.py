"""Greedy answers in batches: sorted by length, left-padded, finished rows retired. The same text
for any batch size in fp32.

_ _ p p p p | a e   position ids count from the first real token, so padding changes nothing
p p p p p p | a a a e
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from tsugiki.config.run import ScoreConfig
from tsugiki.data.batch import longest_first
from tsugiki.data.prompts import Tokens, answer_text, pad_id_of
from tsugiki.data.tokenizer import Tokenizer
from tsugiki.fast.cuda_graphs import use_cuda_graphs
from tsugiki.model.look import cache_argument, look_of
from tsugiki.model.lora import lanes_on
from tsugiki.model.numerics import Numerics
from tsugiki.score.decode import generate_lanes, rows_at_once
from tsugiki.score.failures import FailureClass, classify

EAGER_BATCH, CUDA_GRAPH_BATCH = 64, 256


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer: its text, whether the EOS token came, and its class."""

    id: str
    group: str
    target: str
    answer: str
    ended: bool
    failure: FailureClass


@torch.inference_mode()
def generate_ids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Collection[int],
    pad_id: int,
) -> list[list[int]]:
    """Greedy continuations of one batch, without what follows an end; an answer that ended closes
    with one of `stops`.

    Over a cache, padded on the left; a model that a cache or padding changes (`look_of`) is asked
    for each token anew, without either.
    """
    if not look_of(model).cached:
        return _generate_plainly(model, prompts, max_new_tokens, stops)
    device = next(model.parameters()).device
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    kept = {cache_argument(model): cache, "use_cache": True, "logits_to_keep": 1}
    answers: list[list[int]] = [[] for _ in prompts]
    alive = torch.arange(len(prompts))
    for _ in range(max_new_tokens):
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, **kept)
        chosen = out.logits[:, -1].argmax(-1)
        host = chosen.tolist()
        for row, token in zip(alive.tolist(), host, strict=True):
            answers[row].append(token)
        going = torch.tensor(
            [index for index, token in enumerate(host) if token not in stops], dtype=torch.long
        )
        if not len(going):
            break
        if len(going) < len(host):
            alive = alive[going]
            keep = going.to(device)
            cache.batch_select_indices(keep)
            chosen, mask, positions = chosen[keep], mask[keep], positions[keep]
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions[:, -1:] + 1
    return answers


def _generate_plainly(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, stops: Collection[int]
) -> list[list[int]]:
    """One full pass a token over rows of equal length: right for any causal model, and slow."""
    device = next(model.parameters()).device
    answers: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_new_tokens):
        by_length: dict[int, list[int]] = {}
        for row, answer in enumerate(answers):
            if not answer or answer[-1] not in stops:
                by_length.setdefault(len(prompts[row]) + len(answer), []).append(row)
        for rows in by_length.values():
            ids = torch.tensor([[*prompts[row], *answers[row]] for row in rows], device=device)
            logits = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
            ).logits[:, -1]
            for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
                answers[row].append(token)
    return answers


def predict(
    model: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Tokens],
    *,
    max_new_tokens: int,
    config: ScoreConfig,
    numerics: Numerics,
) -> list[Prediction]:
    """Answers of a model of one lane, in the order of `rows`: see `predict_lanes`."""
    [answers] = predict_lanes(
        model, tokenizer, rows, max_new_tokens=max_new_tokens, config=config, numerics=numerics
    )
    return answers


def answers_together(model: Any, config: ScoreConfig, numerics: Numerics) -> bool:
    """Whether all lanes of a model answer in one batch here. Raises as `predict_lanes` does."""
    device = next(model.parameters()).device
    return use_cuda_graphs(config.decode, "score.decode", model, device, numerics)


def predict_lanes(
    model: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Tokens],
    *,
    max_new_tokens: int,
    config: ScoreConfig,
    numerics: Numerics,
    on_progress: Callable[[int, int], None] | None = None,
    lanes: Sequence[int] | None = None,
) -> Iterator[list[Prediction]]:
    """Each lane's answers in the order of `rows`, as soon as they are there, by the CUDA-graph
    steps of `score/decode` where they exist, else by `generate_ids`.

    A model without adapters is one lane. On a device that records, all lanes answer in one batch;
    elsewhere one after another. `lanes`: only these (by their numbers), in this order.

    Raises:
        RunError: `score.decode = "cuda_graph"` was asked for and does not exist here.
    """
    prompts = [row.prompt_ids for row in rows]
    stops = rows[0].ending.stops if rows else frozenset()
    bank = lanes_on(model)
    wanted = range(bank.num_lanes) if lanes is None else lanes
    if answers_together(model, config, numerics):
        written = generate_lanes(
            model,
            prompts,
            lanes=bank.num_lanes,
            max_new_tokens=max_new_tokens,
            batch=config.batch or CUDA_GRAPH_BATCH,
            stops=stops,
            numerics=numerics,
            on_progress=on_progress,
        )
        for lane in wanted:
            yield _predictions(tokenizer, rows, written[lane])
        return
    for lane in wanted:
        with bank.only(lane):
            ids = _generate_in_batches(
                model,
                prompts,
                max_new_tokens,
                config.batch or EAGER_BATCH,
                stops=stops,
                pad_id=pad_id_of(tokenizer),
                numerics=numerics,
                on_progress=on_progress,
            )
        yield _predictions(tokenizer, rows, ids)


def _predictions(
    tokenizer: Tokenizer, rows: Sequence[Tokens], written: Sequence[list[int]]
) -> list[Prediction]:
    return [_prediction(tokenizer, row, ids) for row, ids in zip(rows, written, strict=True)]


def _generate_in_batches(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch: int,
    *,
    stops: Collection[int],
    pad_id: int,
    numerics: Numerics,
    on_progress: Callable[[int, int], None] | None,
) -> list[list[int]]:
    """A batch holds rows of like length; long ones make smaller batches."""
    device = next(model.parameters()).device
    answers: dict[int, list[int]] = {}
    for group in longest_first([len(prompt) for prompt in prompts], partial(rows_at_once, batch)):
        with numerics.autocast(device):
            generated = generate_ids(
                model,
                [prompts[i] for i in group],
                max_new_tokens=max_new_tokens,
                stops=stops,
                pad_id=pad_id,
            )
        answers.update(zip(group, generated, strict=True))
        if on_progress:
            on_progress(len(answers), len(prompts))
    return [answers[index] for index in range(len(prompts))]


def _prediction(tokenizer: Tokenizer, row: Tokens, ids: list[int]) -> Prediction:
    ended = bool(ids) and ids[-1] in row.ending.stops
    text = answer_text(tokenizer, row.prompt_ids, ids[:-1] if ended else ids)
    return prediction_of(row, text, ended=ended)


def prediction_of(row: Tokens, answer: str, *, ended: bool) -> Prediction:
    """An answer to a row, with its class."""
    example = row.example
    failure = classify(answer, example.target, example.candidates, ended=ended, was_cut=row.was_cut)
    return Prediction(
        id=example.id,
        group=example.group,
        target=example.target,
        answer=answer,
        ended=ended,
        failure=failure,
    )
