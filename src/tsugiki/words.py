"""What readers see, by key and language: `presets/words.en.toml` and `presets/words.ja.toml`. One
place each, so that no page mixes languages.

What is said far below whoever prints it (a note of a run, a line of memory, an error) is a
`Message`: a string in English, which is what records, JSON and pipes hold, that still knows its key
and values. `say` puts it in another language, also as a value of another text.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, reduce
from pathlib import Path
from typing import Literal, Self, get_args

Language = Literal["ja", "en"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
FOLDER = Path(__file__).parent / "presets"


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
    return value.changed(change) if isinstance(value, Message) else change(str(value))


def in_language(language: Language, text: str) -> str:
    """A message in that language; any other text as it is."""
    return say(language, text.key, **text.values) if isinstance(text, Message) else text


def _in_language(value: object, language: Language) -> object:
    return in_language(language, value) if isinstance(value, str) else value


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
