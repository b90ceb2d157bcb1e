"""Turns text into one compressed file of token ids and the encoder's tokenizer; needs no GPU.

python prepare.py --corpus DIR --tokenizer FOLDER --out WORK

`WORK/tokens.xz` is an lzma-compressed one-dimensional .npy of uint16: documents in an order that
their text alone decides (so that every stretch mixes all sources), each closed by `</s>`. It is
all that the machine with the GPU needs, with `WORK/tokenizer/`.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, processors

sys.path.insert(0, str(Path(__file__).parents[1] / "builtin_model"))
from corpus import read_documents, share_of

# Everyday language first: the tasks are written in it. NAME or NAME:SHARE of its documents.
SOURCES = [
    "sentences_everyday",
    "dialogue_everyday",
    "wiki_small",
    "wiki_kyoto:0.55",
    "aozora_a:0.3",
]
BEGIN, END, PAD, MASK = "<s>", "</s>", "<pad>", "[MASK]"
UINT16 = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 3, "lp": 1, "pb": 1}]  # two-byte numbers


def encoder_tokenizer(folder: Path) -> Tokenizer:
    """The causal model's tokenizer with two additions, its ids as they were.

    `[MASK]` gets the first free id: every existing one, byte pieces among them, may occur in
    text. One text becomes `<s> A </s>`, a pair `<s> A </s></s> B </s>`, as RoBERTa encodes them.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([MASK])
    ids = [(piece, tokenizer.token_to_id(piece)) for piece in (BEGIN, END)]
    if any(number is None for _, number in ids) or tokenizer.token_to_id(PAD) is None:
        raise SystemExit(f"{folder}: the tokenizer must hold the pieces {BEGIN}, {END} and {PAD}")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", pair=f"{BEGIN} $A {END} {END} $B {END}", special_tokens=ids
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "cls_token": BEGIN,
        "eos_token": END,
        "sep_token": END,
        "pad_token": PAD,
        "mask_token": MASK,
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(names, indent=1), encoding="utf-8")


def mixed_documents(corpus: Path, sources: list[str]) -> list[str]:
    """The documents of all sources, in an order that their text alone decides."""
    documents = []
    for source in sources:
        name, _, share = source.partition(":")
        kept = [d for d in read_documents(corpus, name) if share_of(d) < float(share or 1)]
        print(f"{name}: {len(kept)} documents, {sum(map(len, kept)):,} characters", flush=True)
        documents += kept
    # Another number than the cut's: what sorts first must not be what is kept first.
    return sorted(documents, key=lambda document: share_of(document[::-1]))


def write_tokens(tokenizer: Tokenizer, documents: list[str], limit: int, out: Path) -> int:
    """Writes the ids of as many documents as fit into `limit` ids; returns how many ids."""
    end, parts, size = tokenizer.token_to_id(END), [], 0
    for start in range(0, len(documents), 256):
        batch = documents[start : start + 256]
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            parts.append(np.array([*encoding.ids, end], dtype=np.uint16))
            size += len(parts[-1])
        if size >= limit:
            break
    ids = np.concatenate(parts)[:limit]
    plain = io.BytesIO()
    np.save(plain, ids)
    out.write_bytes(lzma.compress(plain.getvalue(), format=lzma.FORMAT_XZ, filters=UINT16))
    return len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, required=True, help="folder of NAME.txt or NAME.txt.zst"
    )
    parser.add_argument("--sources", nargs="+", default=SOURCES, metavar="NAME[:SHARE]")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of the causal model to take it from"
    )
    parser.add_argument("--max-tokens", type=int, default=28_000_000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = encoder_tokenizer(args.tokenizer)
    write_tokenizer(tokenizer, args.out / "tokenizer")
    documents = mixed_documents(args.corpus, args.sources)
    path = args.out / "tokens.xz"
    size = write_tokens(tokenizer, documents, args.max_tokens, path)
    print(f"{path}: {size:,} tokens, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
