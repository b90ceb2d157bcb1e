"""Answers of transformers and peft, by the snippet of the adapter's model card as it stands there.

    python benchmarks/interop/peft_answers.py prompts.jsonl ADAPTER

Runs in tsugiki's own environment, without tsugiki: rows are given to the card as fields.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from shared import arguments, keep, read_rows, read_usage


def card_code(adapter: Path) -> str:
    """The card's Python, up to the line that prints an answer."""
    card = (adapter / "README.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)\nprint\(answer", card, re.DOTALL)
    assert code, f"{adapter}: its card has no snippet"
    return code.group(1).replace('ADAPTER = "."', f"ADAPTER = {str(adapter)!r}")


def main() -> None:
    args = arguments(__doc__).parse_args()
    rows, usage = read_rows(args.prompts), read_usage(args.adapter)
    names: dict[str, Any] = {}
    exec(card_code(args.adapter), names)
    texts = [names["answer"](**row["fields"]) for row in rows]
    versions = ("peft", "transformers", "torch")
    keep(args.results, usage, "the card's snippet", "adapter", rows, texts, versions)


if __name__ == "__main__":
    main()
