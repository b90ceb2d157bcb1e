"""The rows that other programs are to answer: a scored run's test rows as tsugiki asked them.

    python benchmarks/interop/prompts.py RUN ADAPTER --to prompts.jsonl

Runs in tsugiki's own environment. ADAPTER is the folder that `tsugiki export RUN` wrote; that its
`tsugiki.json` (template, opening ids, stop ids, length) leads to the very ids of the evaluation is
checked here. Each line has the row's id, its fields, the prompt's ids, and the evaluation's answer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer

from tsugiki.data.prompts import Tokens
from tsugiki.data.tasks import load_task
from tsugiki.model.loading import find_base, load_base
from tsugiki.runs.inputs import tokens_of
from tsugiki.runs.reading import RunRecord, read_record

PART = "test"


def asked(record: RunRecord) -> list[Tokens]:
    """The rows of the part, as the evaluation made them."""
    config = record.config
    base = load_base(find_base(config.model, config.method, config.train.precision))
    return tokens_of(base, load_task(config.task), config, PART)


def check_usage(adapter: Path, rows: list[Tokens]) -> None:
    """Ends where `tsugiki.json` would lead a program to other ids or other stops."""
    usage = json.loads((adapter / "tsugiki.json").read_text("utf-8"))
    prompt, stops = usage["prompt"], set(usage["generation"]["eos_token_id"])
    assert not prompt["chat_template"], "conversations are not asked here"
    tokenizer = AutoTokenizer.from_pretrained(usage["base"]["name"])
    for row in rows:
        text = prompt["template"].format(**row.example.fields)
        ids = prompt["opening_ids"] + tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row.was_cut or ids == list(row.prompt_ids), f"row {row.example.id}: other ids"
        assert stops == set(row.ending.stops), f"row {row.example.id}: other stop ids"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    args = parser.parse_args()
    record = read_record(args.run)
    rows = asked(record)
    check_usage(args.adapter, rows)
    said = {answer.id: answer.answer for answer in record.answers(PART)}
    with args.to.open("w", encoding="utf-8") as file:
        for row in rows:
            line = {
                "id": row.example.id,
                "fields": dict(row.example.fields),
                "prompt_ids": list(row.prompt_ids),
                "answer": said[row.example.id],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"{args.to}: {len(rows)} rows, {len({*said.values()})} different answers")


if __name__ == "__main__":
    main()
