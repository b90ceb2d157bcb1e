"""Running text that a model reads for its perplexity. No torch here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tsugiki.config.run import TextChoice
from tsugiki.data.rows import read_rows
from tsugiki.data.tasks import drawn
from tsugiki.data.text import as_text, refuse_broken
from tsugiki.errors import DataError
from tsugiki.words import Message

FIELDS = ("text", "content", "body")  # what a row's text is called, where nobody says


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Texts by the name of their file, and the sha256 of what is read of it."""

    name: str
    texts: tuple[str, ...]
    sha256: str


def read_documents(choice: TextChoice) -> Documents:
    """Reads a text file (documents apart by empty lines) or rows with a field of text.

    Raises:
        DataError: naming the file and the row of the first mistake.
    """
    path = Path(choice.text)
    if not path.is_file():
        said = Message("error.no_file", path=path)
        raise DataError(Message("error.at", where="forgetting", reason=said))
    texts = [text for text in (each.strip() for each in _texts(path, choice)) if text]
    if not texts:
        raise DataError(f"forgetting: {path}: holds no text")
    if choice.documents is not None:
        texts = drawn(texts, min(choice.documents, len(texts)))
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    return Documents(name=choice.label, texts=tuple(texts), sha256=digest)


def _texts(path: Path, choice: TextChoice) -> Iterator[str]:
    if path.suffix.lower() != ".txt":
        yield from _of_rows(path, choice.field)
        return
    if choice.field is not None:
        raise DataError(f'forgetting: {path}: field = "{choice.field}" is read of rows only')
    try:
        whole = path.read_text(encoding="utf-8-sig")
        refuse_broken(whole)
    except UnicodeDecodeError:
        raise DataError(f"forgetting: {path}: must be UTF-8. Save it as UTF-8") from None
    except (OSError, ValueError) as broken:
        raise DataError(f"forgetting: {path}: {broken}") from None
    yield from re.split(r"\n[ \t\r]*\n", whole)


def _of_rows(path: Path, field: str | None) -> Iterator[str]:
    for number, row in read_rows(path):
        name = field or next((each for each in FIELDS if each in row), None)
        if name is None or name not in row:
            known = ", ".join(map(str, row))
            raise DataError(
                f'forgetting: {path} row {number}: no field "{field or FIELDS[0]}". Name one with '
                f"field = …: {known}"
            )
        try:
            yield as_text(row[name])
        except ValueError as broken:
            raise DataError(f"forgetting: {path} row {number}: {name} {broken}") from None
