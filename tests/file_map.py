"""The map of the files: one line a module, from its own docstring.

python -m tests.file_map      writes it into docs/how-it-works.md
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE, START, END = ROOT / "docs" / "how-it-works.md", "<!-- map -->\n", "<!-- end of map -->"
ROOMS = ("", "config", "data", "model", "fast", "train", "score", "runs", "study", "report")
ROOMS += ("trackers", "cli")


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    said = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    return re.split(r"(?<=[^.]\.)\s", said)[0].rstrip(".:")


def file_map() -> str:
    """Every module of the package, room by room in the order of the layers."""
    package, lines = ROOT / "src" / "tsugiki", list[str]()
    for room in ROOMS:
        files = sorted((package / room).glob("*.py"))
        lines.append(f"\n**{room or 'the ground'}/**\n" if room else "**the ground**\n")
        for path in files:
            if not path.name.startswith("__"):
                lines.append(f"- `{path.relative_to(package).as_posix()}` {first_sentence(path)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{START}{file_map()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
