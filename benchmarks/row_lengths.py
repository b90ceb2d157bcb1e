"""Writes row_lengths.json: (prompt, answer) lengths in tokens of 512 rows a task, so that the
benchmark needs no data.

    python benchmarks/step/row_lengths.py --data DIR --model FOLDER

JNLI: the validation file's pairs. JCommonsenseQA: the training file. XLSum-like: whole Wikinews
articles and their headlines, stretched so that the articles' mean is 1,100 tokens and cut at
2,048, as XL-Sum's Japanese part is longer (the paper cuts there as well); headlines are stretched
by three, to the length of a summary.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from pathlib import Path

from tsugiki.model.loading import load_tokenizer

ROWS = 512
MEAN_ARTICLE, LONGEST = 1100, 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with jnli/, jcommonsenseqa/, wikinews_ja/"
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the tokenizer")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.model)

    def lengths(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def rows(name: str) -> list[dict]:
        found = [
            json.loads(line) for line in (args.data / name).read_text(encoding="utf-8").splitlines()
        ]
        return random.Random(0).sample(found, ROWS)

    jnli = rows("jnli/validation.jsonl")
    words = {"entailment": "含意", "neutral": "中立", "contradiction": "矛盾"}
    jcqa = rows("jcommonsenseqa/train.jsonl")
    news = rows("wikinews_ja/train.jsonl")
    articles = lengths([row["text"] for row in news])
    stretch = MEAN_ARTICLE / (sum(articles) / ROWS)
    answers = [3 * one + 1 for one in lengths([row["title"] for row in news])]
    result = {
        "jnli": pairs(
            lengths([f"文1: {r['sentence1']}[SEP]文2: {r['sentence2']}[SEP]" for r in jnli]),
            [n + 1 for n in lengths([words[r["label"]] for r in jnli])],
        ),
        "jcommonsenseqa": pairs(
            lengths(
                [
                    f"質問: {r['question']}"
                    + "".join(f"{i + 1}. {r[f'choice{i}']}" for i in range(5))
                    + "[SEP]"
                    for r in jcqa
                ]
            ),
            [n + 1 for n in lengths([r[f"choice{r['label']}"] for r in jcqa])],
        ),
        "xlsum": [
            [min(round(n * stretch), LONGEST - m), m]
            for n, m in zip(articles, answers, strict=True)
        ],
    }
    about = {
        "tokenizer_sha256": hashlib.sha256(
            (args.model / "tokenizer.json").read_bytes()
        ).hexdigest(),
        "rows": ROWS,
        "xlsum_stretch": round(stretch, 3),
        "mean_tokens": {
            name: round(sum(map(sum, made)) / ROWS, 1) for name, made in result.items()
        },
    }
    Path(__file__).with_suffix(".json").write_text(
        json.dumps({"about": about, **result}) + "\n", encoding="utf-8"
    )
    print(json.dumps(about, indent=1))


def pairs(prompts: list[int], answers: list[int]) -> list[list[int]]:
    return [[one, other] for one, other in zip(prompts, answers, strict=True)]


if __name__ == "__main__":
    main()
