"""A table as a booktabs tabular. No torch here."""

from __future__ import annotations

from tsugiki.report.table import InWords

SIGNS = {
    "\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "⏎": " ",
}  # fmt: skip


def to_latex(table: InWords) -> str:
    """A booktabs tabular; notes follow as comments."""
    rows = [" & ".join(map(_escaped, row)) + r" \\" for row in table.rows]
    head = " & ".join(map(_escaped, table.header)) + r" \\"
    body = "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(table.header)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
    notes = "\n".join(f"% {note}" for note in table.notes)
    needs = r"needs \usepackage{booktabs} and a class for Japanese"
    return f"% {table.title}; {needs}\n{body}\n{notes}\n"


def _escaped(text: str) -> str:
    """Special signs escaped; what no engine sets (control characters, bytes that are no text) as a
    box; a leading [ or * kept from `\\\\`."""
    escaped = "".join(SIGNS.get(char, char if _can_be_set(char) else "□") for char in text)
    return "{}" + escaped if escaped[:1] in ("[", "*") else escaped


def _can_be_set(char: str) -> bool:
    return char != "\ufffd" and (char.isprintable() or char == " ")
