"""A titled table of text cells: Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table of text cells, with notes under it."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def to_markdown(self) -> str:
        lines = [
            "| " + " | ".join(_cell(one) for one in row) + " |" for row in (self.header, *self.rows)
        ]
        lines.insert(1, "|" + " --- |" * len(self.header))
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return f"### {self.title}\n\n" + "\n".join(lines) + "\n" + notes

    def to_latex(self) -> str:
        """A booktabs tabular; notes follow as comments."""
        return _as_latex(self)

    def to_csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()


LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "⏎": " ",
}


def _latex(text: str) -> str:
    """Special signs escaped; what no engine sets (control characters, bytes that are no text) as a
    box; a leading [ or * kept from `\\\\`."""
    escaped = "".join(
        LATEX.get(
            char, "□" if char == "\ufffd" or not (char.isprintable() or char == " ") else char
        )
        for char in text
    )
    return "{}" + escaped if escaped[:1] in ("[", "*") else escaped


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "⏎").replace("<", "&lt;")


def _as_latex(table: Table) -> str:
    lines = [" & ".join(_latex(one) for one in row) + r" \\" for row in table.rows]
    head = " & ".join(_latex(one) for one in table.header) + r" \\"
    body = "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(table.header)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
    notes = "\n".join(f"% {note}" for note in table.notes)
    return (
        f"% {table.title}; needs \\usepackage{{booktabs}} and a class for "
        f"Japanese\n{body}\n{notes}\n"
    )
