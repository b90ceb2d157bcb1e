"""A titled table of typed cells: numbers stay numbers until a medium writes them. No torch here.

    Table of Columns and Cells → in_words(language) → Markdown, LaTeX, the page, the terminal
                               → to_csv()           → one column a number

A cell knows its text in each language, and its numbers. What models and users wrote is plain `str`
and never translated; our own words are `Said` in both languages.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tsugiki.words import Language, say

Kind = Literal["text", "number", "share", "score", "times", "memory"]
# What a column of a kind is called in CSV, after its key.
PARTS: dict[Kind, tuple[str, ...]] = {
    "text": ("",),
    "number": ("",),
    "share": ("", "_share"),
    "score": ("", "_low", "_high"),
    "times": ("_median", "_mean"),
    "memory": ("", "_reserved"),
}
Plain = float | int | str | None


class Cell(Protocol):
    """What stands in one place of a table."""

    def text(self, language: Language) -> str: ...

    def numbers(self) -> Sequence[Plain]: ...


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its key in CSV, what its cells are, its title among the words (`name`: a title of
    somebody else's, never translated). `report_only`: left out on a terminal."""

    key: str
    kind: Kind
    title_key: str
    report_only: bool = False
    name: str = ""

    def title(self, language: Language) -> str:
        return self.name or say(language, self.title_key)


def column(key: str, kind: Kind, title_key: str, *, report_only: bool = False) -> Column:
    """A column whose titles stand under that key of the words."""
    return Column(key=key, kind=kind, title_key=title_key, report_only=report_only)


@dataclass(frozen=True, kw_only=True)
class Said:
    """Our own words, in both languages."""

    en: str
    ja: str

    def text(self, language: Language) -> str:
        return self.ja if language == "ja" else self.en

    def numbers(self) -> Sequence[Plain]:
        return ()


def said(make: Callable[[Language], str]) -> Said:
    """What a function says in each language."""
    return Said(en=make("en"), ja=make("ja"))


def phrase(key: str, /, **values: object) -> Said:
    """A text of the words, with its values filled in."""
    return said(lambda language: say(language, key, **values))


def lines(make: Callable[[Language], Sequence[str]]) -> tuple[Said, ...]:
    """Lines that a function says in each language, one for one."""
    pairs = zip(make("en"), make("ja"), strict=True)
    return tuple(Said(en=english, ja=japanese) for english, japanese in pairs)


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number, in a form of Python's `format`, with words after it."""

    value: float
    form: str = ".3f"
    tail: str = ""

    def text(self, language: Language) -> str:
        return format(self.value, self.form) + self.tail

    def numbers(self) -> Sequence[Plain]:
        return (self.value,)


