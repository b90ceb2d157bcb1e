"""Japanese text for scoring: normalisation and segmentation, with the versions that make a number
repeatable."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import version

from tsugiki.errors import ConfigError


def _need(package: str) -> str:
    return f'ROUGE for Japanese needs {package}. Run: pip install "tsugiki[ja]"'


# What lm-evaluation-harness takes out besides emoji: emoticons, symbols, transport, halves of
# flags, and all of the dingbats (✓, ❶).
TAKEN_OUT = re.compile(
    "[\U0001f600-\U0001f64f\U0001f300-\U0001f5ff\U0001f680-\U0001f6ff\U0001f1e0-\U0001f1ff\u2702-"
    "\u27b0]"
)


def clean_for_rouge(text: str) -> str:
    """Emoji and dingbats off, neologdn normalisation, single spaces: what lm-evaluation-harness
    does before it segments.

    Source: lm-evaluation-harness, `lm_eval/tasks/japanese_leaderboard/ja_leaderboard_xlsum.py`
    (commit 8afb53b).
    """
    try:
        import emoji
        import neologdn
    except ImportError as missing:
        raise ConfigError(_need(missing.name or "emoji and neologdn")) from None
    kept = TAKEN_OUT.sub("", "".join(char for char in text if not emoji.is_emoji(char)))
    return " ".join(neologdn.normalize(kept).split())


@cache
def segmenter() -> Callable[[str], list[str]]:
    """Words of a text by MeCab with the unidic-lite dictionary."""
    try:
        import fugashi
        import unidic_lite
    except ImportError as missing:
        raise ConfigError(_need(missing.name or "fugashi and unidic-lite")) from None
    tagger = fugashi.Tagger(f'-Owakati -r "{unidic_lite.DICDIR}/dicrc" -d "{unidic_lite.DICDIR}"')
    return lambda text: tagger.parse(text).split()


def segment(text: str) -> list[str]:
    return segmenter()(text)


@cache
def _ipadic() -> Callable[[str], list[str]]:
    try:
        import fugashi
        import ipadic
    except ImportError as missing:
        raise ConfigError(
            f"This rule needs {missing.name or 'fugashi and ipadic'}. Run: pip install "
            '"tsugiki[ja,rules]"'
        ) from None
    tagger = fugashi.GenericTagger(f"{ipadic.MECAB_ARGS} -Owakati")
    return lambda text: tagger.parse(text.strip()).strip().split(" ")


def segment_ipadic(text: str) -> list[str]:
    """Words by MeCab with the IPA dictionary, as sacreBLEU's `ja-mecab` cuts them."""
    return _ipadic()(text)


def versions() -> dict[str, str]:
    """Versions of what segmentation and normalisation depend on."""
    return {
        package: version(package)
        for package in ("fugashi", "unidic-lite", "neologdn", "rouge-score")
    }
