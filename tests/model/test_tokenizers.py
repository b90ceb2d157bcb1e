"""What a tokenizer loses is said with an example; a converted SentencePiece model is compared with
sentencepiece itself."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests import build
from tsugiki.errors import ModelError
from tsugiki.model.tokenizers import (
    PROBES,
    conversion_differences,
    round_trip_losses,
    tokenizer_notes,
)

spm = pytest.importorskip("sentencepiece")


def folder_of(path: Path, rule: str, kind: str = "T5Tokenizer") -> Path:
    """A folder with a SentencePiece model trained here, under a normalisation rule, and nothing
    converted yet."""
    path.mkdir(parents=True)
    (path / "text.txt").write_text(
        "\n".join(sentence for sentence in build.SENTENCES for _ in range(40)), encoding="utf-8"
    )
    spm.SentencePieceTrainer.train(
        input=str(path / "text.txt"), model_prefix=str(path / "made"), vocab_size=360,
        normalization_rule_name=rule, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, pad_id=3, unk_id=0, bos_id=1, eos_id=2,
        character_coverage=1.0,
    )  # fmt: skip
    (path / "made.model").rename(
        path / ("spiece.model" if kind == "T5Tokenizer" else "tokenizer.model")
    )
    settings = {
        "tokenizer_class": kind,
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_ids": 0,
        "legacy": False,
    }
    (path / "tokenizer_config.json").write_text(
        json.dumps({**settings, "add_bos_token": False}), encoding="utf-8"
    )
    return path


def lines(count: int = 1000) -> list[str]:
    dice = random.Random(0)
    letters = sorted(set("".join(build.SENTENCES)))
    return [
        "".join(dice.choice(letters) for _ in range(dice.randint(1, 40))).strip() or "犬"
        for _ in range(count)
    ]


def test_a_conversion_is_compared_with_sentencepiece_on_a_thousand_lines(tmp_path: Path) -> None:
    """transformers' T5 class keeps the model's own normalisation; on ordinary text both agree, or
    the note says where not."""
    folder = folder_of(tmp_path / "model", "nmt_nfkc")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = [line for line in lines() if "  " not in line]
    differing = conversion_differences(folder, tokenizer, plain)
    processor = spm.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    for line, ours, theirs in differing:
        assert ours != theirs == processor.encode(line)
    assert len(differing) < len(plain) / 20


def test_a_conversion_that_loses_the_normalisation_is_said_with_an_example(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "nmt_nfkc", "LlamaTokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lost = [line for line, _, _ in conversion_differences(folder, tokenizer, PROBES)]
    assert "ＡＢＣ１２３" in lost, "sentencepiece reads ABC123 there"
    notes = list(tokenizer_notes(folder, tokenizer, ["犬が公園を走っています。"]))
    assert any(
        "differs from sentencepiece on" in note and "look for another tokenizer class" in note
        for note in notes
    )


def test_what_does_not_come_back_is_said_with_an_example(tmp_path: Path) -> None:
    tokenizer = build.tokenizer()  # NFKC: full-width letters come back half-width
    assert dict(round_trip_losses(tokenizer, PROBES))["ＡＢＣ１２３"] == "ABC123"
    notes = list(tokenizer_notes(tmp_path, tokenizer, ["今日は天気がよいので、", "ＡＢ"]))
    assert (
        notes[0]
        == "tokenizer: 1 of 2 of the task's texts come back normalised (NFKC, spaces), like “ＡＢ” "
        "→ “AB”"
    )
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "犬": 1}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    poor = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert (
        next(iter(tokenizer_notes(tmp_path, poor, ["犬", "猫"])))
        == "tokenizer: 1 of 2 of the task's texts do not come back the same, like “猫” → “<unk>”"
    )


def test_a_damaged_sentencepiece_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"tokenizer.model: damaged or no SentencePiece model"):
        conversion_differences(tmp_path, build.tokenizer(), ["犬"])


def test_unknown_characters_that_become_the_eos_token_are_refused(tmp_path: Path) -> None:
    """transformers' T5 class has its unknown piece at id 2, where this model has its end."""
    from tsugiki.model.tokenizers import OtherIds, refuse_other_unknown

    path = tmp_path / "model"
    path.mkdir()
    (path / "text.txt").write_text(
        "\n".join(sentence for sentence in build.SENTENCES for _ in range(40)), encoding="utf-8"
    )
    spm.SentencePieceTrainer.train(
        input=str(path / "text.txt"),
        model_prefix=str(path / "spiece"),
        vocab_size=150,
        hard_vocab_limit=False,
        minloglevel=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
    )
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "extra_ids": 0,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.eos_token_id not in tokenizer("\ue000", add_special_tokens=False)["input_ids"]:
        refuse_other_unknown(path, tokenizer)
        pytest.skip("this version of transformers keeps the unknown piece")
    with pytest.raises(
        OtherIds, match="characters that its tokenizer does not know become its EOS token"
    ):
        refuse_other_unknown(path, tokenizer)
