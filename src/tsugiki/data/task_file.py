"""A task file as people write it becomes a whole one: what it leaves out follows from its data.

    fields, target, files  →  name, kind, labels, metric, prompt, answer's length, splits

What is found is a rule of the data alone, so that the same files always mean the same task.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from tsugiki.config.task import METRICS_OF, FileSpec, TaskSpec
from tsugiki.data.formatting import READS, as_ours
from tsugiki.data.rows import read_rows
from tsugiki.data.sources import locate
from tsugiki.data.text import as_text
from tsugiki.errors import DataError, did_you_mean
from tsugiki.toml import parse, read_toml
from tsugiki.words import Message

SHORT = ("prompt", "ratio", "seed", "encoding")  # written for what a whole file says at length
RATIO = (8, 1, 1)
# Answers of so few kinds, each given twice or more on average, are labels; others are free text.
MOST_LABELS = 20
LONGEST_FREE = 512
PARTS = ("train", "validation", "test")
_FOUND: dict[tuple[Any, ...], TaskSpec] = {}


def read_task(path: Path, data_dir: Path | None = None) -> TaskSpec:
    """The task of a file, with all that it leaves out.

    Raises:
        DataError: a key is not known, something is missing that no data tells, or the data that
            tell cannot be read.
    """
    given = read_toml(path, DataError)
    _refuse_unknown(given, path)
    written = _with_splits(_with_files(_with_name(given, path)), path)
    if not _left_open(written):
        return _whole(written, path)
    files = [(spec, locate(spec, path.parent, data_dir)) for spec in _file_specs(written, path)]
    seen = [(str(there), there.stat().st_mtime_ns, there.stat().st_size) for _, there in files]
    key = (str(path.resolve()), sha256(path.read_bytes()).digest(), *seen)
    if key not in _FOUND:
        _FOUND[key] = _whole(_with_what_data_tell(written, _rows(written, files), path), path)
    return _FOUND[key]


def _refuse_unknown(given: Mapping[str, Any], path: Path) -> None:
    known = [*TaskSpec.model_fields, *SHORT]
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise DataError(Message("error.task_key", path=path, name=name, hint=hint))
    if "prompt" in given and "formats" in given:
        raise DataError(f"{path}: prompt, formats: one of them: prompt is a single format")
    if "splits" in given and ("ratio" in given or "seed" in given):
        raise DataError(f"{path}: ratio, seed: splits says already which rows are which; drop them")
    if given.get("messages") or given.get("formatting") in ("sharegpt", "openai"):
        if "prompt" in given:
            raise DataError(f"{path}: prompt: a task with messages does not read it; remove it")
    elif given.get("formatting") is None:
        for name in ("fields", "target"):
            if not given.get(name):
                raise DataError(Message("error.task_missing", path=path, name=name))
    if not given.get("files") and not given.get("versions"):
        raise DataError(Message("error.task_files", path=path))


def _with_name(given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Also what other tools' rows are called, and what nobody has to say."""
    made = dict(given)
    formatting = made.get("formatting")
    if formatting in READS:
        made = {**READS[formatting], **made}
    made.setdefault("name", name_of(path.stem))
    made.setdefault("title", path.stem)
    for name in ("licence", "citation"):
        made.setdefault(name, "")
    if isinstance(made.get("labels"), list):
        made["labels"] = {str(label): str(label) for label in made["labels"]}
    if made.get("choices") and isinstance(made.get("fields"), list):
        made["fields"] = list(dict.fromkeys([*made["fields"], *made["choices"]]))
    return made


def stem_of(path: Path) -> str:
    """`rows` of `rows.csv` and of `rows.csv.gz`."""
    return path.name.split(".")[0]


def name_of(stem: str) -> str:
    """A task's name from a file's: small letters, digits and `_`."""
    name = re.sub("[^a-z0-9]+", "_", stem.lower()).strip("_")
    return name or "task_" + sha256(stem.encode()).hexdigest()[:6]


def _with_files(given: dict[str, Any]) -> dict[str, Any]:
    """`files = "rows.csv"` and `files = { train = "a.csv", … }` at length."""
    files = given.get("files")
    if isinstance(files, str):
        files = {"all": files}
    if not isinstance(files, Mapping):
        return given
    files = {
        name: {"path": each} if isinstance(each, str) else each for name, each in files.items()
    }
    if "encoding" in given:
        files = {
            name: {"encoding": given["encoding"], **each} if isinstance(each, Mapping) else each
            for name, each in files.items()
        }
    return {**given, "files": files}


def _with_splits(given: dict[str, Any], path: Path) -> dict[str, Any]:
    if "splits" in given:
        names = list(given["splits"]) if isinstance(given["splits"], Mapping) else [""]
        return {"default_split": next(iter(names), ""), **given}
    files = set(given["files"]) if isinstance(given.get("files"), Mapping) else set()
    ratio, seed = _ratio(given, path), given.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise DataError(f"{path}: seed: must be a whole number, got {seed!r}")
    whole = {name: {"files": name} for name in PARTS if name in files}
    parts = {name: share for name, share in zip(PARTS, ratio, strict=True) if name not in whole}
    if files == {"train", "validation", "test"}:
        split = whole
    elif len(files) == 1 and not whole - {"train": 0}.keys():
        split = _cut(files.pop(), dict(zip(PARTS, ratio, strict=True)), seed)
    elif "train" in whole and files == whole.keys():
        split = {**whole, **_cut("train", {"train": ratio[0], **parts}, seed)}
    else:
        raise DataError(
            f"{path}: files are called {', '.join(sorted(files))}: call them train, validation and "
            "test, give one file to be split, or say under [splits] which is which"
        )
    return {**given, "splits": {"standard": split}, "default_split": "standard"}


