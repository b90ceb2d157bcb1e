"""The data of this comparison from the published files: Wikinews without source lines, and the
training rows of every task in two halves.

    python -m benchmarks.lora_vs_ft.prepare DATA OUT

DATA holds jcommonsenseqa/, jnli/, jnli_neg/, jsick/ and wikinews_ja/ as their authors publish them
(JSON Lines). What is done to Wikinews is said in figures, for every part.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from tsugiki.data.text import normalise

Row = dict[str, Any]
# Where a list of sources begins: 『press headline』, outlet, date; or a heading of such a list.
CITED = re.compile(
    r'(?:(?<=[。)）」』])|^)[^。]{0,60}?[『"“][^。]{2,200}?[』"”][^。、]{0,30}。?[^。]{0,60}?、?'
    r"[12][09]\d\d年\d{1,2}月\d{1,2}日"
)
HEADED = re.compile(r"(?<=。)(情報源|出典|関連記事|関連ニュース|最近の記事|外部リンク)")
LISTED = re.compile(r"^.{0,100}(関連ニュース|関連記事|最近の記事)", re.DOTALL)
SHORTEST = 100  # characters of an article


def without_sources(text: str) -> str:
    """An article up to its list of sources, whose press headlines give its own away."""
    starts = [match.start() for match in (CITED.search(text), HEADED.search(text)) if match]
    return text[: min(starts)] if starts else text


def articles(rows: Iterable[Row], count: Callable[[str], None]) -> Iterator[Row]:
    """Rows without source lines. Left out: articles that begin with a list of other articles (the
    headline among them), that hold their headline word for word, or that are too short then."""
    for row in rows:
        text = without_sources(row["text"])
        if LISTED.search(row["text"]):
            count("begins with a list of articles")
        elif len(text) < SHORTEST:
            count("too short")
        elif normalise(row["title"]) in normalise(text):
            count("holds its headline")
        else:
            count("cut" if len(text) < len(row["text"]) else "whole")
            yield {**row, "text": text}


def halves(rows: list[Row], name: str) -> tuple[list[Row], list[Row]]:
    """Two halves in the order of a hash of each row's number, in file order within."""
    order = sorted(range(len(rows)), key=lambda i: sha256(f"{name} {i}".encode()).hexdigest())
    first = set(order[: (len(rows) + 1) // 2])
    return (
        [row for i, row in enumerate(rows) if i in first],
        [row for i, row in enumerate(rows) if i not in first],
    )


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def bigrams_in(title: str, text: str) -> float:
    """Share of a headline's character bigrams that stand in a text."""
    wanted, there = ({s[i : i + 2] for i in range(len(s) - 1)} for s in (title, text))
    return len(wanted & there) / len(wanted)


def news_of(data: Path, out: Path, part: str) -> list[Row]:
    """The articles of a part, written down; what was done to them is said."""
    counts: dict[str, int] = {}

    def count(what: str) -> None:
        counts[what] = counts.get(what, 0) + 1

    rows = read(data / "wikinews_ja" / f"{part}.jsonl")
    kept = list(articles(rows, count))
    write(out / "wikinews" / f"{part}.jsonl", kept)
    whole = {row["id"]: row["text"] for row in rows}
    before = sum(bigrams_in(row["title"], whole[row["id"]]) for row in kept) / len(kept)
    after = sum(bigrams_in(row["title"], row["text"]) for row in kept) / len(kept)
    print(f"wikinews {part}: {len(rows)} → {len(kept)}: {counts}")
    print(f"  headline bigrams in the text: {before:.3f} before, {after:.3f} after")
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    news = {part: news_of(args.data, args.out, part) for part in ("train", "validation", "test")}
    inference = [
        {"id": f"{name}-{i}", **{key: row[key] for key in ("sentence1", "sentence2", "label")}}
        for name in ("jnli_neg/train", "jsick/train", "jnli/test")
        for i, row in enumerate(read(args.data / f"{name}.jsonl"))
    ]
    training = {
        "jcommonsenseqa": read(args.data / "jcommonsenseqa" / "train.jsonl"),
        "jnli": inference,
        "wikinews": news["train"],
    }
    for name, rows in training.items():
        for letter, half in zip("ab", halves(rows, name), strict=True):
            write(args.out / name / f"train_{letter}.jsonl", half)
            print(f"{name} {letter}: {len(half)} rows")
    for name in ("jcommonsenseqa/validation", "jcommonsenseqa/test", "jnli/validation_v1.3"):
        write(args.out / f"{name}.jsonl", read(args.data / f"{name}.jsonl"))


if __name__ == "__main__":
    main()
