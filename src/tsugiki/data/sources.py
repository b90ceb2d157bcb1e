"""Brings one data file to this machine and proves that it is the file that was meant.

A pinned URL is fetched once into the cache and held to its git blob id; a Hub file without a
published checksum is held to the one recorded at its first download. With the file in the cache no
network is touched.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsugiki.config.task import FileSpec
from tsugiki.errors import DataError, first_line, how_to_install
from tsugiki.files import file_name, offline_by, sha256_of, write_atomically

TIMEOUT_S = 60.0


def cache_dir() -> Path:
    """`TSUGIKI_CACHE`, else `~/.cache/tsugiki`."""
    return Path(os.environ.get("TSUGIKI_CACHE") or Path.home() / ".cache" / "tsugiki")


def git_blob_id(content: bytes) -> str:
    """The id git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def verify(path: Path, spec: FileSpec) -> None:
    """Raises `DataError` when the content is not the pinned one."""
    if spec.git_blob and (got := git_blob_id(path.read_bytes())) != spec.git_blob:
        raise DataError(
            f"{path}: git blob id must be {spec.git_blob}, is {got}: another version, or damaged. "
            "Delete it and run again"
        )
    if spec.sha256 and (got := sha256_of(path)) != spec.sha256:
        raise DataError(
            f"{path}: sha256 must be {spec.sha256}, is {got}: another version, or damaged. Delete "
            "it and run again"
        )


def locate(spec: FileSpec, folder: Path, data_dir: Path | None) -> Path:
    """The verified local file. Order: `data_dir`, the task file's folder, the cache, the
    network."""
    if spec.path:
        for root in [data_dir] if data_dir else [folder]:
            path = root / spec.path
            if path.exists():
                verify(path, spec)
                return path
            if not (spec.url or spec.hub):
                raise DataError(
                    f"{path}: no such file. Put it there, or name its folder with data_dir"
                )
    if spec.url:
        return _fetch_url(spec)
    return _fetch_hub(spec)


def at_hand(spec: FileSpec, folder: Path, data_dir: Path | None) -> bool:
    """Whether `locate` would find the file without a network (a copy of the Hub's cache counts as
    not at hand)."""
    beside = bool(spec.path) and ((data_dir or folder) / str(spec.path)).exists()
    return beside or (bool(spec.url) and _cached(spec).exists())


def _cached(spec: FileSpec) -> Path:
    assert spec.url
    name = spec.git_blob or spec.sha256 or hashlib.sha256(spec.url.encode()).hexdigest()
    return cache_dir() / "files" / file_name(f"{name[:16]}-{spec.url.rsplit('/', 1)[-1]}")


def _fetch_url(spec: FileSpec) -> Path:
    assert spec.url
    path = _cached(spec)
    if path.exists():
        verify(path, spec)
        return path
    _refuse_offline(spec.url)
    try:
        with urllib.request.urlopen(spec.url, timeout=TIMEOUT_S) as answer:
            content = answer.read()
    except http.client.IncompleteRead as broken:
        raise DataError(
            f"{spec.url}: the download broke off after {len(broken.partial)} bytes. Run again"
        ) from None
    except (urllib.error.URLError, OSError) as broken:
        raise DataError(
            f"{spec.url}: cannot be fetched: {broken}. Check the network, or put a copy there and "
            "name its folder with data_dir"
        ) from None
    if spec.git_blob and (got := git_blob_id(content)) != spec.git_blob:
        raise DataError(
            f"{spec.url}: git blob id must be {spec.git_blob}, what came is {got}. Nothing was kept"
        )
    if spec.sha256 and (got := hashlib.sha256(content).hexdigest()) != spec.sha256:
        raise DataError(
            f"{spec.url}: sha256 must be {spec.sha256}, what came is {got}. Nothing was kept"
        )
    write_atomically(path, content)
    return path


def _refuse_offline(what: str) -> None:
    if offline_by():
        raise DataError(
            f"{what}: not in the cache ({cache_dir()}), and {offline_by()} is set. Run once with a "
            "network"
        )


