"""`Example → Tokens`: the prompt and the answer, tokenised apart, so that training and inference
see the same prompt ids.

    ids    p p p p p p p p a a a </s>
    loss   . . . . . . . . x x x x        the answer and its end are trained, nothing else

Embeddings are never resized: `[SEP]` is whatever the tokenizer makes of it, a token of its own or
plain text.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from tsugiki.data.chat import chat_ids_of, conversation_text
from tsugiki.data.example import Example
from tsugiki.data.tasks import CHAT, Task
from tsugiki.data.tokenizer import Tokenizer
from tsugiki.errors import DataError, ModelError, did_you_mean
from tsugiki.words import Message, joined


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Where an answer ends: `ids` close it in training, and any of `stops` ends it in every
    decoder. By default nothing does."""

    ids: tuple[int, ...] = ()
    stops: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One text or two as an encoder reads them: ids, and which of the two each token is of."""

    ids: tuple[int, ...]
    types: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The answers that an encoder chooses among, and what it reads for them: one pair for all of
    them, or one for each (`data/pairs`)."""

    texts: tuple[str, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One row as ids. `target_ids` ends with `ending.ids`; `was_cut` says that the text was
    shortened to fit; `shots` worked examples stand before it. For an encoder `options` holds the
    ids, and prompt and target none."""

    example: Example
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    ending: Ending = Ending()
    was_cut: bool = False
    shots: int = 0
    options: Options | None = None

    def __len__(self) -> int:
        pairs = self.options.pairs if self.options else ()
        return len(self.prompt_ids) + len(self.target_ids) + sum(len(pair.ids) for pair in pairs)


class TooLong(DataError):
    """A row that does not fit and may not be cut."""


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Raises `ModelError` for a tokenizer that cannot end an answer."""
    if tokenizer.eos_token_id is None:
        raise ModelError(Message("error.no_eos", name=tokenizer.name_or_path))


def check_ids(tokenizer: Tokenizer, rows: Sequence[Tokens], vocab_size: int) -> None:
    """Raises `ModelError` for an id that occurs and that the model has no row for. (A token too
    many that never occurs does no harm.)"""
    for row in rows:
        largest = max([*row.prompt_ids, *row.target_ids])
        if largest >= vocab_size:
            token_text = tokenizer.convert_ids_to_tokens(largest)
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path}: row {row.example.id} holds “{token_text}” "
                "(id "
                f"{largest}), but the model has {vocab_size} rows: "
                "they do not belong together"
            )


def pad_id_of(tokenizer: Tokenizer) -> int:
    """The id rows are padded with: the pad token, or the EOS token where there is none (masks go by
    position, so both do)."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def render(template: str, example: Example) -> str:
    """The prompt text: each `{field}` is the field's text, `{{` and `}}` are brackets. Raises
    `DataError` for a field that the task does not have."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as broken:
        raise DataError(
            f'format "{template}": {broken}. Write {{{{ and }}}} for curly brackets that are meant '
            "as text"
        ) from None
    said = []
    for text, name, _, _ in parts:
        said.append(text)
        if name is None:
            continue
        if name not in example.fields:
            hint = did_you_mean(name, example.fields)
            raise DataError(
                Message("error.template_field", template=template, name=name, hint=hint)
            )
        said.append(example.fields[name])
    return "".join(said)


def prompt_ids_of(tokenizer: Tokenizer, prompt: str, before: Sequence[int] = ()) -> list[int]:
    """Ids of a prompt with the tokenizer's own opening mark, if it has one, and without the
    closing one that it adds; a mark that the text itself ends with stays. `before` stands between
    the opening mark and the prompt."""
    opening = opening_of(tokenizer)
    return [*opening, *before, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]


