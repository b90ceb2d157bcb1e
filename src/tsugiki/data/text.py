"""What counts as text: a value of a data file becomes the words that a model reads, or is refused
by name.

A missing value that pandas wrote as NaN would be trained as the word “nan”, a list as its Python
spelling, half an emoji as nothing that a tokenizer takes: none of it comes in.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from tsugiki.words import Message

_BROKEN = re.compile("[\ud800-\udfff\0]")


def as_text(value: Any, *, label: bool = False) -> str:
    """A value as text: strings as they are, whole numbers and fractions in digits; a `label` may
    also be true or false.

    Raises:
        ValueError: it is missing, or no text (what it is).
    """
    if isinstance(value, str):
        refuse_broken(value)
        return value
    if isinstance(value, bool):
        if label:
            return "true" if value else "false"
        raise ValueError(Message("error.is_boolean", value=str(value).lower()))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError(Message("error.is_nan"))
        if math.isinf(value) or value.is_integer():
            raise ValueError(Message("error.is_number", value=value))
        return repr(value)
    raise ValueError(Message("error.is_other", kind=_kind(value)))


def refuse_broken(text: str) -> None:
    """Raises `ValueError` for a string that is no Unicode text, or that holds a NUL."""
    if (broken := _BROKEN.search(text)) is not None:
        is_nul = broken.group() == "\0"
        raise ValueError(Message("error.holds_nul" if is_nul else "error.half_character"))


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return Message("error.an_object")
    if isinstance(value, (list, tuple)):
        return Message("error.a_list")
    return Message("error.of_type", name=type(value).__name__)


def without_spaces(text: str) -> str:
    """NFKC, and no white space at all: two texts that are written differently are one."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def normalise(text: str) -> str:
    """NFKC, then white space off both ends: the rule under which an answer matches."""
    return unicodedata.normalize("NFKC", text).strip()
