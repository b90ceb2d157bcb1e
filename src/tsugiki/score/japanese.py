"""Japanese text for scoring: normalisation and segmentation, with the versions that make a number
repeatable."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import version

from tsugiki.errors import ConfigError, how_to_install

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
    import emoji
    import neologdn

    kept = TAKEN_OUT.sub("", "".join(char for char in text if not emoji.is_emoji(char)))
    return " ".join(neologdn.normalize(kept).split())


@cache
def segmenter() -> Callable[[str], list[str]]:
    """Words of a text by MeCab with the unidic-lite dictionary."""
    import fugashi
    import unidic_lite

    tagger = fugashi.Tagger(f'-Owakati -r "{unidic_lite.DICDIR}/dicrc" -d "{unidic_lite.DICDIR}"')
    return lambda text: tagger.parse(text).split()


def segment(text: str) -> list[str]:
    return segmenter()(text)


@cache
def _ipadic() -> Callable[[str], list[str]]:
    import fugashi

    try:
        import ipadic
    except ImportError:
        raise ConfigError(f"This rule needs ipadic. {how_to_install('ipadic')}") from None
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
