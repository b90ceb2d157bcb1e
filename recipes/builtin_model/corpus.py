"""Reads the corpus: a folder of `NAME.txt` or `NAME.txt.zst` files, UTF-8, documents separated by
a blank line.

Which files are used, and how many times a pass sees each, is the table `SOURCES`. Only texts with
a permissive, CC BY, CC BY-SA or no-copyright status are listed: the model and its weights are
passed on with the package.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

# name -> (copies of the source in one pass, share of its documents that is kept).
# Everyday language counts most: the sample tasks are written in it.
SOURCES: dict[str, tuple[int, float]] = {
    "aozora_a": (1, 0.70),
    "wiki_kyoto": (1, 0.55),
    "wiki_small": (2, 1.0),
    "dialogue_everyday": (3, 1.0),
    "sentences_everyday": (4, 1.0),
    "gov_whitepaper": (1, 0.5),
    "docs_ms_ht": (1, 0.2),
}
HELD_OUT_SHARE = 0.005


def read_documents(corpus: Path, name: str) -> Iterator[str]:
    """Yields the documents of one source in file order; raises `FileNotFoundError` when it is
    absent."""
    plain, packed = corpus / f"{name}.txt", corpus / f"{name}.txt.zst"
    if plain.exists():
        text = plain.read_text(encoding="utf-8")
    elif packed.exists():
        done = subprocess.run(
            ["zstd", "-dc", "--long=27", str(packed)], check=True, capture_output=True
        )
        text = done.stdout.decode("utf-8")
    else:
        raise FileNotFoundError(f"{corpus}: neither {plain.name} nor {packed.name} is there")
    yield from (document for document in text.split("\n\n") if document.strip())


def share_of(document: str) -> float:
    """A number in [0, 1) that depends on the text alone, so that a document always falls on the
    same side of a cut."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:6], "big") / 2**48


def split_documents(corpus: Path, name: str) -> tuple[list[str], list[str]]:
    """(training documents, held-out documents) of one source, after the source's share is
    applied."""
    train, held_out = [], []
    for document in read_documents(corpus, name):
        place = share_of(document)
        if place < HELD_OUT_SHARE:
            held_out.append(document)
        elif place < HELD_OUT_SHARE + SOURCES[name][1]:
            train.append(document)
    return train, held_out
