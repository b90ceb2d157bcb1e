"""Rows as other tools write them, by name: Alpaca, ShareGPT, OpenAI's messages. Each becomes a row
of ours: `instruction` and `output`, or `messages`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tsugiki.config.task import Formatting
from tsugiki.errors import DataError

# What a task file of this kind reads of a row of ours.
READS: dict[Formatting, dict[str, Any]] = {
    "alpaca": {"fields": ["instruction"], "target": "output", "kind": "generation"},
    "sharegpt": {"messages": "messages", "kind": "generation"},
    "openai": {"messages": "messages", "kind": "generation"},
}
ROLE_OF = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}


def formatting_of(names: Sequence[str]) -> Formatting | None:
    """Which tool's rows have these columns."""
    if {"instruction", "output"} <= set(names):
        return "alpaca"
    if "conversations" in names:
        return "sharegpt"
    return "openai" if "messages" in names else None


def as_ours(row: Mapping[str, Any], formatting: Formatting | None, where: str) -> Mapping[str, Any]:
    """The row as a task of that kind reads it. Raises `DataError` naming what it lacks."""
    if formatting == "alpaca":
        if row.get("history"):
            raise DataError(
                f"{where}: has earlier turns (history), which Alpaca's rows are not read with. "
                'Write it as messages, with formatting = "openai"'
            )
        parts = [row.get("system"), row.get("instruction"), row.get("input")]
        return {**row, "instruction": "\n\n".join(str(part) for part in parts if part)}
    if formatting == "sharegpt":
        return {**row, "messages": _turns(row, where)}
    return row


def _turns(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    given = row.get("conversations")
    if not isinstance(given, list) or not all(isinstance(turn, Mapping) for turn in given):
        raise DataError(f'{where}: field "conversations" must be a list of {{from, value}}')
    turns = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for turn in given:
        said = turn.get("from")
        if said not in ROLE_OF:
            raise DataError(
                f'{where}: a turn is from "{said}". Known: {", ".join(ROLE_OF)}; calls of tools '
                "are not read"
            )
        turns.append({"role": ROLE_OF[said], "content": turn.get("value")})
    return turns
