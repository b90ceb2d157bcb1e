"""Answers among the candidates from one reading of each: by log-likelihood, and by generation that
may only spell a candidate.

    prompt | 田 園 </s>      log p of each token of each candidate, read once
    prompt | 田 </s>

    sum          the candidate whose tokens (without the EOS token) have the largest summed
                 log-likelihood
    per_char     the same divided by the candidate's characters
    constrained  greedy generation over a trie of the candidates, EOS token included: at
                 each token the likeliest that some candidate allows

What free generation misses and these find is form; what these miss too is knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from tsugiki.data.batch import longest_first
from tsugiki.data.prompts import Tokens, pad_id_of, target_ids_of
from tsugiki.data.tokenizer import Tokenizer
from tsugiki.model.loading import backbone_and_head
from tsugiki.model.numerics import Numerics

AnswerMode = Literal["sum", "per_char", "constrained"]
ANSWER_MODES: tuple[AnswerMode, ...] = get_args(AnswerMode)
TOKENS_AT_ONCE = 16_384  # of one padded batch
LOGITS_AT_ONCE = 4096  # rows of logits, each as wide as the vocabulary


def choose_all(
    model: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Tokens],
    numerics: Numerics,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[AnswerMode, list[str]]:
    """The candidate that each answer mode picks for every row; rows must have candidates."""
    ids = _candidate_ids(tokenizer, rows)
    chosen: dict[AnswerMode, list[str]] = {mode: [] for mode in ANSWER_MODES}
    read = _read_all(model, tokenizer, rows, ids, numerics, on_progress)
    for row, candidates, logprobs in zip(rows, ids, read, strict=True):
        names, sums = row.example.candidates, _sums(row, logprobs)
        chosen["sum"].append(names[_best(sums)])
        chosen["per_char"].append(
            names[
                _best([value / max(1, len(name)) for value, name in zip(sums, names, strict=True)])
            ]
        )
        chosen["constrained"].append(names[spell(candidates, logprobs)])
    return chosen


def candidate_sums(
    model: Any, tokenizer: Tokenizer, rows: Sequence[Tokens], numerics: Numerics
) -> list[list[float]]:
    """For each row the summed log-likelihood of each of its candidates, EOS token left out."""
    read = _read_all(model, tokenizer, rows, _candidate_ids(tokenizer, rows), numerics, None)
    return [_sums(row, logprobs) for row, logprobs in zip(rows, read, strict=True)]


def _candidate_ids(tokenizer: Tokenizer, rows: Sequence[Tokens]) -> list[list[list[int]]]:
    return [
        [target_ids_of(tokenizer, candidate, row.ending) for candidate in row.example.candidates]
        for row in rows
    ]


def _read_all(
    model: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Tokens],
    ids: Sequence[Sequence[Sequence[int]]],
    numerics: Numerics,
    on_progress: Callable[[int, int], None] | None,
) -> list[list[list[float]]]:
    """log p of each token of each candidate of each row."""
    flat = [
        (row.prompt_ids, answer)
        for row, candidates in zip(rows, ids, strict=True)
        for answer in candidates
    ]
    read = iter(log_probs(model, flat, pad_id_of(tokenizer), numerics, on_progress))
    return [[next(read) for _ in candidates] for candidates in ids]


def _sums(row: Tokens, logprobs: Sequence[Sequence[float]]) -> list[float]:
    return [sum(of_tokens[: len(of_tokens) - len(row.ending.ids)]) for of_tokens in logprobs]


def _best(values: Sequence[float]) -> int:
    """The first of the largest."""
    return max(range(len(values)), key=lambda index: (values[index], -index))


def spell(ids: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> int:
    """Greedy over the trie: keeps the candidates that go on with the likeliest token, until one is
    left or spelled to its end."""
    remaining = list(range(len(ids)))
    depth = 0
    while len(remaining) > 1:
        best = max(remaining, key=lambda candidate: (logprobs[candidate][depth], -candidate))
        remaining = [
            candidate for candidate in remaining if ids[candidate][depth] == ids[best][depth]
        ]
        depth += 1
        # Ids end with the EOS token: all that remain are equal.
        if any(depth == len(ids[candidate]) for candidate in remaining):
            return remaining[0]
    return remaining[0]


@torch.inference_mode()
def log_probs(
    model: Any,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    pad_id: int,
    numerics: Numerics,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """For each (prompt, answer) log p of every token of the answer, in fp32; in batches of like
    length, right-padded."""
    backbone, head = backbone_and_head(model)
    device = next(model.parameters()).device
    lengths = [sum(map(len, pair)) for pair in pairs]
    logprobs: dict[int, list[float]] = {}
    for indices in longest_first(lengths, lambda longest: max(1, TOKENS_AT_ONCE // longest)):
        longest = lengths[indices[0]]
        ids = torch.full((len(indices), longest), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(indices):
            both = torch.tensor([*pairs[index][0], *pairs[index][1]])
            ids[row, : len(both)], mask[row, : len(both)] = both, 1
        positions = [
            (row, len(pairs[index][0]) + at - 1)
            for row, index in enumerate(indices)
            for at in range(len(pairs[index][1]))
        ]
        with numerics.autocast(device):
            hidden = backbone(
                input_ids=ids.to(device), attention_mask=mask.to(device)
            ).last_hidden_state
            read = hidden[[row for row, _ in positions], [at for _, at in positions]]
        tokens = torch.tensor(
            [token for index in indices for token in pairs[index][1]], device=device
        )
        values = list[float]()
        for start in range(0, len(positions), LOGITS_AT_ONCE):
            some = slice(start, start + LOGITS_AT_ONCE)
            with numerics.autocast(device):
                logits = head(read[some])
            of_tokens = logits.float().log_softmax(-1).gather(-1, tokens[some, None])
            values += of_tokens[:, 0].tolist()
        for index in indices:
            logprobs[index], values = values[: len(pairs[index][1])], values[len(pairs[index][1]) :]
        if on_progress:
            on_progress(len(logprobs), len(pairs))
    return [logprobs[index] for index in range(len(pairs))]
