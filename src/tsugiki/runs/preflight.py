"""What is looked at before the first step, for `run` and for `check` alike: the tokenizer, the
answers, the rows as ids.

Nothing here needs weights. What would make a score untrue is refused; what a user should know is
told, with a number and a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tsugiki.config.run import RunConfig
from tsugiki.data.example import equal_candidates
from tsugiki.data.pairs import check_pair_ids, encode
from tsugiki.data.prompts import (
    Tokens,
    answer_text,
    check_ids,
    check_tokenizer,
    control_ids,
    tokenize,
)
from tsugiki.data.tasks import Task, called_part, few_shots
from tsugiki.data.text import normalise
from tsugiki.data.tokenizer import Tokenizer
from tsugiki.errors import DataError, ModelError
from tsugiki.model.tokenizers import (
    OtherIds,
    conversion_note,
    refuse_other_ids,
    refuse_other_unknown,
    sentencepiece_model,
)
from tsugiki.words import Message, joined

LINES = 50  # of the task's own texts whose ids are compared


def longest_of(config: RunConfig, positions: int) -> int:
    """Tokens a row may have: what was asked, or what the model has positions for."""
    return min(config.train.max_length, positions)


def rows_of(
    tokenizer: Tokenizer,
    task: Task,
    config: RunConfig,
    part: str,
    *,
    longest: int,
    vocab_rows: int,
    stops: Sequence[int],
    left_out: list[str] | None = None,
) -> list[Tokens]:
    """The rows of one part as ids, every id one that the model has a row for. `longest` is how
    many tokens a row may have.

    Training rows that do not fit are left out where the configuration says so; their ids are added
    to `left_out`.
    """
    check_tokenizer(tokenizer)
    rows = tokenize(
        tokenizer,
        task,
        task.examples[part],
        longest,
        config.score.max_new_tokens,
        stops=stops,
        leave_out=_leave_out(config, part, left_out),
        # What is trained on is shown without: training rows themselves are only counted here.
        shots=() if part == "train" else few_shots(task, config.shots, config.train.seed),
    )
    if not rows:
        raise DataError(Message("error.no_row_fits", task=task.name, part=part, longest=longest))
    check_ids(tokenizer, rows, vocab_rows)
    return rows


def _leave_out(config: RunConfig, part: str, left_out: list[str] | None) -> list[str] | None:
    """Where the ids of rows go that do not fit: training rows, where the configuration says so;
    None where each is an error."""
    if part != "train" or config.train.long_rows != "leave_out":
        return None
    return [] if left_out is None else left_out


def pairs_of(
    tokenizer: Tokenizer,
    task: Task,
    config: RunConfig,
    part: str,
    *,
    longest: int,
    vocab_rows: int,
    stops: Sequence[int],
    left_out: list[str] | None = None,
) -> list[Tokens]:
    """`rows_of` for an encoder (`data/pairs`), whose answers end nowhere: `stops` is not read."""
    leave_out = _leave_out(config, part, left_out)
    rows = encode(tokenizer, task, task.examples[part], longest, leave_out)
    if not rows:
        raise DataError(
            f'task "{task.name}": not one row of {part} fits into the {longest} tokens that the '
            "encoder reads"
        )
    check_pair_ids(tokenizer, rows, vocab_rows)
    return rows


def fewer_shots(part: str, rows: Sequence[Tokens], config: RunConfig) -> Iterator[str]:
    """How many rows have room for fewer worked examples than were asked for."""
    fewer = [row for row in rows if row.shots < config.shots]
    if fewer and part != "train":
        least = min(row.shots for row in fewer)
        counts = {"fewer": len(fewer), "rows": len(rows), "shots": config.shots, "least": least}
        yield Message("note.fewer_shots", part=part, **counts)


def look_at_rows(
    folder: Path,
    tokenizer: Tokenizer,
    task: Task,
    rows: Mapping[str, Sequence[Tokens]],
    config: RunConfig,
    *,
    vocab_rows: int,
) -> list[str]:
    """What a user should know of these rows (part → rows) before anything is trained, in lines.

    Raises:
        ModelError: the tokenizer gives other ids than its own file.
        DataError: an answer cannot be told by the model, or would not be recognised.
    """
    texts = _texts_of(rows)
    refuse_other_ids(folder, tokenizer, texts)
    notes = [*task.notes, *_conversion(folder, tokenizer, texts)]
    if len(tokenizer) > vocab_rows:
        notes.append(Message("note.vocabulary", tokens=len(tokenizer), rows=vocab_rows))
    notes += _odd_ends(tokenizer, next(iter(rows.values())), vocab_rows)
    for name, some_rows in rows.items():
        part = called_part(name)
        if task.spec.closed:
            notes += _closed_answers(tokenizer, task, part, some_rows)
        else:
            notes += _free_answers(tokenizer, task, part, some_rows, config)
        notes += _control_tokens(tokenizer, part, some_rows)
        notes += fewer_shots(part, some_rows, config)
        notes += _equal_candidates(part, some_rows)
    return [*notes, *_missing_labels(task, rows)]


def look_at_pairs(
    folder: Path,
    tokenizer: Tokenizer,
    task: Task,
    rows: Mapping[str, Sequence[Tokens]],
    config: RunConfig,
    *,
    vocab_rows: int,
) -> list[str]:
    """`look_at_rows` for an encoder: its answers are no tokens, so none can be lost, and what would
    tell (`config`, `vocab_rows`) is not read."""
    texts = _texts_of(rows)
    refuse_other_ids(folder, tokenizer, texts)
    notes = [*task.notes, *_conversion(folder, tokenizer, texts)]
    for part, some in rows.items():
        cut = sum(row.was_cut for row in some)
        notes += [f"{part}: {cut} of {len(some)} rows were shortened to fit"] if cut else []
        notes += _equal_candidates(part, some)
    return [*notes, *_missing_labels(task, rows)]


def _texts_of(rows: Mapping[str, Sequence[Tokens]]) -> list[str]:
    """Some of the rows' own texts."""
    some = [row for part in rows.values() for row in part[:LINES]]
    texts = [text for row in some for text in (*row.example.fields.values(), row.example.target)]
    return list(dict.fromkeys(texts))[:LINES]


