"""Rows that are conversations: an example for each turn of the assistant, or for the next one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tsugiki.config.task import TaskSpec
from tsugiki.data.example import Example
from tsugiki.data.text import as_text
from tsugiki.errors import DataError, did_you_mean
from tsugiki.words import Message

ROLES = ("system", "user", "assistant")


def conversation(where: str, number: str, row: Mapping[str, Any], spec: TaskSpec) -> list[Example]:
    """One example for each assistant turn: loss on all of them, and on nothing else. The turns of
    one conversation are a group."""
    turns = _turns(where, row, spec)
    examples = []
    for index, (role, content) in enumerate(turns):
        if role != "assistant":
            continue
        if index == 0 or not content.strip():
            raise DataError(
                f"{where}: turn {index + 1} is an assistant's with "
                f"{'no prompt before it' if index == 0 else 'no text'}"
            )
        examples.append(_turn_example(f"{number}.{index}", number, turns[:index], content))
    if not examples:
        raise DataError(f"{where}: no assistant turn, so there is nothing to learn from it")
    return examples


def open_turn(where: str, number: str, row: Mapping[str, Any], spec: TaskSpec) -> Example:
    """What an assistant is to answer next; a last turn that is the assistant's is the target."""
    turns = _turns(where, row, spec)
    target = turns.pop()[1] if turns and turns[-1][0] == "assistant" else ""
    if not turns:
        raise DataError(f"{where}: no turn to be answered")
    return _turn_example(number, number, turns, target)


def _turn_example(name: str, group: str, turns: Sequence[tuple[str, str]], target: str) -> Example:
    before = "\n".join(f"{who}: {text}" for who, text in turns) + "\n"
    fields = {"conversation": before}
    return Example(id=name, fields=fields, target=target, group=group, turns=tuple(turns))


def _turns(where: str, row: Mapping[str, Any], spec: TaskSpec) -> list[tuple[str, str]]:
    """(role, text) of a conversation."""
    assert spec.messages is not None, "only for tasks with messages"
    given = row.get(spec.messages)
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = None
    if not isinstance(given, list) or not all(
        isinstance(turn, Mapping) and isinstance(turn.get("content"), str) for turn in given
    ):
        raise DataError(
            f'{where}: field "{spec.messages}" must be a list of {{role, '
            f"content}}.{did_you_mean(spec.messages, row)}"
        )
    turns = [(str(turn.get("role")), str(turn["content"])) for turn in given]
    for index, (_, content) in enumerate(turns, 1):
        try:
            as_text(content)
        except ValueError as said:
            bad = {"turn": index, "reason": said.args[0]}
            raise DataError(Message("error.bad_turn", where=where, **bad)) from None
    for role, _ in turns:
        if role not in ROLES:
            raise DataError(
                f'{where}: role "{role}" is none of {", ".join(ROLES)}.{did_you_mean(role, ROLES)}'
            )
    return turns
