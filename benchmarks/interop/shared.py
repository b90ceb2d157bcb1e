"""What the programs here have in common: rows, an answer's text, and the kept comparison.

Needs `tokenizers` alone, which every environment here has.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

WAYS = ("adapter", "merged", "base")  # "base": without the adapter, to see that answers tell


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("prompts", type=Path, help="what prompts.py wrote")
    parser.add_argument("adapter", type=Path, help="what tsugiki export wrote")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results.json"))
    return parser


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def read_usage(adapter: Path) -> dict[str, Any]:
    """`tsugiki.json`, as a program reads it."""
    return json.loads((adapter / "tsugiki.json").read_text("utf-8"))


def answer_texts(
    usage: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[int]]
) -> list[str]:
    """Answers as text: the whole without its prompt, so that joints decode as in running text; a
    stop id at the end is dropped."""
    tokenizer = Tokenizer.from_file(str(Path(usage["base"]["name"]) / "tokenizer.json"))
    stops, texts = set(usage["generation"]["eos_token_id"]), []
    for row, answer in zip(rows, answers, strict=True):
        prompt = row["prompt_ids"]
        said = answer[:-1] if answer and answer[-1] in stops else answer
        before, both = (
            tokenizer.decode(list(ids), skip_special_tokens=False)
            for ids in (prompt, [*prompt, *said])
        )
        texts.append(both[len(before) :])
    return texts


def keep(
    results: Path,
    usage: Mapping[str, Any],
    program: str,
    way: str,
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    packages: Sequence[str],
    note: str = "",
) -> None:
    """Compares with the evaluation's answers, prints it, and puts it into the kept file."""
    pairs = list(zip(rows, texts, strict=True))
    other = [
        {"id": row["id"], "evaluation": row["answer"], "program": text}
        for row, text in pairs
        if row["answer"] != text
    ]
    run = usage["run"].rpartition("-")[0]  # without its checksum
    entry = {
        "run": run,
        "program": program,
        "way": way,
        "equal": len(rows) - len(other),
        "rows": len(rows),
        "different_answers": len({row["answer"] for row in rows}),
        "versions": {name: version(name) for name in packages},
        "cpu": cpu_name(),
        "note": note,
        "other": other if way != "base" else [],
    }
    print(f"{run}, {program}, {way}: {entry['equal']} of {len(rows)} equal")
    known = json.loads(results.read_text("utf-8")) if results.exists() else []
    key = ("run", "program", "way")
    kept = [each for each in known if any(each[name] != entry[name] for name in key)]
    kept = sorted([*kept, entry], key=lambda each: [each[name] for name in key])
    results.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", "utf-8")


def cpu_name() -> str:
    """As Linux tells it."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    return found.group(1) if found else "?"
