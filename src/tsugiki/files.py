"""Files and folders: written whole or not at all, known by their content. Used by all who write."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsugiki.errors import DataError, system_reason, without_secrets
from tsugiki.words import Message

ABSOLUTE = re.compile(r"(?<![\w./~:…-])(?:/|[A-Za-z]:[\\/])(?:[^\s'\"/\\,;=]+[\\/])+")


NOT_IN_NAMES = re.compile(r'[<>:"/\\|?*]')  # by Windows, and the slash by all


def file_name(text: str) -> str:
    """A text as the name of a file or folder that every system takes."""
    return NOT_IN_NAMES.sub("_", text)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside the target and renames: a reader sees the old file or the new one, never a
    half."""
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A temporary file is its owner's alone; a report is meant to be read.
        os.chmod(name, 0o666 & ~umask())
        os.replace(name, path)
    except OSError as broken:
        if name is not None:
            Path(name).unlink(missing_ok=True)
        said = system_reason(broken)
        raise DataError(Message("error.not_written", path=path, reason=said)) from None


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A hidden draft beside `final`, which becomes it when the block ends well.

    A folder that stands there is taken away first. After an error nothing of the draft stays; after
    a kill a hidden folder may, which the next draft of this process number removes.
    """
    draft = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
        if final.exists():
            remove_folder(final)
        os.replace(draft, final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Takes a folder out of sight in one move, then deletes its files: a kill in between leaves no
    folder that looks whole."""
    hidden = path
    if not path.name.startswith("."):
        hidden = path.with_name(f".{path.name}.gone.{os.getpid()}")
        os.replace(path, hidden)
    shutil.rmtree(hidden)


def umask() -> int:
    """The process's file mode mask; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def without_folders(text: str) -> str:
    """A text with only the last part of each absolute path, and without secrets: what is passed
    on."""
    return ABSOLUTE.sub("…/", without_secrets(text))
