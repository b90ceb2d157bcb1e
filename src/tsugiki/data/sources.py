"""Brings one data file to this machine and proves that it is the file that was meant.

A pinned URL is fetched once into the cache and held to its git blob id; a Hub file without a
published checksum is held to the one recorded at its first download. With the file in the cache no
network is touched.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from tsugiki.config.task import FileSpec
from tsugiki.errors import DataError, first_line
from tsugiki.files import file_name, sha256_of, write_atomically
from tsugiki.network import download, is_page, offline
from tsugiki.words import Message


def cache_dir() -> Path:
    """`TSUGIKI_CACHE`, else `~/.cache/tsugiki`."""
    return Path(os.environ.get("TSUGIKI_CACHE") or Path.home() / ".cache" / "tsugiki")


def git_blob_id(content: bytes) -> str:
    """The id git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def git_blob_of(path: Path) -> str:
    """The same of a file, however large."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def other_content(path: Path, spec: FileSpec) -> str | None:
    """How a file's content differs from the pinned one; None where it does not."""
    if spec.git_blob and (got := git_blob_of(path)) != spec.git_blob:
        return f"git blob id must be {spec.git_blob}, is {got}"
    if spec.sha256 and (got := sha256_of(path)) != spec.sha256:
        return f"sha256 must be {spec.sha256}, is {got}"
    return None


def verify(path: Path, spec: FileSpec) -> None:
    """Raises `DataError` when the content is not the pinned one."""
    other = other_content(path, spec)
    if other and is_page(path):
        _refuse_page(path)
    if other:
        raise DataError(Message("error.other_content", path=path, difference=other))


def _refuse_page(path: Path) -> None:
    raise DataError(Message("error.page_kept", path=path))


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
                raise DataError(Message("error.no_data_file", path=path))
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
        if is_page(path):
            _refuse_page(path)
        return path
    _refuse_offline(spec.url)
    draft = download(spec.url, path.parent)
    if other := other_content(draft, spec):
        draft.unlink()
        raise DataError(f"{spec.url}: {other} of what came. Nothing was kept")
    os.replace(draft, path)
    return path


def _refuse_offline(what: str) -> None:
    if named := offline():
        where = {"folder": cache_dir(), "name": named}
        raise DataError(Message("error.data_offline", what=what, **where))


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
            local_files_only=offline() is not None,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as broken:
        said = first_line(broken)
        raise DataError(Message("error.data_hub", what=what, reason=said)) from None
    path = Path(got)
    if is_page(path):
        _refuse_page(path)
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
