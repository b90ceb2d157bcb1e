"""Writes the table of README.md from results.json.

python benchmarks/interop/table.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MARKS = ("<!-- table: written by table.py -->", "<!-- end -->")


def line_of(entry: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in entry["versions"].items())
    way = "base, without the adapter" if entry["way"] == "base" else entry["way"]
    if entry["note"]:
        way += f" ({entry['note']})"
    cells = [
        entry["run"],
        entry["program"],
        way,
        f"{entry['equal']} of {entry['rows']}",
        versions,
        entry["cpu"],
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    entries = json.loads((HERE / "results.json").read_text("utf-8"))
    table = [
        "| run | program | way | equal answers | versions | CPU |",
        "|---|---|---|---|---|---|",
        *map(line_of, entries),
    ]
    readme = HERE / "README.md"
    text = readme.read_text("utf-8")
    between = re.compile(f"{MARKS[0]}.*?{MARKS[1]}", re.DOTALL)
    assert between.search(text), "README.md has lost the marks of its table"
    whole = "\n".join([MARKS[0], "", *table, "", MARKS[1]])
    readme.write_text(between.sub(lambda _: whole, text), "utf-8")


if __name__ == "__main__":
    main()