def opening_of(tokenizer: Tokenizer) -> list[int]:
    """The ids that a tokenizer puts before every text."""
    kept = getattr(tokenizer, "_tsugiki_opening", None)
    if kept is None:
        text_ids, all_ids = (
            list(tokenizer("犬", add_special_tokens=added)["input_ids"]) for added in (False, True)
        )
        starts = [
            index
            for index in range(len(all_ids) - len(text_ids) + 1)
            if all_ids[index : index + len(text_ids)] == text_ids
        ]
        if not starts:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path}: adds more to a text than marks around it "
                f"({text_ids} becomes {all_ids}), which is not implemented"
            )
        kept = all_ids[: starts[0]]
        setattr(tokenizer, "_tsugiki_opening", kept)  # noqa: B010 (no attribute of its face)
    return list(kept)


def ending_of(tokenizer: Tokenizer, *, chat: bool, stops: Collection[int] = ()) -> Ending:
    """Where an answer ends under this tokenizer; `stops` are the ids that the model's own settings
    name.

    In a conversation it is as the template closes an assistant's turn: up to the first mark in
    what follows the text. Else the EOS token.
    """
    ends = frozenset({int(tokenizer.eos_token_id), *stops})
    closing = _closing_of(tokenizer, ends) if chat else ()
    ids = closing or (int(tokenizer.eos_token_id),)
    return Ending(ids=ids, stops=ends | {ids[-1]})


def control_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids of a tokenizer's control tokens: those with a role, and those that were added as
    special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {
        *tokenizer.all_special_ids,
        *(token for token, token_text in added.items() if token_text.special),
    }


def _closing_of(tokenizer: Tokenizer, ends: Collection[int]) -> tuple[int, ...]:
    """The ids that a chat template puts after an assistant's text, up to the first end or control
    token; none where there is none."""
    answer = "答え"
    try:
        said = conversation_text(
            tokenizer,
            [{"role": "user", "content": "問い"}, {"role": "assistant", "content": answer}],
            "a turn of the assistant",
            opened=False,
        )
    except ModelError:
        return ()  # a template of questions alone
    marks = {*ends, *control_ids(tokenizer)}
    after = (
        list(
            tokenizer(said[said.rindex(answer) + len(answer) :], add_special_tokens=False)[
                "input_ids"
            ]
        )
        if answer in said
        else []
    )
    first = next((index for index, token in enumerate(after) if token in marks), None)
    return () if first is None else tuple(after[: first + 1])


def _prompt_ids(
    tokenizer: Tokenizer, task: Task, example: Example, shots: Sequence[Example] = ()
) -> list[int]:
    """The prompt, with worked examples before it as a tuned model is taught them: prompt, answer,
    EOS token (in a conversation: earlier turns)."""
    text = render(task.template, example)
    shown = [(shot, render(task.template, shot)) for shot in shots]
    if task.format == CHAT:
        return chat_ids_of(tokenizer, example, text, shown)
    before: list[int] = []
    for shot, said in shown:
        before += tokenizer(said, add_special_tokens=False)["input_ids"]
        before += target_ids_of(tokenizer, shot.target)
    return prompt_ids_of(tokenizer, text, before)


def target_ids_of(tokenizer: Tokenizer, target: str, ending: Ending | None = None) -> list[int]:
    """The answer and its end; by default the tokenizer's EOS token."""
    ending = ending or ending_of(tokenizer, chat=False)
    return [*tokenizer(target, add_special_tokens=False)["input_ids"], *ending.ids]


def tokenize(
    tokenizer: Tokenizer,
    task: Task,
    examples: Sequence[Example],
    max_length: int,
    max_new_tokens: int | None = None,
    *,
    stops: Collection[int] = (),
    leave_out: list[str] | None = None,
    shots: Sequence[Example] = (),
) -> list[Tokens]:
    """Rows as ids, none longer than `max_length`: the field `cut` of the task gives way, the
    answer never does.

    Room for `max_new_tokens` (default: the task's) is kept free in every prompt, in training as in
    inference, so that both see the same ids. With `leave_out` the rows that do not fit are left
    out, and their ids are added to that list. Before each prompt stand as many `shots` as fit: they
    are never cut, and cut nothing.
    """
    ending = ending_of(tokenizer, chat=task.format == CHAT, stops=stops)
    rows = []
    for example in examples:
        try:
            rows.append(
                tokenize_one(
                    tokenizer,
                    task,
                    example,
                    max_length,
                    max_new_tokens,
                    ending=ending,
                    shots=shots,
                )
            )
        except TooLong:
            if leave_out is None:
                raise
            leave_out.append(example.id)
    return rows