@dataclass(frozen=True, kw_only=True)
class Share:
    """So many of so many."""

    count: int
    of: int

    def text(self, language: Language) -> str:
        return f"{self.count} ({self.count / self.of:.0%})"

    def numbers(self) -> Sequence[Plain]:
        return (self.count, self.count / self.of)


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """A score (or a difference) with its interval, if it has one, as a text says it."""

    value: float
    low: float | None = None
    high: float | None = None
    words: Said

    def text(self, language: Language) -> str:
        return self.words.text(language)

    def numbers(self) -> Sequence[Plain]:
        return (self.value, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Two:
    """Two numbers of one thing (median and mean; allocated and reserved), as a text says them."""

    first: float | None
    second: float | None
    words: Said

    def text(self, language: Language) -> str:
        return self.words.text(language)

    def numbers(self) -> Sequence[Plain]:
        return (self.first, self.second)


Content = Cell | str | int | None
"""A cell; plain text as it is; a count; None for what is not there (“-”)."""


def _text(content: Content, language: Language) -> str:
    if content is None:
        return "-"
    return str(content) if isinstance(content, (str, int)) else content.text(language)


@dataclass(frozen=True, kw_only=True)
class InWords:
    """A table in one language, all text."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    strong: frozenset[tuple[int, int]] = frozenset()

    def to_markdown(self) -> str:
        rows = [
            "| " + " | ".join(self._shown(index, row)) + " |" for index, row in enumerate(self.rows)
        ]
        head = "| " + " | ".join(map(markdown, self.header)) + " |"
        rule = "|" + " --- |" * len(self.header)
        notes = "".join(f"\n{markdown(note)}\n" for note in self.notes)
        return f"### {markdown(self.title)}\n\n" + "\n".join([head, rule, *rows]) + "\n" + notes

    def _shown(self, index: int, row: Sequence[str]) -> list[str]:
        return [
            f"**{markdown(cell)}**" if (index, column) in self.strong else markdown(cell)
            for column, cell in enumerate(row)
        ]


# What Markdown would read as more than text: marks of emphasis and code, ends of links, starts of
# lines; an underscore within a word is none.
MARKS = re.compile(r"[\\|`*]|(?<!\w)_|_(?!\w)|\](?=[(:\[])|^\s*[#>+-](?=\s)")


def markdown(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    escaped = MARKS.sub(lambda sign: f"\\{sign.group()}", text.replace("\r", "\n"))
    return escaped.replace("<", "&lt;").replace("\n", "⏎")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A titled table, with notes under it; `strong`: (row, column) of what is set in bold."""

    name: str
    title: Said
    columns: tuple[Column, ...]
    rows: tuple[tuple[Content, ...], ...]
    notes: tuple[Said, ...] = ()
    strong: frozenset[tuple[int, int]] = frozenset()

    def in_words(self, language: Language) -> InWords:
        """Every cell as text."""
        rows = tuple(tuple(visible(_text(cell, language)) for cell in row) for row in self.rows)
        return InWords(
            name=self.name,
            title=visible(self.title.text(language)),
            header=tuple(visible(column.title(language)) for column in self.columns),
            rows=rows,
            notes=tuple(visible(note.text(language)) for note in self.notes),
            strong=self.strong,
        )

    def to_csv(self) -> str:
        """One column for each number, named by keys; words that stand where a number would are in
        the last column, `note`."""
        header = [column.key + part for column in self.columns for part in PARTS[column.kind]]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        rows = [self._plain(row) for row in self.rows]
        noted = any(row[-1] for row in rows)
        writer.writerow([*header, "note"] if noted else header)
        writer.writerows(rows if noted else [row[:-1] for row in rows])
        return text.getvalue()

    def _plain(self, row: Sequence[Content]) -> list[Plain]:
        cells, notes = list[Plain](), list[str]()
        for column, content in zip(self.columns, row, strict=True):
            width = len(PARTS[column.kind])
            if column.kind == "text":
                cells.append(spreadsheet(_text(content, "en")) if content is not None else "")
                continue
            numbers = numbers_of(content)
            words = _text(content, "en")
            if not numbers and not words.startswith("-"):
                notes.append(f"{column.key}: {words}")
            cells += [*numbers, *[None] * (width - len(numbers))]
        return [*cells, spreadsheet("; ".join(notes))]


def spreadsheet(text: str) -> str:
    """A text that no spreadsheet runs as a formula: one that starts like one gets a `'` before it
    (OWASP, "CSV Injection")."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and text != "-" else text


def visible(text: str) -> str:
    """Without what steers a terminal or turns the reading direction (control characters, bidi
    overrides), whoever wrote it; line ends stay."""
    return "".join("□" if _steers(char) else char for char in text)


def _steers(char: str) -> bool:
    bidi = "\u202a" <= char <= "\u202e" or "\u2066" <= char <= "\u2069"
    return bidi or (unicodedata.category(char) == "Cc" and char not in "\n\r\t")


def numbers_of(content: Content) -> Sequence[Plain]:
    """The numbers of a cell; none of words."""
    if isinstance(content, int):
        return (content,)
    return () if content is None or isinstance(content, str) else content.numbers()
