"""Turns documents into one flat array of token ids a source: `uint16`, every document closed by
`</s>`."""

from __future__ import annotations

import json
import lzma
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from corpus import SOURCES, split_documents
from tokenizers import Tokenizer

EOS_ID = 2


def _flat(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    parts = []
    for start in range(0, len(documents), 512):
        for encoding in tokenizer.encode_batch(
            documents[start : start + 512], add_special_tokens=False
        ):
            parts.append(np.array([*encoding.ids, EOS_ID], dtype=np.uint16))
    return np.concatenate(parts)


def pack(corpus: Path, tokenizer: Tokenizer, out: Path) -> None:
    """Writes `NAME.train.xz`, `NAME.held_out.xz` and `packed.json` (tokens, characters and copies
    a source)."""
    out.mkdir(parents=True, exist_ok=True)
    table: dict[str, dict[str, int]] = {}

    def write(path: Path, array: np.ndarray) -> None:
        path.write_bytes(lzma.compress(array.tobytes(), preset=6))

    with ThreadPoolExecutor(2) as pool:
        for name, (copies, _) in SOURCES.items():
            train, held_out = split_documents(corpus, name)
            if not train or not held_out:
                raise SystemExit(
                    f"{name}: {len(train)} training and {len(held_out)} held-out documents; a "
                    "source needs some hundreds"
                )
            arrays = {"train": _flat(tokenizer, train), "held_out": _flat(tokenizer, held_out)}
            for part, array in arrays.items():
                pool.submit(write, out / f"{name}.{part}.xz", array)
            table[name] = {
                "copies": copies,
                "documents": len(train),
                "train_tokens": int(arrays["train"].size),
                "held_out_tokens": int(arrays["held_out"].size),
                "held_out_characters": sum(len(document) for document in held_out),
            }
            print(name, table[name], flush=True)
    (out / "packed.json").write_text(json.dumps(table, indent=1), encoding="utf-8")


def unpack(packed: Path) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, dict[str, int]]]:
    """(training tokens of one pass, held-out tokens by source, the table)."""
    table = json.loads((packed / "packed.json").read_text(encoding="utf-8"))

    def read(path: Path) -> np.ndarray:
        return np.frombuffer(lzma.decompress(path.read_bytes()), dtype=np.uint16)

    with ThreadPoolExecutor(8) as pool:
        train = list(pool.map(lambda name: read(packed / f"{name}.train.xz"), table))
        held_out = dict(
            zip(
                table,
                pool.map(lambda name: read(packed / f"{name}.held_out.xz"), table),
                strict=True,
            )
        )
    one_pass = [
        array
        for name, array in zip(table, train, strict=True)
        for _ in range(table[name]["copies"])
    ]
    return np.concatenate(one_pass), held_out, table
