"""Rows of one data file, as a mapping each: JSON, CSV and TSV (also as Excel for Japan saves them),
Parquet and Arrow; text also packed by gzip."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from tsugiki.errors import DataError, first_line, needs
from tsugiki.words import Message

Rows = Iterator[tuple[int, dict[str, Any]]]
TEXT = (".jsonl", ".json", ".csv", ".tsv")
TABLES = (".parquet", ".arrow", ".feather")
KNOWN = ", ".join((*TEXT, *TABLES))
# A packed file that is larger than this is taken for one that was made to fill the memory.
MOST_UNPACKED = 16 * 2**30
CHUNK = 1 << 20
BEYOND_ASCII = re.compile("[^\0-\x7f]")
HALF_WIDTH = re.compile("[｡-ﾟ]")  # katakana: what EUC-JP looks like when it is read as CP932
UNUSED = re.compile("[\x80-\xa0\uf8f0-\uf8ff]")  # Python's CP932 of bytes that stand for nothing


def read_rows(path: Path, encoding: str | None = None) -> Rows:
    """(row number from 1, row) of a data file; the format follows from the file's ending, a last
    `.gz` apart. `encoding` is that of CSV and JSON (default: `encoding_of`, UTF-8)."""
    ending = data_ending(path)
    if ending == ".parquet":
        yield from _read_parquet(path)
    elif ending in TABLES:
        yield from _read_arrow(path)
    elif ending in (".csv", ".tsv"):
        yield from _read_csv(path, encoding or encoding_of(path), tabs=ending == ".tsv")
    elif ending in TEXT:
        yield from _read_json(path, encoding or "utf-8")
    else:
        raise DataError(Message("error.unknown_ending", path=path, ending=ending, known=KNOWN))


def data_ending(path: Path) -> str:
    """`.csv` of `a.csv` and of `a.CSV.gz`."""
    name = Path(path.stem) if path.suffix.lower() == ".gz" else path
    return name.suffix.lower()


def is_data(path: Path) -> bool:
    """Whether the ending is one that `read_rows` knows."""
    return data_ending(path) in (*TEXT, *TABLES)


def encoding_of(path: Path) -> str:
    """The encoding of a CSV file: UTF-8 or UTF-16 with a mark, UTF-8, or CP932, which Excel for
    Japan saves.

    Raises:
        DataError: it is none of these, or CP932 would make of it what nobody writes.
    """
    with _opened(path) as file:
        head = file.read(4)
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if _is_utf_8(path):
        return "utf-8"
    if not _is_cp932(path):
        raise DataError(Message("error.encoding", path=path))
    return "cp932"


def found_encoding(path: Path) -> tuple[str | None, list[str]]:
    """The encoding of a file that nobody named one for (None where there is nothing to find), and
    what to say of it."""
    if data_ending(path) not in (".csv", ".tsv"):
        return None, []
    encoding = encoding_of(path)
    return encoding, [Message("note.not_utf8", file=path.name)] if encoding == "cp932" else []


def _is_utf_8(path: Path) -> bool:
    try:
        for _ in _texts(path, "utf-8"):
            pass
    except UnicodeDecodeError:
        return False
    return True


def _is_cp932(path: Path) -> bool:
    """Whether the bytes are CP932, and not mostly half-width katakana."""
    beyond = half = 0
    try:
        for text in _texts(path, "cp932"):
            if UNUSED.search(text):
                return False
            beyond += len(BEYOND_ASCII.findall(text))
            half += len(HALF_WIDTH.findall(text))
    except UnicodeDecodeError:
        return False
    return 4 * half <= beyond


def _texts(path: Path, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    with _opened(path) as file:
        while chunk := file.read(CHUNK):
            yield decoder.decode(chunk)
        decoder.decode(b"", final=True)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked."""
    if path.suffix.lower() != ".gz":
        with path.open("rb") as file:
            yield file
        return
    try:
        with gzip.open(path, "rb") as packed:
            yield cast("BinaryIO", io.BufferedReader(_Bounded(path, packed)))
    except (gzip.BadGzipFile, EOFError, zlib.error) as broken:
        said = first_line(broken)
        raise DataError(Message("error.damaged_gzip", path=path, reason=said)) from None


class _Bounded(io.RawIOBase):
    """Refuses to unpack without end."""

    def __init__(self, path: Path, packed: Any):
        self.path, self.packed, self.count = path, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        got = self.packed.read(len(buffer))
        self.count += len(got)
        if self.count > MOST_UNPACKED:
            raise DataError(
                f"{self.path}: unpacks to more than {MOST_UNPACKED / 2**30:g} GiB. Unpack it "
                "yourself if it is meant"
            )
        buffer[: len(got)] = got
        return len(got)


