"""Does a tokenizer keep the text? Round trips, and a converted SentencePiece model against
`sentencepiece` itself.

A SentencePiece model holds its own normalisation (full-width letters become half-width, say). When
transformers converts it under another class, that may be lost: the model then sees tokens that it
was never trained on. So both are compared on real lines.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tsugiki.errors import ModelError, first_line, how_to_install
from tsugiki.words import Message

# What Japanese text holds and tokenizers lose: line ends, full-width letters, half-width kana,
# signs in circles, double spaces, rare characters.
PROBES = (
    "一行目\n二行目",
    "ＡＢＣ１２３",
    "ｶﾀｶﾅ",
    "①②㈱",
    "空白  二つ",
    "𠮷野家の髙橋",
    "前提：「犬」\t仮説：『猫』",
)


def round_trip_losses(tokenizer: Any, lines: Sequence[str]) -> list[tuple[str, str]]:
    """(line, what comes back) of every line that does not come back the same; `[SEP]` and its like
    count as text."""
    back = [
        tokenizer.decode(
            tokenizer(line, add_special_tokens=False)["input_ids"], skip_special_tokens=False
        )
        for line in lines
    ]
    return [(line, text) for line, text in zip(lines, back, strict=True) if text != line]


def sentencepiece_model(folder: Path) -> Path | None:
    """The SentencePiece file in a model folder, if there is one."""
    return next(
        (
            folder / name
            for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
            if (folder / name).exists()
        ),
        None,
    )


def conversion_differences(
    folder: Path, tokenizer: Any, lines: Sequence[str]
) -> list[tuple[str, list[int], list[int]]]:
    """(line, ids by transformers, ids by sentencepiece) wherever they differ.

    Raises:
        ModelError: `sentencepiece` is not installed, or the file is damaged.
    """
    path = sentencepiece_model(folder)
    if path is None:
        return []
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        install = how_to_install("sentencepiece", "protobuf")
        raise ModelError(Message("error.comparing", path=path, install=install)) from None
    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as broken:
        raise ModelError(
            f"model {path}: damaged or no SentencePiece model: {str(broken).splitlines()[0]}"
        ) from None
    read = [
        (
            line,
            list(tokenizer(line, add_special_tokens=False)["input_ids"]),
            list(processor.encode(line)),
        )
        for line in lines
    ]
    return [(line, ours, theirs) for line, ours, theirs in read if ours != theirs]


def refuse_other_ids(folder: Path, tokenizer: Any, lines: Sequence[str]) -> None:
    """Raises `ModelError` when transformers' tokenizer gives other ids than the folder's own
    tokenizer.json, and says what would not.

    A class named in tokenizer_config.json may rebuild the tokenizer its own way; the model was
    trained on the ids of the file.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        return
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        bare = Tokenizer.from_file(str(path))
    except Exception as broken:  # the library raises its own kind
        said = first_line(broken)
        raise ModelError(Message("error.damaged_model", path=path, reason=said)) from None
    # Tokens that the settings add are the user's own.
    added = set(tokenizer.get_added_vocab()) - set(bare.get_vocab())
    lines = [line for line in lines if not any(token in line for token in added)]
    # A file may hold these from an earlier training; transformers does not read them.
    bare.no_truncation()
    bare.no_padding()
    wanted = [bare.encode(line, add_special_tokens=False).ids for line in lines]
    differing = [
        number
        for number, line in enumerate(lines)
        if list(tokenizer(line, add_special_tokens=False)["input_ids"]) != wanted[number]
    ]
    if not differing:
        return
    again = PreTrainedTokenizerFast(tokenizer_file=str(path))
    left = sum(
        list(again(line, add_special_tokens=False)["input_ids"]) != ids
        for line, ids in zip(lines, wanted, strict=True)
    )
    remedy = (
        f'With tokenizer_class = "PreTrainedTokenizerFast" in tokenizer_config.json {left} of '
        f"{len(lines)} differ"
    )
    line, ours = (
        lines[differing[0]],
        tokenizer(lines[differing[0]], add_special_tokens=False)["input_ids"],
    )
    raise ModelError(
        f"model {folder}: its tokenizer ({type(tokenizer).__name__}) gives other ids than its "
        f"tokenizer.json on {len(differing)} of {len(lines)} texts, "
        f"like “{_short(line)}”: {list(ours)[:8]} against {wanted[differing[0]][:8]}. The model "
        f"was trained on the latter. {remedy}"
    )


def tokenizer_notes(folder: Path, tokenizer: Any, lines: Sequence[str]) -> Iterator[str]:
    """What a user should know of a tokenizer before training, with examples; nothing where nothing
    is lost.

    `lines` are the task's own; the probes stand beside them.
    """
    for what, some in (
        ("of_task", list(dict.fromkeys(lines))),
        ("of_signs", list(PROBES)),
    ):
        changed = round_trip_losses(tokenizer, some)
        lost = [(text, back) for text, back in changed if _folded(text) != _folded(back)]
        if changed:
            text, back = (lost or changed)[0]
            like = {"what": Message(f"note.{what}"), "text": _short(text), "back": _short(back)}
            if lost:
                yield Message("note.round_trip_lost", lost=len(lost), total=len(some), **like)
            else:
                counts = {"changed": len(changed), "total": len(some)}
                yield Message("note.round_trip_normalised", **counts, **like)
    if sentencepiece_model(folder) is not None:
        everything = [*dict.fromkeys(lines), *PROBES]
        equal = Message("note.conversion_equal", lines=len(everything))
        yield conversion_note(folder, tokenizer, everything) or equal


class OtherIds(ModelError):
    """A tokenizer gives ids that the model was not trained on."""


def refuse_other_unknown(folder: Path, tokenizer: Any) -> None:
    """Raises `OtherIds` when an unknown character becomes something else than sentencepiece's
    unknown token: an end, in transformers' T5 class, where `</s>` stands at the place that it
    expects `<unk>` at."""
    # No text has these: of private use, and not assigned.
    differing = conversion_differences(folder, tokenizer, ["\ue000\u0378"])
    if not differing:
        return
    _, ours, theirs = differing[0]
    if tokenizer.eos_token_id in ours and tokenizer.eos_token_id not in theirs:
        raise OtherIds(
            f"model {folder}: characters that its tokenizer does not know become its EOS token "
            f"({ours} where sentencepiece has {theirs}), so texts would end in "
            "their middle. Look for another tokenizer class, or its makers' tokenizer.json"
        )


def conversion_note(folder: Path, tokenizer: Any, lines: Sequence[str]) -> str | None:
    """Where transformers' conversion of a SentencePiece model gives other ids than the model
    itself; None where it gives the same, or there is none."""
    differing = conversion_differences(folder, tokenizer, lines)
    if not differing:
        return None
    text, ours, theirs = differing[0]
    ids = {"ours": ours[:8], "theirs": theirs[:8]}
    counts = {"differing": len(differing), "lines": len(lines)}
    return Message("note.conversion_differs", text=_short(text), **counts, **ids)


def _folded(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _short(text: str, limit: int = 30) -> str:
    shown = text.replace("\n", "⏎").replace("\t", "⇥")
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