def _fetch_hub(spec: FileSpec) -> Path:
    """A file of a Hub dataset. Its sha256 is recorded at the first download and held to ever
    after."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert spec.hub
    assert spec.hub_file
    what = f"{spec.hub}@{spec.hub_revision}/{spec.hub_file}"
    try:
        got = hf_hub_download(
            spec.hub,
            spec.hub_file,
            repo_type="dataset",
            revision=spec.hub_revision,
            cache_dir=cache_dir() / "hub",
            local_files_only=bool(offline_by()),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as broken:
        raise DataError(
            f"{what}: cannot be had from the Hub: {str(broken).splitlines()[0]}"
        ) from None
    path = Path(got)
    pin = cache_dir() / "pins" / (hashlib.sha256(what.encode()).hexdigest()[:24] + ".json")
    digest = sha256_of(path)
    if not pin.exists():
        write_atomically(pin, json.dumps({"file": what, "sha256": digest}).encode())
    elif (kept := json.loads(pin.read_text(encoding="utf-8"))["sha256"]) != digest:
        raise DataError(
            f"{what}: sha256 was {kept} at the first download and is {digest} now. To accept the "
            f"change delete {pin}"
        )
    verify(path, spec)
    return path


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, row) of a JSON (one object a line, or one array), CSV or Parquet file;
    the format follows from the file's ending."""
    ending = path.suffix.lower()
    if ending == ".parquet":
        yield from _read_parquet(path)
    elif ending == ".csv":
        yield from _read_csv(path)
    elif ending in (".jsonl", ".json"):
        yield from _read_json(path)
    else:
        raise DataError(f'{path}: unknown ending "{ending}". Known: .jsonl, .json, .csv, .parquet')


def _read_json(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One object a line, or one array of objects: which of them is seen by the first sign."""
    with path.open("rb") as file:
        first = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        file.seek(0)
        if first == b"[":
            rows = _parsed(file.read(), str(path), codec="utf-8-sig")
            if not isinstance(rows, list):
                raise DataError(f"{path}: must be one JSON array of objects, or one object a line")
            for number, row in enumerate(rows, 1):
                yield number, _object(row, f"{path} row {number}")
            return
        number = 0
        for line in file:
            if line.strip():
                number += 1
                where = f"{path} row {number}"
                yield (
                    number,
                    _object(
                        _parsed(line, where, codec="utf-8-sig" if number == 1 else "utf-8"), where
                    ),
                )


def row_of_line(line: bytes, where: str) -> dict[str, Any]:
    """One JSON object. Raises `DataError` for anything else."""
    return _object(_parsed(line, where, codec="utf-8-sig"), where)


def _parsed(content: bytes, where: str, codec: str) -> Any:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) < len(items):
            names = [name for name, _ in items]
            raise DataError(
                f'{where}: the key "{next(name for name in names if names.count(name) > 1)}" '
                "stands there twice"
            )
        return made

    try:
        return json.loads(content.decode(codec), object_pairs_hook=pairs)
    except RecursionError:
        raise DataError(f"{where}: nested too deeply to be a row of text") from None
    except (ValueError, UnicodeDecodeError) as broken:
        raise DataError(
            f"{where}: not a JSON object in UTF-8: {broken}. Known: one object a line, or one "
            "array of objects"
        ) from None


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, is {type(row).__name__}")
    return row


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Of the whole process; Python's own limit is 131,072 characters, which articles exceed.
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = list(reader.fieldnames or [])
            if len(names) == 1 and "\t" in names[0]:
                raise DataError(f"{path}: its columns are separated by tabs; save it with commas")
            _refuse_equal_columns(path, names)
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    count = sum(
                        value is not None for key, value in row.items() if key is not None
                    ) + len(row.get(None) or [])
                    head = f"{path} row {number} (line {reader.line_num})"
                    raise DataError(
                        f"{head}: {len(names)} columns expected, as in the header, {count} found. "
                        "A text with commas needs double quotes"
                    )
                yield number, dict(row)
    except UnicodeDecodeError:
        raise DataError(f"{path}: must be UTF-8. In Excel choose “CSV UTF-8” when saving") from None
    except csv.Error as broken:
        raise DataError(f"{path}: not valid CSV: {broken}") from None


def _refuse_equal_columns(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f'{path}: two columns are called "{twice[0]}". Rename one: only the last would be read'
        )


def arrow_for(path: Path) -> Any:
    """The module `pyarrow` with its `parquet`. Raises `DataError` where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow. {how_to_install('pyarrow')}") from None
    return pyarrow


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    arrow, number = arrow_for(path), 0
    try:
        file = arrow.parquet.ParquetFile(path)
        _refuse_equal_columns(path, list(file.schema_arrow.names))
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as broken:
        raise DataError(
            f"{path}: damaged or cut short, or no Parquet file: {first_line(broken)}"
        ) from None
