"""Writes the three sample tasks as JSON Lines, and prints what needs no model: majority, chance, bag of words, lead.

    python recipes/sample_tasks/build.py --out src/tsugiki/presets/tasks/samples

Everything is made from the word lists in this folder, written for tsugiki and given to the public (CC0).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import choice
import headline
import inference

SEED = 20261125
SIZES = {
    "sample_nli": (inference, {"train": 1500, "validation": 252, "test": 252}),
    "sample_choice": (choice, {"train": 800, "validation": 150, "test": 150}),
    "sample_headline": (headline, {"train": 500, "validation": 100, "test": 100}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, (maker, sizes) in SIZES.items():
        taken: set[tuple[str, ...]] = set()
        for part, count in sizes.items():
            rows = maker.make(part, count, SEED, taken)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (out / f"{name}.{part}.jsonl").write_text(text, encoding="utf-8")
            print(
                f"{name} {part}: {len(rows)} rows, for example {json.dumps(rows[0], ensure_ascii=False)}"
            )


if __name__ == "__main__":
    main()
