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
from tsugiki.data.tasks import Task, few_shots
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
    leave_out = (
        (left_out if left_out is not None else [])
        if part == "train" and config.train.long_rows == "leave_out"
        else None
    )
    rows = tokenize(
        tokenizer,
        task,
        task.examples[part],
        longest,
        config.score.max_new_tokens,
        stops=stops,
        leave_out=leave_out,
        # What is trained on is shown without: training rows themselves are only counted here.
        shots=() if part == "train" else few_shots(task, config.shots, config.train.seed),
    )
    if not rows:
        raise DataError(
            f'task "{task.name}": not one row of {part} fits into {longest} tokens. Raise '
            "train.max_length"
        )
    check_ids(tokenizer, rows, vocab_rows)
    return rows


def pairs_of(
    tokenizer: Tokenizer,
    task: Task,
    config: RunConfig,
    part: str,
    *,
    longest: int,
    vocab_rows: int,
    left_out: list[str] | None = None,
) -> list[Tokens]:
    """`rows_of` for an encoder (`data/pairs`)."""
    leave_out = part == "train" and config.train.long_rows == "leave_out"
    kept = (left_out if left_out is not None else []) if leave_out else None
    rows = encode(tokenizer, task, task.examples[part], longest, kept)
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
        yield (
            f"{part}: {len(fewer)} of {len(rows)} rows have room for fewer than {config.shots} "
            f"shots (the longest for {least}); none is cut"
        )


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
        notes.append(
            f"tokenizer: {len(tokenizer):,} tokens, the model has rows for {vocab_rows:,}; none of "
            "the rest occurs in these rows"
        )
    notes += _odd_ends(tokenizer, next(iter(rows.values())), vocab_rows)
    for part, some_rows in rows.items():
        if task.spec.closed:
            notes += _closed_answers(tokenizer, task, part, some_rows)
        else:
            notes += _free_answers(tokenizer, task, part, some_rows, config)
        notes += _control_tokens(tokenizer, part, some_rows)
        notes += fewer_shots(part, some_rows, config)
        notes += _equal_candidates(part, some_rows)
    return [*notes, *_missing_labels(task, rows)]


def look_at_pairs(
    folder: Path, tokenizer: Tokenizer, task: Task, rows: Mapping[str, Sequence[Tokens]]
) -> list[str]:
    """`look_at_rows` for an encoder: its answers are no tokens, so none can be lost."""
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
        return [f"tokenizer: {cannot}"]
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
        what = f'task "{task.name}" row {row_id}: the answer “{candidate}”'
        _refuse_marks(tokenizer, ids, ending.stops, what, unknown=bool(labels))
        back = answer_text(tokenizer, prompt, ids)
        if normalise(back) != normalise(candidate) or tokenizer.unk_token_id in ids:
            if labels:
                raise DataError(
                    f"{what} comes back from the tokenizer as “{back}”, so no answer could be "
                    "right. Write it with other characters"
                )
            lost[candidate] = back
    right = [row.example.id for row in rows if row.example.target in lost]
    if lost:
        candidate, back = next(iter(lost.items()))
        yield (
            f"{part}: the tokenizer loses {len(lost)} candidates, like “{candidate}” → “{back}”; "
            "in "
            f"{len(right)} of {len(rows)} rows that is the right answer, "
            "which can never be given"
        )


def _refuse_marks(
    tokenizer: Tokenizer, ids: Sequence[int], stops: frozenset[int], what: str, *, unknown: bool
) -> None:
    for token in ids:
        is_unknown = token == tokenizer.unk_token_id  # which some tokenizers pad with, too
        is_padding = token == tokenizer.pad_token_id and not is_unknown
        if token in stops or is_padding or (unknown and is_unknown):
            name = (
                "a mark that ends an answer"
                if token in stops
                else "padding"
                if is_padding
                else "its unknown token"
            )
            token_text = tokenizer.convert_ids_to_tokens(token)
            raise DataError(
                f"{what} becomes the tokenizer's “{token_text}” ({name}). Write it with other "
                "characters"
            )


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
            f'task "{task.name}" {part} row {row.example.id}: the answer',
            unknown=False,
        )
        if tokenizer.unk_token_id in ids:
            unknown, first_unknown = unknown + 1, first_unknown or row.example.id
        longest, cut = max(longest, len(row.target_ids)), cut + (len(row.target_ids) > most)
    if cut:
        yield (
            f"{part}: {cut} of {len(rows)} answers are longer than max_new_tokens = {most}, so "
            "none of those can be given whole "
            f"(longest: {longest} tokens with its end). Raise max_new_tokens"
        )
    if unknown:
        yield (
            f"{part}: {unknown} of {len(rows)} answers hold characters that the tokenizer does "
            f"not know, so they cannot be given (first: row {first_unknown})"
        )


def _odd_ends(tokenizer: Tokenizer, rows: Sequence[Tokens], vocab_rows: int) -> Iterator[str]:
    """Ends that a model's settings name and that are ordinary tokens: left over from another
    tokenizer, perhaps."""
    odd = [
        stop
        for stop in sorted(rows[0].ending.stops)
        if stop >= vocab_rows or stop not in control_ids(tokenizer)
    ]
    if odd:
        named = ", ".join(
            f"{stop} (“"
            f"{tokenizer.convert_ids_to_tokens(stop) if stop < len(tokenizer) else 'no token'}”)"
            for stop in odd
        )
        yield (
            f"answers also end at {named}: generation_config.json or config.json names it as "
            "eos_token_id, but it is no control token of the tokenizer"
        )


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
        yield (
            f"{part}: {len({row for row, _ in pairs})} of {len(rows)} rows hold control tokens "
            f"of the tokenizer in their texts (first: row {row}, “{mark}”)"
        )


def _equal_candidates(part: str, rows: Sequence[Tokens]) -> Iterator[str]:
    pairs = [
        (row.example.id, pair)
        for row in rows
        if (pair := equal_candidates(row.example)) is not None
    ]
    if pairs:
        row, (first, second) = pairs[0]
        yield (
            f"{part}: {len(pairs)} of {len(rows)} rows have two candidates that are one after "
            f"normalisation (first: row {row}, “{first}” and “{second}”)"
        )


def _missing_labels(task: Task, rows: Mapping[str, Sequence[Tokens]]) -> Iterator[str]:
    if not task.spec.fixed_answers or "train" not in rows:
        return
    trained = {row.example.target for row in rows["train"]}
    for part, some in rows.items():
        missing = sorted(trained - {row.example.target for row in some})
        if part != "train" and missing:
            yield (
                f"{part}: no row has the label {', '.join(missing)}, which training has: a score "
                "there says nothing of it"
            )
