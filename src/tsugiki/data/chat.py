"""Conversations by a tokenizer's chat template: the prompt before an answer, under a clock that
stands still."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from tsugiki.data.example import Example
from tsugiki.data.tokenizer import Tokenizer
from tsugiki.errors import ModelError, first_line
from tsugiki.words import Message

TEMPLATE_DATE = datetime(
    2024,
    7,
    26,
    # what a chat template that asks for the date is told, always: the date that Llama 3.1's own
    # falls back on
)


def chat_ids_of(
    tokenizer: Tokenizer, example: Example, text: str, shots: Sequence[tuple[Example, str]] = ()
) -> list[int]:
    """Ids of the conversation before the answer by the tokenizer's chat template, opened for the
    assistant; `text` is the user's message where there is none. `shots` (with their texts) are
    earlier turns of it.

    Raises:
        ModelError: the tokenizer has no chat template, or the template refuses these turns.
    """
    turns = []
    for shot, message in shots:
        turns += [*_turns(shot, message), {"role": "assistant", "content": shot.target}]
    turns += _turns(example, text)
    return list(
        tokenizer(
            conversation_text(tokenizer, turns, f"row {example.id}", opened=True),
            add_special_tokens=False,
        )["input_ids"]
    )


def _turns(example: Example, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in example.turns] or [
        {"role": "user", "content": text}
    ]


def conversation_text(
    tokenizer: Tokenizer, turns: list[dict[str, str]], what: str, *, opened: bool
) -> str:
    """The template's text of these turns; `opened` for an answer. Raises `ModelError` where there
    is no template, or where it refuses `what`."""
    if not tokenizer.chat_template:
        raise ModelError(Message("error.no_chat_template", name=tokenizer.name_or_path))
    try:
        with _stopped_clock():
            said: str = tokenizer.apply_chat_template(
                turns, add_generation_prompt=opened, tokenize=False
            )
    except Exception as broken:  # templates raise what they like
        raise ModelError(
            f"tokenizer {tokenizer.name_or_path}: its chat template refuses {what}: "
            f"{first_line(broken)}"
        ) from broken
    return said


class _StoppedClock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> _StoppedClock:
        return cls(*TEMPLATE_DATE.timetuple()[:6])


@contextmanager
def _stopped_clock() -> Iterator[None]:
    """Within it `strftime_now` of chat templates tells `TEMPLATE_DATE`: else a run would see other
    prompts tomorrow. (transformers hands no other clock to a template, nor takes one.)"""
    from transformers.utils import chat_template_utils

    code: Any = chat_template_utils
    before = code.datetime
    code.datetime = _StoppedClock
    try:
        yield
    finally:
        code.datetime = before
