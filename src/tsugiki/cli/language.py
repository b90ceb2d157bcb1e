"""Which language a command speaks: `--lang`, else `TSUGIKI_LANG`, else that of the system.

Into a pipe or a file, and as JSON, it is English unless `--lang` says otherwise: what a program
reads must not depend on whose terminal it was started from.
"""

from __future__ import annotations

import locale
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Optional

import typer

from tsugiki.errors import ConfigError
from tsugiki.words import LANGUAGES, Language, Message

Lang = Annotated[
    Optional[str],
    typer.Option(
        "--lang",
        help="Language of what is printed: en or ja (default: TSUGIKI_LANG, else the system's; "
        "English into a pipe and as JSON).",
    ),
]


def language_of(given: str | None, as_json: bool = False) -> Language:
    """The language of what a command prints.

    Raises:
        ConfigError: `--lang` or `TSUGIKI_LANG` names no language that there is.
    """
    wanted = page_language(given)
    programs = as_json or not sys.stdout.isatty()
    return "en" if given is None and programs else wanted


def language_of_errors(arguments: Sequence[str]) -> Language:
    """The language of an error or a remark on standard error, which may come before a command has
    read its own options: from what was typed."""
    given = None
    for argument, following in pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        if name == "--lang":
            given = value if equals else following
    if given is None and not sys.stderr.isatty():
        return "en"
    try:
        return language_of(given, "--json" in arguments)
    except ConfigError:  # which is the very error
        return "en"


def page_language(given: str | None) -> Language:
    """The same for a page, which a person reads wherever the command writes to."""
    if given is not None:
        return _known(given, "--lang")
    if named := os.environ.get("TSUGIKI_LANG", ""):
        return _known(named, "TSUGIKI_LANG")
    return _of_the_system()


def _known(name: str, where: str) -> Language:
    for language in LANGUAGES:
        if name == language:
            return language
    raise ConfigError(Message("error.language", where=where, name=name))


def _of_the_system() -> Language:
    """The first of the variables that is set decides, as POSIX has it; Windows sets none."""
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    named = next((name for name in names if name), None)
    if named is None and sys.platform == "win32":
        named = locale.getlocale()[0]
    return "ja" if (named or "").lower().startswith("ja") else "en"
