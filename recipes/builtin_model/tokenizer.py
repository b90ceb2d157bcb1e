"""Trains the tokenizer: Unigram, NFKC, byte fallback, single digits, `[SEP]` a piece of its own."""

from __future__ import annotations

import json
import random
from pathlib import Path

from corpus import SOURCES, split_documents
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>", "[SEP]"]
# No piece runs over these: sentence marks, brackets, line ends.
ALONE = "[。、！？「」『』（）()\\[\\]・…:：,.\\n]"


def _bare(model: models.Unigram) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(ALONE), "isolated"),
            pre_tokenizers.Split(Regex("[0-9]"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]
    )
    return tokenizer


def train_tokenizer(lines: list[str], vocab_size: int) -> Tokenizer:
    """A Unigram tokenizer of `vocab_size` pieces, of which 5 are special and 256 are bytes."""
    trained = _bare(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size - len(SPECIALS) - 256 + 1,
        unk_token="<unk>",
        special_tokens=["<unk>"],
        max_piece_length=8,
    )
    trained.train_from_iterator(lines, trainer)
    learned = [
        (piece, score)
        for piece, score in json.loads(trained.to_str())["model"]["vocab"]
        if piece != "<unk>"
    ]
    floor = min(score for _, score in learned) - 10.0
    vocab = (
        [(piece, 0.0) for piece in SPECIALS]
        + [(f"<0x{byte:02X}>", floor) for byte in range(256)]
        + learned
    )
    tokenizer = _bare(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in SPECIALS]
    )
    return tokenizer


def sample_lines(corpus: Path, characters: int, seed: int = 0) -> list[str]:
    """Lines for tokenizer training: every source in proportion to its weight, everyday language in
    full."""
    lines: list[str] = []
    total = sum(copies for copies, _ in SOURCES.values())
    for name, (copies, _) in SOURCES.items():
        train, _ = split_documents(corpus, name)
        random.Random(seed).shuffle(train)
        room = characters * copies // total
        for document in train:
            if room <= 0:
                break
            lines.extend(line for line in document.split("\n") if line)
            room -= len(document)
    return lines


def characters_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    return sum(map(len, texts)) / sum(
        len(encoding.ids) for encoding in tokenizer.encode_batch(texts)
    )