def tokenize_one(
    tokenizer: Tokenizer,
    task: Task,
    example: Example,
    max_length: int,
    max_new_tokens: int | None = None,
    *,
    ending: Ending | None = None,
    shots: Sequence[Example] = (),
) -> Tokens:
    """One row as ids; see `tokenize`. Raises `TooLong` for a row that does not fit and may not be
    cut."""
    ending = ending or ending_of(tokenizer, chat=task.format == CHAT)
    target = target_ids_of(tokenizer, example.target, ending)
    allowed = max_new_tokens or task.spec.max_new_tokens
    named = {"task": task.name, "row": example.id}
    if task.spec.closed and len(target) > allowed:
        counts = {"tokens": len(target), "allowed": allowed}
        raise DataError(Message("error.answer_too_long", answer=example.target, **counts, **named))
    room = max_length - max(allowed + 1, len(target))
    prompt = _prompt_ids(tokenizer, task, example)
    if not prompt:
        raise DataError(Message("error.no_prompt", **named))
    if len(prompt) <= room:
        for count in range(len(shots), 0, -1):
            longer = _prompt_ids(tokenizer, task, example, shots[:count])
            if len(longer) <= room:
                prompt = longer
                break
        else:
            count = 0
        return Tokens(
            example=example,
            prompt_ids=tuple(prompt),
            target_ids=tuple(target),
            ending=ending,
            shots=count,
        )
    cut = task.spec.cut
    if cut is None:
        helps = ["raise_length", "shorten_row", "leave_out"]
        helps += [] if task.spec.messages is not None else ["name_cut"]
        remedies = joined("list.alternatives", (Message(f"error.{name}") for name in helps))
        counts = {"prompt": len(prompt), "length": max_length, "room": max(room, 0)}
        raise TooLong(Message("error.too_long", remedies=remedies, **counts, **named))
    ids = tuple(_shorten(tokenizer, task, example, cut, room))
    return Tokens(
        example=example, prompt_ids=ids, target_ids=tuple(target), ending=ending, was_cut=True
    )


def _shorten(tokenizer: Tokenizer, task: Task, example: Example, cut: str, room: int) -> list[int]:
    """The longest prompt of a row whose field `cut` gives way that fits into `room` tokens."""

    def ids(each: Example) -> list[int]:
        return _prompt_ids(tokenizer, task, each)

    return ids(shortened(lambda each: len(ids(each)), task.name, example, cut, room))


def shortened(
    length_of: Callable[[Example], int], task: str, example: Example, cut: str, room: int
) -> Example:
    """The row with the longest beginning of the field `cut` that fits into `room` tokens (binary
    search over characters), by the length of what is read of it."""
    text = example.fields[cut]

    def begun(length: int) -> Example:
        return replace(example, fields={**example.fields, cut: text[:length]})

    low, high = 0, len(text)
    if length_of(begun(0)) > room:
        named = {"task": task, "row": example.id, "field": cut}
        raise TooLong(Message("error.too_long_without", room=room, **named))
    while high - low > 1:
        middle = (low + high) // 2
        if length_of(begun(middle)) <= room:
            low = middle
        else:
            high = middle
    return begun(low)


def answer_text(tokenizer: Tokenizer, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> str:
    """What was generated: decode(prompt + answer) without decode(prompt), so that joints decode as
    in running text. Only padding is dropped (the caller drops the end): other control tokens are
    part of what the model said, and label words may be such."""
    padding = (
        tokenizer.pad_token_id
        if tokenizer.pad_token_id not in (tokenizer.unk_token_id, None)
        else -1
    )
    said = [token for token in answer_ids if token != padding]
    before = tokenizer.decode(list(prompt_ids), skip_special_tokens=False)
    both = tokenizer.decode([*prompt_ids, *said], skip_special_tokens=False)
    return (
        both[len(before) :]
        if both.startswith(before)
        else tokenizer.decode(said, skip_special_tokens=False)
    )