def _ratio(given: Mapping[str, Any], path: Path) -> tuple[float, ...]:
    ratio = given.get("ratio", RATIO)
    numbers = isinstance(ratio, list | tuple) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and each > 0 for each in ratio
    )
    if not numbers or len(ratio) != len(PARTS):
        raise DataError(
            f"{path}: ratio: must be three numbers above 0, for train, validation and test, like "
            f"[8, 1, 1], got {ratio!r}"
        )
    return tuple(map(float, ratio))


def _cut(file: str, parts: Mapping[str, float], seed: int) -> dict[str, dict[str, Any]]:
    """The parts of one file, each a share of its rows."""
    split, start, whole = {}, 0.0, sum(parts.values())
    for name, size in parts.items():
        end = start + size / whole
        split[name] = {"files": file, "share": [round(start, 6), round(end, 6)], "seed": seed}
        start = end
    return split


def _left_open(given: Mapping[str, Any]) -> bool:
    """Whether there is something that only the data tell."""
    if "max_new_tokens" not in given:
        return True
    named = given.get("labels") or given.get("choices") or given.get("messages")
    return not named and given.get("kind", "classification") == "classification"


def _file_specs(given: Mapping[str, Any], path: Path) -> list[FileSpec]:
    versions = given.get("versions") or {}
    files = {**(given.get("files") or {}), **versions.get(given.get("default_version"), {})}
    return [
        parse(FileSpec, spec, f"{path}: files.{name}", DataError) for name, spec in files.items()
    ]


def _rows(given: Mapping[str, Any], files: Iterable[tuple[FileSpec, Path]]) -> list[Any]:
    return [
        as_ours(row, given.get("formatting"), f"{there} row {number}")
        for spec, there in files
        for number, row in read_rows(there, spec.encoding)
    ]


def _with_what_data_tell(given: Mapping[str, Any], rows: list[Any], path: Path) -> dict[str, Any]:
    made = dict(given)
    answers = [] if made.get("messages") else values_of(rows, made["target"])
    if not made.get("messages") and not made.get("choices") and not made.get("labels"):
        few = "classification" if are_labels(answers) else "generation"
        if made.setdefault("kind", few) == "classification":
            made["labels"] = _labels(answers, made["target"], path)
    made.setdefault("max_new_tokens", _longest(made, rows, answers))
    return made


def _whole(given: Mapping[str, Any], path: Path) -> TaskSpec:
    """What follows from the rest of the file."""
    made = {name: value for name, value in given.items() if name not in SHORT}
    kind = "classification" if made.get("labels") else "generation"
    made.setdefault("kind", "choice" if made.get("choices") else kind)
    if isinstance(made["kind"], str) and made["kind"] in METRICS_OF:
        made.setdefault("metric", METRICS_OF[made["kind"]][0])
    if not made.get("messages"):
        if "formats" not in made:
            made["formats"] = {"plain": given.get("prompt") or default_prompt(made)}
        if isinstance(made["formats"], Mapping) and "paper" not in made["formats"]:
            made.setdefault("default_format", next(iter(made["formats"]), ""))
    return parse(TaskSpec, made, str(path), DataError)


def values_of(rows: Iterable[Mapping[str, Any]], *names: str) -> list[str]:
    """The texts of these fields; what is no text is named when its row is read."""
    texts = []
    for row in rows:
        for name in names:
            try:
                texts.append(as_text(row.get(name), label=True))
            except ValueError:
                continue
    return texts


def are_labels(answers: list[str]) -> bool:
    """Whether answers are a few words that come again, or free text."""
    different = set(answers)
    return 1 < len(different) <= MOST_LABELS and len(answers) >= 2 * len(different)


def _labels(answers: list[str], target: str, path: Path) -> dict[str, str]:
    labels = sorted({answer for answer in answers if answer.strip()})
    if len(labels) > 5 * MOST_LABELS:
        raise DataError(
            f'{path}: {len(labels)} different answers stand in "{target}": too many to be labels. '
            'Is it kind = "generation"? Else list them under [labels]'
        )
    return {label: label for label in labels}


def _longest(given: Mapping[str, Any], rows: list[Any], answers: list[str]) -> int:
    """Tokens that any answer needs: of candidates at most their bytes, of free text twice the
    longest one's characters."""
    if not given.get("choices") and not given.get("labels"):
        longest = max((len(answer) for answer in answers), default=LONGEST_FREE // 4)
        return min(LONGEST_FREE, max(16, 2 * longest))
    words = values_of(rows, *given["choices"]) if given.get("choices") else given["labels"].values()
    return 2 + max((len(text.encode()) for text in words), default=6)


def default_prompt(given: Mapping[str, Any]) -> str:
    """Every field on a line of its own after its name, then the answer's name."""
    if given.get("formatting") == "alpaca":
        return "{instruction}\n\n### 応答:\n"
    lines = [f"{_escaped(name)}: {{{name}}}\n" for name in given["fields"]]
    return "".join(lines) + f"{_escaped(given['target'])}: "


def _escaped(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")
