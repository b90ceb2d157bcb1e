"""TOML files and `--set` changes, read into the schemas of `config`; every mistake of a file is
reported at once, with its place."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tsugiki.errors import ConfigError, TsugikiError, did_you_mean, system_reason
from tsugiki.words import Message, joined

T = TypeVar("T", bound=BaseModel)
# Of pydantic's kinds of mistakes, those whose sentence stands under [must], with their own values.
PLAIN_RULES = (
    "missing", "int_type", "int_parsing", "int_from_float", "float_type", "float_parsing",
    "finite_number", "string_type", "bool_type", "bool_parsing", "literal_error", "greater_than",
    "greater_than_equal", "less_than", "less_than_equal", "tuple_type",
)  # fmt: skip
Given = Mapping[str, Any]
"""What a TOML file says, before a schema has read it."""


def parse(
    schema: type[T], given: Mapping[str, Any], where: str, error: type[TsugikiError] = ConfigError
) -> T:
    """Validates `given`; every mistake stands in one message, with the place and what is known
    there."""
    _refuse_broken_text(given, where, error)
    try:
        return schema.model_validate(given)
    except ValidationError as broken:
        mistakes = broken.errors()
        inner = [
            mistake
            for mistake in mistakes
            if not any(
                other is not mistake and other["loc"][: len(mistake["loc"])] == mistake["loc"]
                for other in mistakes
            )
        ]
        lines = [_said(schema, mistake) for mistake in inner]
        if len(lines) == 1:
            raise error(Message("error.at", where=where, reason=lines[0])) from None
        mistakes_text = joined("list.bar", lines)
        raise error(
            Message("error.mistakes", where=where, count=len(lines), mistakes=mistakes_text)
        ) from None


def _refuse_broken_text(given: Any, where: str, error: type[TsugikiError]) -> None:
    """Raises for a text that no file system and no tokenizer takes: a NUL, or bytes that were no
    UTF-8."""
    if isinstance(given, Mapping):
        for key, value in given.items():
            _refuse_broken_text(key, where, error)
            _refuse_broken_text(value, where, error)
    elif isinstance(given, (list, tuple)):
        for value in given:
            _refuse_broken_text(value, where, error)
    elif isinstance(given, str) and any(
        char == "\0" or "\ud800" <= char <= "\udfff" for char in given
    ):
        raise error(Message("must.broken_text", where=where, given=repr(given)))


def _said(schema: type[BaseModel], mistake: Mapping[str, Any]) -> str:
    """One mistake with its place."""
    said, kind = _rule(schema, mistake), mistake["type"]
    if kind not in ("extra_forbidden", "missing", "value_error"):
        said = Message("must.got", rule=said, given=_short(mistake["input"]))
    where = ".".join(str(part) for part in mistake["loc"])
    return Message("error.at", where=where, reason=said) if where else said


def _rule(schema: type[BaseModel], mistake: Mapping[str, Any]) -> str:
    """What must hold."""
    kind, values = mistake["type"], mistake.get("ctx", {})
    if kind == "extra_forbidden":
        *path, name = mistake["loc"]
        return Message("must.unknown_key", hint=did_you_mean(str(name), _keys_at(schema, path)))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return Message("must.table")
    if kind == "too_long":
        return Message("must.too_long", most=values["max_length"])
    if kind == "too_short":
        return Message("must.too_short", least=values["min_length"])
    if kind in PLAIN_RULES:
        return Message(f"must.{kind}", **values)
    if kind == "value_error" and isinstance(said := values["error"].args[0], Message):
        return said
    message: str = mistake["msg"]
    return message.removeprefix("Value error, ").replace("Input should be", "must be")


def _short(value: Any) -> str:
    try:
        said = repr(value)
    except ValueError:  # an integer of thousands of digits
        return Message("must.value_of_type", kind=type(value).__name__)
    return said if len(said) <= 80 else said[:77] + "…"


def _keys_at(schema: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Field names of the schema that `path` leads to, through records, tuples and dictionaries of
    records."""
    target: Any = schema
    for part in path:
        field = (
            target.model_fields.get(part)
            if isinstance(target, type) and issubclass(target, BaseModel)
            else None
        )
        if field is not None:
            target = field.annotation
        while not (isinstance(target, type) and issubclass(target, BaseModel)) and getattr(
            target, "__args__", None
        ):
            records = [
                a
                for a in target.__args__
                if a is not type(None) and a is not Ellipsis and a is not str
            ]
            if not records:
                return []
            target = records[-1]
    return (
        list(target.model_fields)
        if isinstance(target, type) and issubclass(target, BaseModel)
        else []
    )


def read_toml(path: Path, error: type[TsugikiError] = ConfigError) -> dict[str, Any]:
    """The content of a TOML file; a missing or broken file is the user's error, with the line."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise error(Message("error.no_file", path=path)) from None
    except OSError as broken:
        said = system_reason(broken)
        raise error(Message("error.unreadable", path=path, reason=said)) from None
    except UnicodeDecodeError:
        raise error(Message("error.toml_encoding", path=path)) from None
    except RecursionError:
        raise error(Message("error.toml_nested", path=path)) from None
    except ValueError as broken:  # TOMLDecodeError, or a number of thousands of digits
        raise error(Message("error.toml_syntax", path=path, reason=broken)) from None
    if not content:
        raise error(Message("error.empty_file", path=path))
    return content


def is_task_file(given: Mapping[str, Any]) -> bool:
    if any(key in given for key in ("methods", "model", "models", "task", "tasks", "train")):
        return False
    return any(key in given for key in ("fields", "messages", "formatting"))


def refuse_task_file(given: Mapping[str, Any], where: str) -> None:
    """Raises `ConfigError` with what to do when a task file was given for a run or study file."""
    if is_task_file(given):
        raise ConfigError(Message("error.task_file", where=where))


def beside(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Paths of tasks, data and models that are not there from the current folder but beside the
    file that names them."""

    def placed(table: Any, keys: Sequence[str] = ("name", "path", "data_dir")) -> Any:
        if not isinstance(table, Mapping):
            return table
        moved = dict(table)
        for key in keys:
            value = moved.get(key)
            if isinstance(value, str) and not Path(value).exists() and (folder / value).exists():
                moved[key] = str(folder / value)
        return moved

    result = dict(given)
    for key in ("task", "model"):
        if key in result:
            result[key] = placed(result[key])
    if isinstance(result.get("adapter"), str):
        result = placed(result, ("adapter",))
    if isinstance(result.get("methods"), list):
        result["methods"] = [
            {**there, "model": placed(there["model"])}
            if isinstance(there, Mapping) and isinstance(there.get("model"), Mapping)
            else there
            for method in result["methods"]
            for there in [placed(method, ("adapter", "model"))]
        ]
    for key in ("tasks", "models", "forgetting"):
        if isinstance(result.get(key), list):
            named = [{"name": each} if isinstance(each, str) else each for each in result[key]]
            moved = [placed(each, ("name", "path", "data_dir", "text")) for each in named]
            result[key] = [
                there["name"] if isinstance(given, str) else there
                for given, there in zip(result[key], moved, strict=True)
            ]
    return result


def override(given: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Applies `a.b=value` changes; the value is read as TOML, and as a plain string when it is
    none."""
    result: dict[str, Any] = copy.deepcopy(dict(given))
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(Message("error.set_form", change=change))
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text
        *parents, last = name.strip().split(".")
        if not all([*parents, last]):
            raise ConfigError(Message("error.set_form", change=change))
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(Message("error.set_table", change=change, name=parent))
        target[last] = value
    return result