def _conversion(folder: Path, tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """A tokenizer converted from a SentencePiece model is compared with that, where nobody shipped
    its own conversion."""
    if sentencepiece_model(folder) is None or (folder / "tokenizer.json").exists():
        return []
    try:
        refuse_other_unknown(folder, tokenizer)
        said = conversion_note(folder, tokenizer, texts)
    except OtherIds:
        raise
    except ModelError as cannot:
        return [Message("note.tokenizer", said=cannot.message)]
    return [said] if said else []


def _closed_answers(
    tokenizer: Tokenizer, task: Task, part: str, rows: Sequence[Tokens]
) -> Iterator[str]:
    """Refuses a label word, or a candidate with an end in it, that could never be given; of
    candidates those are counted that the tokenizer loses: in a large file a rare character in a
    wrong one makes no score untrue.

    Raises:
        DataError: it does not survive encode → decode as scoring decodes, or holds an end, padding
            or (a label) an unknown token.
    """
    prompt, ending, labels = rows[0].prompt_ids, rows[0].ending, task.spec.fixed_answers
    lost: dict[str, str] = {}
    first = {
        candidate: row.example.id for row in reversed(rows) for candidate in row.example.candidates
    }
    for candidate, row_id in first.items():
        ids = tokenizer(candidate, add_special_tokens=False)["input_ids"]
        what = Message("error.the_answer", task=task.name, row=row_id, answer=candidate)
        _refuse_marks(tokenizer, ids, ending.stops, what, unknown=bool(labels))
        back = answer_text(tokenizer, prompt, ids)
        if normalise(back) != normalise(candidate) or tokenizer.unk_token_id in ids:
            if labels:
                raise DataError(Message("error.answer_lost", what=what, back=back))
            lost[candidate] = back
    right = [row.example.id for row in rows if row.example.target in lost]
    if lost:
        candidate, back = next(iter(lost.items()))
        counts = {"lost": len(lost), "wrong": len(right), "rows": len(rows)}
        like = {"candidate": candidate, "back": back}
        yield Message("note.candidates_lost", part=part, **counts, **like)


def _refuse_marks(
    tokenizer: Tokenizer, ids: Sequence[int], stops: frozenset[int], what: str, *, unknown: bool
) -> None:
    for token in ids:
        is_unknown = token == tokenizer.unk_token_id  # which some tokenizers pad with, too
        is_padding = token == tokenizer.pad_token_id and not is_unknown
        if token in stops or is_padding or (unknown and is_unknown):
            kind = "end" if token in stops else "padding" if is_padding else "unknown"
            token_text = tokenizer.convert_ids_to_tokens(token)
            mark = Message(f"error.mark_{kind}")
            raise DataError(Message("error.answer_marks", what=what, token=token_text, kind=mark))


def _free_answers(
    tokenizer: Tokenizer, task: Task, part: str, rows: Sequence[Tokens], config: RunConfig
) -> Iterator[str]:
    most = config.score.max_new_tokens or task.spec.max_new_tokens
    unknown, first_unknown, longest, cut = 0, "", 0, 0
    for row in rows:
        ids = row.target_ids[: len(row.target_ids) - len(row.ending.ids)]
        _refuse_marks(
            tokenizer,
            ids,
            row.ending.stops,
            Message("error.an_answer", task=task.name, part=part, row=row.example.id),
            unknown=False,
        )
        if tokenizer.unk_token_id in ids:
            unknown, first_unknown = unknown + 1, first_unknown or row.example.id
        longest, cut = max(longest, len(row.target_ids)), cut + (len(row.target_ids) > most)
    if cut:
        counts = {"cut": cut, "rows": len(rows), "most": most, "longest": longest}
        yield Message("note.answers_too_long", part=part, **counts)
    if unknown:
        counts = {"unknown": unknown, "rows": len(rows)}
        yield Message("note.answers_unknown", part=part, row=first_unknown, **counts)


def _odd_ends(tokenizer: Tokenizer, rows: Sequence[Tokens], vocab_rows: int) -> Iterator[str]:
    """Ends that a model's settings name and that are ordinary tokens: left over from another
    tokenizer, perhaps."""
    odd = [
        stop
        for stop in sorted(rows[0].ending.stops)
        if stop >= vocab_rows or stop not in control_ids(tokenizer)
    ]
    if odd:
        missing = Message("note.no_token")
        names = {
            stop: tokenizer.convert_ids_to_tokens(stop) if stop < len(tokenizer) else missing
            for stop in odd
        }
        ends = (Message("note.end", id=stop, token=name) for stop, name in names.items())
        yield Message("note.odd_ends", ends=joined("list.comma", ends))


def _control_tokens(tokenizer: Tokenizer, part: str, rows: Sequence[Tokens]) -> Iterator[str]:
    token_texts = tokenizer.convert_ids_to_tokens(sorted(control_ids(tokenizer)))
    marks = sorted(
        {token_text for token_text in token_texts if token_text and token_text.strip()},
        key=len,
        reverse=True,
    )
    pairs = [
        (row.example.id, mark)
        for row in rows
        for mark in marks
        if any(mark in text for text in row.example.fields.values())
    ]
    if pairs:
        row, mark = pairs[0]
        count = len({row for row, _ in pairs})
        first = {"row": row, "token": mark}
        yield Message("note.control_tokens", part=part, count=count, rows=len(rows), **first)


def _equal_candidates(part: str, rows: Sequence[Tokens]) -> Iterator[str]:
    pairs = [
        (row.example.id, pair)
        for row in rows
        if (pair := equal_candidates(row.example)) is not None
    ]
    if pairs:
        row, (first, second) = pairs[0]
        like = {"row": row, "first": first, "second": second}
        yield Message("note.equal_candidates", part=part, count=len(pairs), rows=len(rows), **like)


def _missing_labels(task: Task, rows: Mapping[str, Sequence[Tokens]]) -> Iterator[str]:
    if not task.spec.fixed_answers or "train" not in rows:
        return
    trained = {row.example.target for row in rows["train"]}
    for part, some in rows.items():
        missing = sorted(trained - {row.example.target for row in some})
        if part != "train" and missing:
            yield Message("note.missing_labels", part=called_part(part), labels=", ".join(missing))
