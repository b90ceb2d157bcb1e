"""Answers among the candidates from one reading of each: by log-likelihood, and by generation that
may only spell a candidate.

    prompt | 田 園 </s>      log p of each token of each candidate, read once
    prompt | 田 </s>

    sum          the candidate whose tokens (without the end mark) have the largest summed
                 log-likelihood
    per_char     the same divided by the candidate's characters
    constrained  greedy generation over a trie of the candidates, end mark included: at
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
from tsugiki.model.loading import Numerics, backbone_and_head

Way = Literal["sum", "per_char", "constrained"]
WAYS: tuple[Way, ...] = get_args(Way)
TOKENS_AT_ONCE = 16_384  # of one padded batch


def choose_all(
    model: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Tokens],
    numerics: Numerics,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[Way, list[str]]:
    """The candidate that each way picks for every row; rows must have candidates."""
    ids = [
        [target_ids_of(tokenizer, candidate, row.ending) for candidate in row.example.candidates]
        for row in rows
    ]
    flat = [(row.prompt_ids, one) for row, some in zip(rows, ids, strict=True) for one in some]
    read = iter(log_probs(model, flat, pad_id_of(tokenizer), numerics, on_progress))
    chosen: dict[Way, list[str]] = {way: [] for way in WAYS}
    for row, some in zip(rows, ids, strict=True):
        found = [next(read) for _ in some]
        names = row.example.candidates
        sums = [sum(one[: len(one) - len(row.ending.ids)]) for one in found]
        chosen["sum"].append(names[_best(sums)])
        chosen["per_char"].append(
            names[
                _best([value / max(1, len(name)) for value, name in zip(sums, names, strict=True)])
            ]
        )
        chosen["constrained"].append(names[spell(some, found)])
    return chosen


def _best(values: Sequence[float]) -> int:
    """The first of the largest."""
    return max(range(len(values)), key=lambda place: (values[place], -place))


def spell(ids: Sequence[Sequence[int]], found: Sequence[Sequence[float]]) -> int:
    """Greedy over the trie: keeps the candidates that go on with the likeliest token, until one is
    left or spelled to its end."""
    left = list(range(len(ids)))
    depth = 0
    while len(left) > 1:
        best = max(left, key=lambda one: (found[one][depth], -one))
        left = [one for one in left if ids[one][depth] == ids[best][depth]]
        depth += 1
        # Ids end with the end mark: all that are left are equal.
        if any(depth == len(ids[one]) for one in left):
            return left[0]
    return left[0]


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
    found: dict[int, list[float]] = {}
    for here in longest_first(lengths, lambda longest: max(1, TOKENS_AT_ONCE // longest)):
        longest = lengths[here[0]]
        ids = torch.full((len(here), longest), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, place in enumerate(here):
            both = torch.tensor([*pairs[place][0], *pairs[place][1]])
            ids[row, : len(both)], mask[row, : len(both)] = both, 1
        places = [
            (row, len(pairs[place][0]) + at - 1)
            for row, place in enumerate(here)
            for at in range(len(pairs[place][1]))
        ]
        with numerics.autocast(device):
            hidden = backbone(
                input_ids=ids.to(device), attention_mask=mask.to(device)
            ).last_hidden_state
            logits = head(hidden[[row for row, _ in places], [at for _, at in places]])
        tokens = torch.tensor([token for place in here for token in pairs[place][1]], device=device)
        values = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()
        for place in here:
            found[place], values = values[: len(pairs[place][1])], values[len(pairs[place][1]) :]
        if on_progress:
            on_progress(len(found), len(pairs))
    return [found[place] for place in range(len(pairs))]
