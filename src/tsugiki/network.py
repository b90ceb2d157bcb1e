"""Whether the network may be used, and how one file comes over it: streamed, held to its announced
length, to limits of size and of silence, and to an average rate, so that it ends within a time that
follows from its size."""

from __future__ import annotations

import base64
import http.client
import os
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from tsugiki.errors import DataError
from tsugiki.files import umask
from tsugiki.words import Message

SILENT_S = 60.0  # seconds without a byte, after which a download is given up
GRACE_S = 60.0  # of slow bytes, before a rate is asked for
SLOWEST = 8 * 2**10  # bytes a second on average; a mobile line that is throttled does 16 KiB
GIB = 2**30
CHUNK = 2**20
OFFLINE = ("TSUGIKI_OFFLINE", "HF_HUB_OFFLINE")
NO = ("", "0", "false", "no", "off")
LIMIT = "TSUGIKI_DOWNLOAD_GIB"
DEFAULT_LIMIT_GIB = 2.0
PAGE_HEADS = (b"<!doctype html", b"<html")


def offline() -> str | None:
    """The variable that forbids the network, if one does; `0`, `false`, `no`, `off` and nothing
    forbid nothing."""
    for name in OFFLINE:
        if os.environ.get(name, "").strip().lower() not in NO:
            return name
    return None


def is_page(path: Path) -> bool:
    """Whether a file begins as an HTML page does: what a login page or a proxy's error sends with
    status 200 instead of data."""
    with path.open("rb") as file:
        head = file.read(512)
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(PAGE_HEADS)


def most_bytes() -> int:
    """How large a file may be that is fetched by its address: `TSUGIKI_DOWNLOAD_GIB`, else 2."""
    given = os.environ.get(LIMIT, "")
    try:
        limit = float(given) if given else DEFAULT_LIMIT_GIB
    except ValueError:
        limit = 0.0
    if not 0 < limit < 1e6:
        raise DataError(f"{LIMIT}={given}: must be a number of GiB above 0")
    return int(limit * GIB)


def download(url: str, folder: Path) -> Path:
    """Fetches a file into `folder` under a temporary name; whoever asked for it looks at it, and
    renames or removes it.

    Raises:
        DataError: it cannot be fetched, is too large, broke off, is silent for too long or too
            slow all the while, or is a web page. Nothing of it stays.
    """
    most, kept = most_bytes(), False
    handle, name = _draft(folder)
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _stream(url, file.fileno(), most)
        if is_page(path):
            raise DataError(Message("error.page_came", url=url))
        os.chmod(path, 0o666 & ~umask())
        kept = True
    finally:
        if not kept:
            path.unlink(missing_ok=True)
    return path


def _draft(folder: Path) -> tuple[int, str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(dir=folder, prefix=".download.")
    except OSError as broken:
        raise DataError(f"{folder}: cannot be written: {broken.strerror}") from None


def _stream(url: str, file: int, most: int) -> None:
    done, start = 0, time.monotonic()
    try:
        with urllib.request.urlopen(_request(url), timeout=SILENT_S) as answer:
            announced = answer.headers.get("Content-Length", "")
            promised = int(announced) if announced.isdecimal() else None
            if promised is not None and promised > most:
                raise _too_large(url, promised, most)
            while block := answer.read1(CHUNK):
                done += len(block)
                if done > most:
                    raise _too_large(url, done, most)
                _write(file, block, url)
                _refuse_slow(url, done, time.monotonic() - start)
    except http.client.IncompleteRead:  # of a body in chunks, whose length nobody announced
        promised = -1
    except TimeoutError:
        raise DataError(Message("error.silent", url=url, seconds=SILENT_S, done=done)) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as broken:
        raise DataError(Message("error.not_fetched", url=url, reason=broken)) from None
    if promised is not None and promised != done:
        raise DataError(Message("error.broke_off", url=url, done=done))


def _request(url: str) -> urllib.request.Request:
    """An address with a login is asked for as browsers do: without it, and with the header. (urllib
    would take `password@host` for a port, and say it.)"""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return urllib.request.Request(url)
    encoded = base64.b64encode(unquote(login).encode()).decode()
    bare = urlunsplit(parts._replace(netloc=host))
    return urllib.request.Request(bare, headers={"Authorization": f"Basic {encoded}"})


def _write(file: int, block: bytes, url: str) -> None:
    try:
        rest = memoryview(block)
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError as broken:
        raise DataError(
            f"{url}: cannot be kept: {broken.strerror}. Free some space, or name another folder "
            "with TSUGIKI_CACHE"
        ) from None


def _refuse_slow(url: str, done: int, passed_s: float) -> None:
    """What drips is never silent. A file of so many bytes takes `GRACE_S` + bytes / `SLOWEST`
    seconds at most."""
    if done < SLOWEST * (passed_s - GRACE_S):
        raise DataError(
            f"{url}: too slow: {done:,} bytes came in {passed_s:,.0f} s, and {SLOWEST:,} a second "
            "are asked for. Nothing was kept. Run again when the server or the line is faster, or "
            "fetch the file by other means, put it into a folder and name that with data_dir"
        )


def _too_large(url: str, size: int, most: int) -> DataError:
    return DataError(
        f"{url}: {size / GIB:,.2f} GiB or more; at most {most / GIB:,.2f} GiB are fetched. "
        f"{LIMIT} sets the limit"
    )
