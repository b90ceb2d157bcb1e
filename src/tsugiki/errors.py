"""The user's errors: where, what must hold, what was given, what to do. Everything else that fails
is a bug of ours."""

from __future__ import annotations

import difflib
import errno
import re
import traceback
from collections.abc import Iterable

from tsugiki.words import Message, say

# What stands before a host (a user's name may be a token, too), in a query, after `Bearer`, and
# tokens of the Hub wherever they are.
_LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]+@")
_QUERY = re.compile(
    r"([?&](?:[\w.~-]|%[0-9a-f]{2})*"
    r"(?:token|sig|signature|secret|password|passwd|pwd|credential|key|auth|policy)=)"
    r"[^&#\s'\"<>]+?(?=[,.:;)]*(?:[&#\s'\"<>]|$))",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(bearer|basic)(\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")

# What the system says that a newcomer meets: errno → its key under [system].
SYSTEM_REASONS = {
    errno.ENOENT: "no_file",
    errno.EACCES: "no_permission",
    errno.ENOSPC: "disk_full",
    errno.EISDIR: "is_folder",
    errno.ENOTDIR: "no_folder",
    errno.EEXIST: "exists",
    errno.EROFS: "read_only",
}


def without_secrets(text: str) -> str:
    """A text without passwords and tokens, for all that is printed or kept: those in addresses
    (`https://user:password@host`, `?token=…`, `&sig=…`) and in headers, and tokens of the Hub. A
    message stays one."""
    if isinstance(text, Message):
        return text.changed(without_secrets)
    text = _LOGIN.sub("…@", text)
    text = _QUERY.sub(r"\1…", text)
    return _HUB_TOKEN.sub("hf_…", _BEARER.sub(r"\1\2…", text))


class TsugikiError(Exception):
    """A fault that the user can fix. The command line prints its one line and exits with code 2.

    What it says is free of secrets wherever it ends up: a terminal, a log, a report. What a
    newcomer meets is a `Message`, which the terminal says in its language.
    """

    def __str__(self) -> str:
        return str(self.message)

    @property
    def message(self) -> str:
        """What it says: in English as a string, as a `Message` where it is one."""
        given = self.args[0] if len(self.args) == 1 else super().__str__()
        return without_secrets(given if isinstance(given, str) else str(given))


class ConfigError(TsugikiError):
    """A setting, a study file or an option is wrong."""


class DataError(TsugikiError):
    """A task file, a data file or a row is wrong."""


class ModelError(TsugikiError):
    """A model folder, a tokenizer or an adapter is wrong."""


class RunError(TsugikiError):
    """A run cannot start, go on or be read."""


def first_line(broken: BaseException) -> str:
    """An error of a library in one line: its kind where it says nothing."""
    lines = [line.strip() for line in without_secrets(str(broken)).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(broken).__name__


def how_to_install(*libraries: str) -> str:
    """What to type for libraries that one feature alone needs. Their names and no extra of ours:
    that works from wherever tsugiki was installed."""
    return Message("error.install", libraries=" ".join(libraries))


def needs(what: object, library: str) -> str:
    """What to say where one feature's only library is not there."""
    install = how_to_install(library)
    return Message("error.needs", what=str(what), library=library, install=install)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean "jnli"? Known: …` for a misspelt name; just the known names when nothing is
    near."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    known_names = Message("error.known", names=", ".join(names))
    return Message("error.did_you_mean", name=close[0], known=known_names) if close else known_names


def reason_of(broken: BaseException) -> str:
    """Why something could not be done, in one line."""
    if isinstance(broken, TsugikiError):
        return broken.message
    if isinstance(broken, OSError):
        said = system_reason(broken)
        if not broken.filename:
            return without_secrets(said)
        return without_secrets(Message("error.at", where=str(broken.filename)[:200], reason=said))
    return f"{type(broken).__name__}: {first_line(broken)}"


def system_reason(broken: OSError) -> str:
    """What the system says, without the file's name."""
    said = str(broken.strerror or broken)
    known = SYSTEM_REASONS.get(broken.errno or 0)
    # What a program raises itself may have words of its own.
    return Message(f"system.{known}") if known and say("en", f"system.{known}") == said else said


def message_of(broken: BaseException) -> str:
    """The same for whoever watches: with its traceback where it is no error that we know, but
    perhaps a bug."""
    known = (
        isinstance(broken, (TsugikiError, OSError, MemoryError))
        or type(broken).__name__ == "OutOfMemoryError"
    )
    if known:
        return reason_of(broken)
    return without_secrets("".join(traceback.format_exception(broken)).rstrip())
