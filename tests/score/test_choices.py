"""Choices among candidates: log-likelihoods against a plain computation, constrained answers
against HF generate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests import build
from tsugiki.data.example import Example
from tsugiki.data.prompts import Tokens, target_ids_of
from tsugiki.model.numerics import Numerics
from tsugiki.score.choices import choose_all, log_probs, spell

FP32 = Numerics(compute="fp32", base="fp32", trained="fp32")
CANDIDATES = ("含意", "含意 中立", "矛盾", "田", "田園", "青")  # some begin as others do


def rows(tokenizer: object) -> list[Tokens]:
    made = []
    for number in range(12):
        example = Example(id=str(number), fields={}, target="矛盾", candidates=CANDIDATES)
        prompt = tuple(20 + (number * 7 + place * 3) % 200 for place in range(3 + number % 5))
        made.append(Tokens(example=example, prompt_ids=prompt, target_ids=(5, 2)))
    return made


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_log_likelihoods_equal_a_plain_computation(kind: str) -> None:
    model, tokenizer = build.MODELS[kind](seed=3), build.tokenizer()
    pairs = [
        (row.prompt_ids, target_ids_of(tokenizer, candidate))
        for row in rows(tokenizer)
        for candidate in CANDIDATES
    ]
    found = log_probs(model, pairs, 3, FP32)
    for (prompt, answer), values in zip(pairs, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        expected = [logits[len(prompt) + at - 1, token].item() for at, token in enumerate(answer)]
        assert values == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("seed", [3, 4])
def test_constrained_answers_equal_those_of_hf_generate(kind: str, seed: int) -> None:
    model, tokenizer = build.MODELS[kind](seed=seed), build.tokenizer()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # so that candidates differ clearly
    ids = [target_ids_of(tokenizer, candidate) for candidate in CANDIDATES]
    chosen = choose_all(model, tokenizer, rows(tokenizer), FP32)
    for row, answer in zip(rows(tokenizer), chosen["constrained"], strict=True):
        start = len(row.prompt_ids)

        def allowed(_: int, sofar: torch.Tensor, start: int = start) -> list[int]:
            said = sofar[start:].tolist()
            return sorted(
                {one[len(said)] for one in ids if one[: len(said)] == said and len(one) > len(said)}
            ) or [2]

        out = model.generate(
            torch.tensor([row.prompt_ids]),
            max_new_tokens=12,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed,
            eos_token_id=2,
            pad_token_id=3,
        )
        assert ids[CANDIDATES.index(answer)] == out[0, start:].tolist()
    assert len(set(chosen["constrained"])) > 1


def test_sum_and_per_char_by_hand() -> None:
    assert spell([[5, 2], [5, 6, 2], [7, 2]], [[-1.0, -3.0], [-1.0, -0.5, -0.1], [-0.9, -0.1]]) == 2
    assert spell([[5, 2], [5, 6, 2], [7, 2]], [[-1.0, -3.0], [-1.0, -0.5, -9.0], [-1.1, -0.1]]) == 1
    assert spell([[5, 2], [5, 2]], [[-1.0, -1.0], [-1.0, -1.0]]) == 0, (
        "two equal candidates: the first"
    )
    model, tokenizer = build.llama(seed=3), build.tokenizer()
    data = rows(tokenizer)[:3]
    chosen = choose_all(model, tokenizer, data, FP32)
    for place, row in enumerate(data):
        sums = []
        for candidate in CANDIDATES:
            ids = target_ids_of(tokenizer, candidate)[:-1]
            with torch.no_grad():
                logits = model(torch.tensor([[*row.prompt_ids, *ids]])).logits[
                    0, len(row.prompt_ids) - 1 : -1
                ]
            sums.append(-F.cross_entropy(logits, torch.tensor(ids), reduction="sum").item())
        assert chosen["sum"][place] == CANDIDATES[sums.index(max(sums))]
        by_char = [value / len(name) for value, name in zip(sums, CANDIDATES, strict=True)]
        assert chosen["per_char"][place] == CANDIDATES[by_char.index(max(by_char))]