def _read_json(path: Path, encoding: str) -> Rows:
    """One object a line, or one array of objects: which of them is seen by the first sign."""
    first_codec = "utf-8-sig" if encoding == "utf-8" else encoding
    if _first_sign(path, first_codec) == "[":
        with _opened(path) as file:
            rows = _parsed(file.read(), str(path), codec=first_codec)
        if not isinstance(rows, list):
            raise DataError(Message("error.json_array", path=path))
        for number, row in enumerate(rows, 1):
            yield number, _object(row, f"{path} row {number}")
        return
    with _opened(path) as file:
        number = 0
        for line in file:
            if line.strip():
                number += 1
                where = f"{path} row {number}"
                codec = first_codec if number == 1 else encoding
                yield number, _object(_parsed(line, where, codec=codec), where)


def _first_sign(path: Path, codec: str) -> str:
    with _opened(path) as file:
        return file.read(64).decode(codec, errors="ignore").lstrip()[:1]


def row_of_line(line: bytes, where: str) -> dict[str, Any]:
    """One JSON object. Raises `DataError` for anything else."""
    return _object(_parsed(line, where, codec="utf-8-sig"), where)


def _parsed(content: bytes, where: str, codec: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(Message("error.key_twice", where=where, key=twice))
        return made

    try:
        return json.loads(content.decode(codec), object_pairs_hook=pairs)
    except RecursionError:
        raise DataError(f"{where}: nested too deeply to be a row of text") from None
    except (ValueError, UnicodeDecodeError) as broken:
        written = "UTF-8" if codec.startswith("utf-8") else codec
        raise DataError(
            Message("error.not_json", where=where, encoding=written, reason=broken)
        ) from None


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(Message("error.not_object", where=where, kind=type(row).__name__))
    return row


def _read_csv(path: Path, encoding: str, *, tabs: bool) -> Rows:
    # Of the whole process; Python's own limit is 131,072 characters, which articles exceed.
    csv.field_size_limit(2**31 - 1)
    codec = "utf-8-sig" if encoding == "utf-8" else encoding
    try:
        with _opened(path) as file:
            text = io.TextIOWrapper(file, encoding=codec, newline="")
            head = text.readline()
            # Excel's “Unicode text” and a pasted table have tabs under any ending.
            tabs = tabs or ("\t" in head and "," not in head)
            reader = csv.reader(_again(head, text), strict=True, delimiter="\t" if tabs else ",")
            names = next(reader, [])
            _refuse_equal_columns(path, [name for name in names if name.strip()])
            number = 0
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue  # a spreadsheet saves rows that were emptied
                number += 1
                yield number, _row(f"{path} row {number} (line {reader.line_num})", names, cells)
    except (UnicodeDecodeError, LookupError) as broken:
        said = first_line(broken)
        raise DataError(
            Message("error.not_in_encoding", path=path, encoding=encoding, reason=said)
        ) from None
    except csv.Error as broken:
        raise DataError(Message("error.not_csv", path=path, reason=broken)) from None


def _again(head: str, rest: Iterator[str]) -> Iterator[str]:
    yield head
    yield from rest


def _row(where: str, names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """A row by its columns' names. Columns without a name are a spreadsheet's empty ones."""
    if len(cells) != len(names):
        raise DataError(Message("error.cells", where=where, names=len(names), cells=len(cells)))
    pairs = list(zip(names, cells, strict=True))
    for at, (name, cell) in enumerate(pairs, 1):
        if not name.strip() and cell.strip():
            raise DataError(Message("error.unnamed_column", where=where, number=at))
    return {name: cell for name, cell in pairs if name.strip()}


def _refuse_equal_columns(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(Message("error.equal_columns", path=path, name=twice[0]))


def arrow_for(path: Path) -> Any:
    """The module `pyarrow` with its `parquet`. Raises `DataError` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError(needs(path, "pyarrow")) from None
    return pyarrow


def _read_parquet(path: Path) -> Rows:
    arrow = arrow_for(path)
    with _named(path, arrow, "Parquet"):
        file = arrow.parquet.ParquetFile(path)
        _refuse_equal_columns(path, list(file.schema_arrow.names))
        yield from _numbered(file.iter_batches())


def _read_arrow(path: Path) -> Rows:
    """An Arrow file, or the stream that `datasets` keeps."""
    arrow = arrow_for(path)
    with _named(path, arrow, "Arrow"), arrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = (arrow.ipc.open_file if is_file else arrow.ipc.open_stream)(source)
        _refuse_equal_columns(path, list(reader.schema.names))
        numbers = range(reader.num_record_batches) if is_file else ()
        yield from _numbered(map(reader.get_batch, numbers) if is_file else reader)


@contextmanager
def _named(path: Path, arrow: Any, kind: str) -> Iterator[None]:
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as broken:
        said = first_line(broken)
        raise DataError(Message("error.damaged_table", path=path, kind=kind, reason=said)) from None


def _numbered(batches: Iterable[Any]) -> Rows:
    yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
