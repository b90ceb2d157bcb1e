"""The user's errors: where, what must hold, what was given, what to do. Everything else that fails
is a bug of ours."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable

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


def without_secrets(text: str) -> str:
    """A text without passwords and tokens, for all that is printed or kept: those in addresses
    (`https://user:password@host`, `?token=…`, `&sig=…`) and in headers, and tokens of the Hub."""
    text = _LOGIN.sub("…@", text)
    text = _QUERY.sub(r"\1…", text)
    return _HUB_TOKEN.sub("hf_…", _BEARER.sub(r"\1\2…", text))


class TsugikiError(Exception):
    """A fault that the user can fix. The command line prints its one line and exits with code 2.

    What it says is free of secrets wherever it ends up: a terminal, a log, a report.
    """

    def __str__(self) -> str:
        return without_secrets(super().__str__())


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
    return f"Run: pip install {' '.join(libraries)}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """` Did you mean "jnli"? Known: …` for a misspelt name; just the known names when nothing is
    near."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    hint = f' Did you mean "{close[0]}"?' if close else ""
    return f"{hint} Known: {', '.join(names)}"


def reason_of(broken: BaseException) -> str:
    """Why something could not be done, in one line."""
    if isinstance(broken, TsugikiError):
        return str(broken)
    if isinstance(broken, OSError):
        said = str(broken.strerror or broken)
        return without_secrets(f"{broken.filename}: {said}" if broken.filename else said)
    return f"{type(broken).__name__}: {first_line(broken)}"


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
