"""The words: those of readers are complete in both languages, and no private one is left."""

from __future__ import annotations

import ast
import copy
import io
import json
import pickle
import re
import string
import tokenize
from pathlib import Path

import pytest

from tsugiki.errors import TsugikiError, reason_of
from tsugiki.words import KEPT, LANGUAGES, Message, in_language, joined, recognised, say, texts

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
# Old spellings are read there, and by a hidden option; nowhere else.
OLD = {"src/tsugiki/config/old_spellings.py"}
# Names that said nothing to a reader who was not there.
NAMES = [
    "heir",
    "heirs",
    "trunk",
    "trunks",
    "hand_on",
    "handed_on",
    "Visit",
    "visit",
    "visits",
    "_visit",
    "Grafted",
    "grafted",
    "_Course",
    "course",
    "courses",
    "_Together",
    "moment",
    "_tell",
    "_tell_nothing",
    "told",
    "solo",
    "alone",
    "ways",
    "three_ways",
    "gated",
    "short_attention",
    "product",
    "products",
    "product_behind",
    "rotation_left",
    "leave",
    "Unturned",
    "Shadow",
    "shadow",
    "_beside",
    "_join",
    "captured_step",
    "CapturedStep",
    "Recorder",
    "recorder",
    "plain",
    "happened",
    "with_what",
    "asked",
    "during",
    "during_rows",
    "Place",
    "place",
    "places",
    "word",
    "dead",
    "near",
    "fall",
    "moving_steps",
    "resting",
    "piece",
    "pieces",
    "takes_captured",
    "serves",
    "one",
    "here",
    "found",
    "mend",
]
# Library functions of these names.
OF_LIBRARIES = {"itertools.product"}
PHRASES = (
    r"end marks?\b",
    r"\bbf16 products\b",
    r"\bcaptured step\b",
    r"\brecorded step\b",
    r"\bplain step\b",
    r"\bis told now\b",
    r"this many examples do not decide",
    r"cannot be told from",
    r"\bthe device to itself\b",
    r"\bseconds a step\b",
    r"\bamong lanes\b",
    r"did not learn in",
    r"\bQuality against cost\b",
    r"\bcourse of training\b",
    r"What is comparable with what",
    r"stand in the training data too",
    r"gradient norm at most",
    r"products alone",
    r"\blooks first\b",
    r"goes on where it was",
    r"It is right, and slower",
    r"二つのコマンド",
    r"この件数では決まりません",
    r"を見分ける",
    r"学習対象パラメータ",
    r"最適化の 1 ステップ",
    r"計算機",
    r"レーン内",
    r"候補内解答率",
    r"学習できて",
    r"最良と区別できず",
    r"判定できず",
    r"何と何が比較できるか",
    r"記録して再生",
    r"凍結した重みの行列積だけ",
    r"素朴なループ",
    r"サンプル課題",
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_private_name_is_left(path: Path) -> None:
    where = path.relative_to(ROOT).as_posix()
    if where in OLD:
        return
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    private = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string in NAMES:
            line = lines[token.start[0] - 1]
            if not any(known in line for known in OF_LIBRARIES):
                private.append(f"{where}:{token.start[0]}: {token.string}: {line.strip()}")
    tree = ast.parse(text)
    inner = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & set(NAMES)
    assert not [*private, *inner], "\n".join([*private, *sorted(inner)])


@pytest.mark.parametrize(
    "path",
    [
        *SOURCES,
        *sorted((ROOT / "src").rglob("*.toml")),
        *sorted((ROOT / "src").rglob("*.j2")),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted(ROOT.glob("README*.md")),
    ],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_no_private_phrase_is_left(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [phrase for phrase in PHRASES if re.search(phrase, text)]


def test_both_languages_have_every_text_with_the_same_values() -> None:
    english, japanese = texts("en"), texts("ja")
    assert len(english) > 150
    assert english.keys() == japanese.keys()
    for key in english:
        assert values_of(english[key]) == values_of(japanese[key]) or key in SAID_IN_ONE, key


# Japanese needs no plural, and names the metric where English names the value alone.
SAID_IN_ONE = {
    key
    for key in texts("en")
    if key in ("finding.parameters", "answers.title") or key.endswith(".undecided")
}


def values_of(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_text_is_used() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES) + "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.j2")
    )
    for key in texts("en"):
        section, _, name = key.rpartition(".")
        by_whole = f'"{key}"' in code or f"'{key}'" in code
        by_section = re.search(rf"f[\"']{re.escape(section)}\.\{{", code)
        in_page = section == "page" and re.search(rf"words(\.|\[[\"']){name}\b", code)
        verdict = section.startswith("verdict.") and 'f"verdict.{' in code
        reason = section == "reason"
        assert by_whole or by_section or in_page or verdict or reason, key


def test_a_text_is_written_with_its_values() -> None:
    for language in LANGUAGES:
        for key, text in texts(language).items():
            filled = say(language, key, **dict.fromkeys(values_of(text), 1))
            assert "{" not in filled.replace("{answer}", ""), key


def test_a_message_is_its_english_and_knows_its_japanese() -> None:
    inner = Message("error.known", names="a, b")
    message = Message("error.no_study", name="x", hint=inner)
    assert message == 'study "x": no such study. Known: a, b; or give a path to a .toml file'
    assert json.loads(json.dumps({"said": message})) == {"said": str(message)}
    assert type(str(message)) is str
    japanese = "スタディ「x」はありません。使えるもの: a, b。.toml ファイルのパスも指定できます"
    for same in (message, copy.deepcopy(message), pickle.loads(pickle.dumps(message))):
        assert in_language("ja", same) == japanese
        assert in_language("en", same) == message
    assert say("ja", "check.note", note=message) == f"  注意: {japanese}"
    assert in_language("ja", "any text") == "any text"
    parts = (Message("memory.item", name=name, size="1") for name in ("x", "y", "z"))
    assert in_language("ja", joined("list.comma", parts)) == "x 1、y 1、z 1"


def test_no_language_of_an_error_holds_a_secret() -> None:
    url = "https://someone:password@host/x?token=abcdefghijk"
    error = TsugikiError(Message("error.broke_off", url=url, done=1234))
    for said in (str(error), *(in_language(each, error.message) for each in LANGUAGES)):
        assert "password" not in said
        assert "abcdefghijk" not in said
        assert "1,234" in said


def test_what_the_system_says_has_its_japanese(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        (tmp_path / "nowhere").read_bytes()
    said = reason_of(caught.value)
    assert said == f"{tmp_path}/nowhere: No such file or directory"
    assert in_language("ja", said) == f"{tmp_path}/nowhere: ファイルまたはフォルダがありません"


SENTENCES = [
    key
    for key, text in texts("en").items()
    if key.partition(".")[0] in KEPT and re.sub(r"{.*?}", "", text).count(" ") > 2
]


@pytest.mark.parametrize("key", SENTENCES)
def test_a_sentence_in_a_record_is_recognised(key: str) -> None:
    """Numbers as they were written: `1,234` is no number any more."""
    values = dict.fromkeys(values_of(texts("en")[key]), 1234)
    message = Message(key, **values)
    again = recognised(str(message))
    assert isinstance(again, Message)
    assert (again, in_language("ja", again)) == (message, in_language("ja", message))


def test_a_line_of_memory_is_recognised_with_its_items_and_a_label_is_none() -> None:
    items = [Message("memory.item", name=Message(f"memory.{name}"), size="1.5")
             for name in ("moments", "activations", "weights")]  # fmt: skip
    held = Message("memory.total_of", gib="4.5", items=joined("list.comma", items))
    message = Message("memory.lower_length", taken="x", held=held, length=2048, instead="LoRA")
    again = recognised(f"does not fit: {message}")
    japanese = in_language("ja", again)
    assert "4.5 GiB（AdamW のモーメント 1.5、アクティベーション 1.5、重み 1.5）" in japanese
    assert "train.max_length（現在 2,048）" in japanese
    for label in ("none", "weights", "missing", "a list", "not a sentence: of ours"):
        assert not isinstance(recognised(label), Message)
