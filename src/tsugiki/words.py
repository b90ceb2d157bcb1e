"""What readers see, by key and language: `presets/words.en.toml` and `presets/words.ja.toml`. One
place each, so that no page mixes languages.

What is said far below whoever prints it (a note of a run, a line of memory, an error) is a
`Message`: a string in English, which is what records, JSON and pipes hold, that still knows its key
and values. `say` puts it in another language, also as a value of another text.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, reduce
from pathlib import Path
from string import Formatter
from typing import Literal, Self, get_args

Language = Literal["ja", "en"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
FOLDER = Path(__file__).parent / "presets"
KEPT = ("error", "memory", "reason", "system")  # sections of what records keep in English


@cache
def texts(language: Language) -> Mapping[str, str]:
    """Every text of a language by its key, `section.name`."""
    content = tomllib.loads((FOLDER / f"words.{language}.toml").read_text(encoding="utf-8"))
    return dict(_flat(content, ""))


def _flat(content: Mapping[str, object], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def say(language: Language, key: str, /, **values: object) -> str:
    """The text of that key with its values filled in, messages among them in the same language."""
    filled = {name: _in_language(value, language) for name, value in values.items()}
    return texts(language)[key].format(**filled)


class Message(str):
    """A text of the catalogue with its values: in English as a string, in any language for
    `in_language`."""

    key: str
    values: Mapping[str, object]

    def __new__(cls, key: str, /, **values: object) -> Self:
        made = super().__new__(cls, say("en", key, **values))
        made.key, made.values = key, values
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, object]]:
        """By which it is copied: a copy is a message too."""
        return (self.key,), dict(self.values)

    def changed(self, change: Callable[[str], str]) -> Message:
        """The same with every value that is no number changed as a text."""
        return Message(self.key, **{n: _changed(v, change) for n, v in self.values.items()})


def _changed(value: object, change: Callable[[str], str]) -> object:
    if isinstance(value, (int, float)):
        return value
    return value.changed(change) if isinstance(value, Message) else _Written(change(str(value)))


class _Written(str):
    """A value that is a text already, whatever form the sentence asks numbers to have."""

    def __format__(self, form: str) -> str:
        return str(self)


def in_language(language: Language, text: str) -> str:
    """A message in that language; any other text as it is."""
    return say(language, text.key, **text.values) if isinstance(text, Message) else text


def _in_language(value: object, language: Language) -> object:
    return in_language(language, value) if isinstance(value, str) else value


def recognised(text: str, items: bool = False) -> str:
    """The message that a sentence in a record was, its values as they are written there; any other
    text as it is. `items`: it stands in a line of memory, where nothing else does."""
    if isinstance(text, Message):
        return text
    for key, pattern in _patterns(items):
        if (match := pattern.fullmatch(text)) is not None:
            inner, values = key.partition(".")[0] in ("memory", "list"), match.groupdict()
            return Message(key, **{n: recognised(_Written(v), inner) for n, v in values.items()})
    return text


@cache
def _patterns(items: bool) -> list[tuple[str, re.Pattern[str]]]:
    """Keys with what matches their English text, the longest first: whole sentences, since a label
    or a name may be any word; or with the items of a line of memory."""
    known = list[tuple[int, str, re.Pattern[str]]]()
    for key, text in texts("en").items():
        parts, section = list(Formatter().parse(text)), key.partition(".")[0]
        letters = "".join(literal for literal, *_ in parts)
        whole = letters.count(" ") > 2 or (section in ("reason", "system") and letters == text)
        if (section in KEPT and whole) or (items and (section == "memory" or key == "list.comma")):
            known.append((len(letters), key, re.compile(_pattern(parts), re.DOTALL)))
    return [(key, pattern) for _, key, pattern in sorted(known, key=lambda each: -each[0])]


def _pattern(parts: Iterable[tuple[str, str | None, str | None, str | None]]) -> str:
    made, named = "", set[str]()
    for literal, name, *_ in parts:
        made += re.escape(literal)
        if name is not None:
            made += f"(?P={name})" if name in named else f"(?P<{name}>.*)"
            named.add(name)
    return made


def joined(key: str, parts: Iterable[str]) -> str:
    """Texts in a row; the text of `key` says how {first} and {rest} are joined."""
    return reduce(lambda first, rest: Message(key, first=first, rest=rest), parts)


def called(language: Language, section: str, name: str) -> str:
    """What a score, say, is called in a sentence; what has no word keeps its own name."""
    return texts(language).get(f"{section}.{name}", name)


def half(text: str, language: Language) -> str:
    """The Japanese or the English half of a title `日本語 / English`."""
    first, slash, second = text.partition(" / ")
    return (first if language == "ja" else second) if slash else text
