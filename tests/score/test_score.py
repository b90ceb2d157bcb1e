"""Scores: the failure classes, intervals, ROUGE against rouge-score itself, greedy answers against
HF generate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rouge_score import rouge_scorer

from tests import build
from tsugiki.config.run import ScoreConfig
from tsugiki.data.example import Example
from tsugiki.data.prompts import Tokens
from tsugiki.data.text import normalise
from tsugiki.errors import RunError
from tsugiki.model.numerics import Numerics
from tsugiki.score.baselines import chance_baseline, lead_baseline, majority_baseline
from tsugiki.score.decode import generate_all
from tsugiki.score.failures import classify, repeats
from tsugiki.score.japanese import clean_for_rouge, segment
from tsugiki.score.metrics import (
    rouge,
    score,
    signature,
)
from tsugiki.score.predict import generate_ids, predict
from tsugiki.score.statistics import interval, paired_difference

CANDIDATES = ("含意", "中立", "矛盾")
FP32 = Numerics(compute="fp32", base="fp32", trained="fp32")


@pytest.mark.parametrize(
    ("answer", "ended", "expected"),
    [
        ("含意", True, "right"),
        (" 含意\n", True, "right_after_normalisation"),
        ("中立", True, "another_candidate"),
        ("中意", True, "outside"),
        ("答えは含意", True, "contains_candidate"),
        ("", True, "empty"),
        ("　", True, "empty"),
        ("含意含意含意含意", False, "repetition"),
        ("それはわからない", False, "no_eos"),
    ],
)
def test_each_wrong_answer_has_a_class(answer: str, ended: bool, expected: str) -> None:
    assert classify(answer, "含意", CANDIDATES, ended=ended, was_cut=False) == expected


def test_a_cut_input_is_told_from_a_plain_miss() -> None:
    assert classify("中意", "含意", CANDIDATES, ended=True, was_cut=True) == "truncated"
    assert classify("要約です", "別の要約", (), ended=True, was_cut=True) == "right"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ああああああ", True),
        ("あああ", False),
        ("犬が犬が犬が", True),
        ("犬が犬が", False),
        ("", False),
    ],
)
def test_repetition(text: str, expected: bool) -> None:
    assert repeats(text) == expected


def test_normalisation_is_nfkc_and_strip() -> None:
    assert normalise(" ﾃﾚﾋﾞ　１２ ") == "テレビ 12"


def test_rouge_equals_rouge_score_on_the_segmented_text() -> None:
    pairs = [
        (
            "米ワシントン州で新たに4人が死亡した😀",
            "米ワシントン州で2日、新たな死者が4人報告された。",
        ),
        ("猫が好き", "猫が好き"),
        ("犬", "猫"),
    ]
    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Split())
    for answer, target in pairs:
        expected = theirs.score(
            " ".join(segment(clean_for_rouge(target))), " ".join(segment(clean_for_rouge(answer)))
        )
        assert rouge(answer, target) == pytest.approx(
            {name: value.fmeasure for name, value in expected.items()}
        )
    assert rouge("猫が好き", "猫が好き")["rougeL"] == 1.0
    assert 0.3 < rouge(*pairs[0])["rouge1"] < 1.0


class _Split:
    def tokenize(self, text: str) -> list[str]:
        return text.split()


def test_the_signature_names_rule_and_versions() -> None:
    assert signature("accuracy") == "accuracy|norm:nfkc+strip|decode:greedy"
    assert signature("rouge").startswith("rouge|rule:lm-eval|norm:neologdn-")


def test_intervals_resample_groups() -> None:
    values = [1.0, 0.0] * 50
    alone = interval(values, [str(i) for i in range(100)])
    grouped = interval(values, [str(i // 10) for i in range(100)])
    assert alone[0] < 0.5 < alone[1]
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 * 0.05, rel=0.15)
    assert grouped == (0.5, 0.5), "every group has the same mean"
    assert interval([0.0] * 8, list("abcdefgh")) == pytest.approx((0.0, 0.324), abs=1e-3), (
        "Wilson: eight wrong answers are no proof of zero"
    )
    assert interval([1.0] * 8, list("abcdefgh"))[1] == 1.0
    assert score("accuracy", values, [str(i // 10) for i in range(100)], "accuracy").groups == 10


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    draw = np.random.default_rng(0)
    first = (draw.random(400) < 0.7).astype(float)
    second = np.where(draw.random(400) < 0.05, 0.0, first)
    found = paired_difference([list(first)], [list(second)], [str(i) for i in range(400)])
    mean, low, high = found.mean, found.low, found.high
    assert low <= mean <= high
    assert high - low < 0.06


def test_baselines() -> None:
    assert majority_baseline("accuracy", ["a", "a", "b"], ["a", "b", "b", "b"]) == [
        1.0,
        0.0,
        0.0,
        0.0,
    ]
    assert chance_baseline("accuracy", [("a", "b"), ("a", "b", "c", "d")], ["a", "b"]) == [
        0.5,
        0.25,
    ]
    # Scores of the whole: a class that is drawn evenly, against labels of unequal shares.
    labels, targets = ("a", "b", "c"), ["a"] * 6 + ["b"] * 3 + ["c"]
    drawn = chance_baseline("macro_f1", [labels] * 10, targets)
    f1 = [2 * share / 3 / (1 / 3 + share) for share in (0.6, 0.3, 0.1)]
    assert sum(drawn) / 10 == pytest.approx(sum(f1) / 3)
    assert sum(chance_baseline("mcc", [labels] * 10, targets)) == pytest.approx(0)
    assert lead_baseline("rouge", ["犬が走る。猫", "雨が降る。傘"], ["犬が走る", "雨が降る"])[
        "rouge1"
    ] == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_answers_equal_hf_generate_and_do_not_depend_on_the_batch(kind: str) -> None:
    model = build.MODELS[kind](seed=3)
    prompts = [[5, 6, 7], [9, 10, 11, 12, 13, 14], [20], [9, 9, 9, 9]]
    together = generate_ids(model, prompts, max_new_tokens=10, stops=(2,), pad_id=3)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = generate_ids(model, [prompt], max_new_tokens=10, stops=(2,), pad_id=3)[0]
        theirs = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=3,
        )[0][len(prompt) :].tolist()
        assert answer == alone == theirs


def test_rows_that_end_are_retired_and_order_is_kept() -> None:
    model = build.llama(seed=1)
    free = generate_ids(model, [[5, 6], [7, 8, 9]], max_new_tokens=6, stops=(), pad_id=3)
    eos = free[0][1]
    stopped = generate_ids(model, [[5, 6], [7, 8, 9]], max_new_tokens=6, stops=(eos,), pad_id=3)
    assert stopped[0] == free[0][: free[0].index(eos) + 1]
    assert stopped[1] == (free[1][: free[1].index(eos) + 1] if eos in free[1] else free[1])


def test_predictions_come_in_the_order_of_the_rows() -> None:
    tokenizer, model = build.tokenizer(), build.llama(seed=1)
    rows = [
        Tokens(
            example=Example(id=str(n), fields={}, target="含意", candidates=CANDIDATES),
            prompt_ids=(5,) * (n % 4 + 1),
            target_ids=(2,),
        )
        for n in range(9)
    ]
    wide = predict(
        model, tokenizer, rows, max_new_tokens=4, config=ScoreConfig(batch=4), numerics=FP32
    )
    narrow = predict(
        model, tokenizer, rows, max_new_tokens=4, config=ScoreConfig(batch=1), numerics=FP32
    )
    assert wide == narrow
    assert [one.id for one in wide] == [row.example.id for row in rows]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch", [3, 64])
def test_packed_answers_equal_the_reference(kind: str, batch: int) -> None:
    """Prompts read packed and a fixed store give the same tokens, with rows that end early and
    groups that shrink."""
    model = build.MODELS[kind](seed=5)
    prompts = [
        tuple(5 + (7 * n + 3 * place) % 300 for place in range(1 + n % 9)) for n in range(40)
    ]
    free = generate_ids(model, prompts, max_new_tokens=8, stops=(), pad_id=3)
    written = [token for answer in free for token in answer]
    # The commonest token: many rows end, at different steps.
    eos = max(set(written), key=written.count)
    reference = generate_ids(model, prompts, max_new_tokens=8, stops=(eos,), pad_id=3)
    assert len({len(answer) for answer in reference}) > 2
    assert (
        generate_all(model, prompts, max_new_tokens=8, batch=batch, stops=(eos,), numerics=FP32)
        == reference
    )
    assert (
        generate_all(model, prompts, max_new_tokens=8, batch=batch, stops=(), numerics=FP32) == free
    )
    assert model.config._attn_implementation == "sdpa"


def test_captured_decoding_that_cannot_be_is_refused() -> None:
    with pytest.raises(
        RunError, match=r'score.decode = "cuda_graph": it needs a CUDA device, this is cpu'
    ):
        predict(
            build.llama(),
            build.tokenizer(),
            [],
            max_new_tokens=4,
            config=ScoreConfig(decode="cuda_graph"),
            numerics=FP32,
        )
