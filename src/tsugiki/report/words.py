"""What readers see, by key and language: `presets/words.en.toml` and `presets/words.ja.toml`. One
place each, so that no page mixes languages."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal, get_args

Language = Literal["ja", "en"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
FOLDER = Path(__file__).parent.parent / "presets"


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
    """The text of that key with its values filled in."""
    return texts(language)[key].format(**values)


def called(language: Language, section: str, name: str) -> str:
    """What a score, say, is called in a sentence; what has no word keeps its own name."""
    return texts(language).get(f"{section}.{name}", name)


def half(text: str, language: Language) -> str:
    """The Japanese or the English half of a title `日本語 / English`."""
    first, slash, second = text.partition(" / ")
    return (first if language == "ja" else second) if slash else text
