"""A campaign against every entrance: each input says before it runs whether it must be read or refused.

    python -m tests.campaign.doors [--seed 0] [--share 1.0] [--out campaign/doors.jsonl]

Inputs are drawn from a seed and made one after another: a stopped campaign of the same code goes on where it was. Outcomes:

    read, refused      exit code 0; exit code 2 with one line that says what is wrong
    traceback, hang    a bug of ours; more than `HANG_S` seconds
    lines              refused, but not in one line

The table is written to docs/reliability.md. The exit code is 1 unless every input ended as it said.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.update(
    {
        "TSUGIKI_DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "OMP_NUM_THREADS": "1",
        "TSUGIKI_CPU_BF16": "0",
    }
)

import torch
from safetensors.torch import load_file, save_file

from tests import build

ROOT = Path(__file__).parents[2]
HANG_S = 30
Wanted = Literal["read", "refuse"]
Make = Callable[[Path, random.Random], list[str]]


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input: `make` writes its files into a folder and returns the command's arguments."""

    entrance: str
    name: str
    wanted: Wanted
    make: Make


def toml(given: dict[str, Any]) -> str:
    """A TOML file of plain values, tables last."""

    def value(one: Any) -> str:
        if isinstance(one, float):
            return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(one), repr(one))
        if isinstance(one, list):
            return "[" + ", ".join(map(value, one)) + "]"
        if isinstance(one, dict):
            return (
                "{"
                + ", ".join(
                    f"{json.dumps(key, ensure_ascii=False)} = {value(part)}"
                    for key, part in one.items()
                )
                + "}"
            )
        return json.dumps(one, ensure_ascii=False)

    flat = [f"{json.dumps(key, ensure_ascii=False)} = {value(one)}" for key, one in given.items()]
    return "\n".join(flat) + "\n"


TASK: dict[str, Any] = {
    "name": "tiny", "title": "t", "kind": "classification", "metric": "accuracy", "licence": "CC0", "citation": "none", "fields": ["a", "b"],
    "target": "label", "group": "image", "max_new_tokens": 6, "default_split": "s", "labels": {"e": "含意", "n": "中立", "c": "矛盾"},
    "formats": {"paper": "文1: {a}[SEP]文2: {b}[SEP]"}, "files": {part: {"path": f"{part}.jsonl"} for part in ("train", "validation", "test")},
    "splits": {"s": {part: {"files": part} for part in ("train", "validation", "test")}},
}  # fmt: skip
RUN: dict[str, Any] = {
    "model": {"path": "model"}, "task": {"name": "task.toml"}, "lora": {"targets": "q+v", "rank": 2}, "train": {"learning_rate": 1e-3, "max_length": 128},
}  # fmt: skip
STUDY: dict[str, Any] = {
    "name": "s", "models": [{"path": "model"}], "tasks": [{"name": "task.toml"}], "train": {"epochs": 1},
    "methods": [{"name": "LoRA", "kind": "lora", "grid": {"learning_rate": [1e-3], "rank": [2]}}, {"name": "FT", "kind": "full", "grid": {"learning_rate": [1e-4]}}],
}  # fmt: skip


def changed(given: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a.b.c; `KeyError` takes the key away."""
    copy = json.loads(json.dumps(given))
    *parents, last = place.split(".")
    here = copy
    for parent in parents:
        here = here[int(parent)] if isinstance(here, list) else here.setdefault(parent, {})
    if value is KeyError:
        del here[last]
    else:
        here[last] = value
    return copy


def rows(part: str, number: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "a": f"犬が{part}{n}で走る",
            "b": f"動物が外に{n}",
            "label": "enc"[n % 3],
            "image": f"{part}{n}",
        }
        for n in range(number)
    ]


def write_rows(folder: Path, part: str, lines: list[Any]) -> None:
    text = "".join(
        (one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) + "\n"
        for one in lines
    )
    (folder / f"{part}.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))


def ground(folder: Path, task: dict[str, Any] = TASK) -> None:
    """A task with its data and a model: all of it right."""
    (folder / "task.toml").write_text(toml(task), encoding="utf-8")
    for part in ("train", "validation", "test"):
        write_rows(folder, part, rows(part))


def with_model(folder: Path) -> Path:
    return Path(shutil.copytree(_model(), folder / "model"))


_KEPT: dict[str, Path] = {}


def _model() -> Path:
    if "model" not in _KEPT:
        _KEPT["model"] = build.save(Path(tempfile.mkdtemp()) / "model", "llama")
    return _KEPT["model"]


# ---- the generators ----------------------------------------------------------------------------------------------

ODD_VALUES: list[Any] = [
    True,
    False,
    float("nan"),
    float("inf"),
    -1,
    0,
    10**24,
    1e24,
    "",
    "drei",
    [],
    [1],
    {},
    {"a": 1},
    "x" * 5000,
    "１２",
    "\u202e",
]


def task_inputs() -> Iterator[Input]:
    """A key away, a key too many, a value of another kind, formats and patterns that Python would take."""
    for key in ("fields", "target", "files"):
        yield _task(f"without {key}", "refuse", key, KeyError)
    for key in (
        "name",
        "title",
        "kind",
        "metric",
        "licence",
        "citation",
        "max_new_tokens",
        "default_split",
        "labels",
        "formats",
        "splits",
        "group",
    ):
        yield _task(f"without {key}", "read", key, KeyError)
    for place, value in (
        ("nam", "x"),
        ("labels.x", 3),
        ("files.train.pth", "x"),
        ("splits.s.test.file", "x"),
        ("splits.s.tset", {"files": "test"}),
    ):
        yield _task(f"{place} = {value}", "refuse", place, value)
    for value in ODD_VALUES:
        for place in (
            "max_new_tokens",
            "fields",
            "target",
            "kind",
            "splits",
            "default_split",
            "formats",
            "id",
        ):
            yield _task(f"{place} = {str(value)[:20]!r}", "refuse", place, value)
    for text in (
        "",
        " ",
        "文",
        "{a",
        "a}",
        "{}",
        "{0}",
        "{a.b}",
        "{a[0]}",
        "{a!r}",
        "{a:>9}",
        "{a:>1000000000}",
        "{x}",
        "{a}{",
        "{a.__class__.__mro__}",
        "{ a }",
    ):
        yield _task(f"format {text!r}", "refuse", "formats", {"paper": text})
    for text in (
        "{a}",
        "{{{a}}}",
        "{a}{b}{a}",
        "{a}\n\t{b}",
        "💡{a}",
        "{a}[SEP]{b}</s>",
        "｛a｝{a}",
    ):
        yield _task(f"format {text!r}", "read", "formats", {"paper": text})
    for pattern, wanted in (
        ("(", "refuse"),
        ("x", "refuse"),
        ("([", "refuse"),
        ("(?P<n>.*", "refuse"),
        ("(.*)", "read"),
        ("(.)", "read"),
        ("(?:a)(b)?", "read"),
    ):
        yield _task(f"group_pattern {pattern!r}", wanted, "group_pattern", pattern)  # type: ignore[arg-type]
    for words in (
        {"e": "Ⅳ", "n": "IV", "c": "x"},
        {"e": "a ", "n": "a", "c": "x"},
        {"e": "", "n": "y", "c": "x"},
        {"e": "ｱ", "n": "ア", "c": "x"},
        {"e": "含意"},
    ):
        yield _task(f"labels {words}", "refuse", "labels", words)
    for words in (
        {"e": "Ⅳ", "n": "V", "c": "x"},
        {"e": "①", "n": "②", "c": "③"},
        {"e": "はい。", "n": "い い え", "c": "？"},
    ):
        yield _task(f"labels {words}", "read", "labels", words)


def _task(name: str, wanted: Wanted, place: str, value: Any) -> Input:
    def make(folder: Path, dice: random.Random) -> list[str]:
        ground(folder, changed(TASK, place, value))
        return ["check", "task.toml"]

    return Input(entrance="task file", name=name, wanted=wanted, make=make)


def data_inputs() -> Iterator[Input]:
    """A value of each kind in each field, files of each form, whole and broken."""
    values: list[tuple[str, Wanted]] = [
        ('"文"', "read"), ("3", "read"), ("3.5", "read"), ('"nan"', "read"), ('"②"', "read"), ('"\\ud83d\\ude00"', "read"), ('"a\\tb"', "read"), ('"</s>"', "read"),
        ("NaN", "refuse"), ("Infinity", "refuse"), ("-Infinity", "refuse"), ("null", "refuse"), ("true", "refuse"), ("1.0", "refuse"), ("1e400", "refuse"),
        ("[]", "refuse"), ("{}", "refuse"), ('["文"]', "refuse"), ('"\\ud83d"', "refuse"), ('"\\udc00x"', "refuse"), ('"\\u0000"', "refuse"), ("[" * 5000, "refuse"),
        ("1" * 5000, "refuse"), ('"文', "refuse"), ("nan", "refuse"), ("undefined", "refuse"), ("0x10", "refuse"),
    ]  # fmt: skip
    for text, wanted in values:
        for part in ("train", "validation", "test"):
            yield _lines(
                f"a = {text[:24]} in {part}",
                wanted,
                part,
                [f'{{"a": {text}, "b": "動物", "label": "e", "image": "x{part}"}}'],
            )
    for text, wanted in (
        ('"e"', "read"),
        ('"x"', "refuse"),
        ("1", "refuse"),
        ("NaN", "refuse"),
        ("null", "refuse"),
        ("true", "refuse"),
        ('"e "', "refuse"),
        ('"Ｅ"', "refuse"),
    ):
        yield _lines(
            f"label = {text}",
            wanted,
            "train",
            [f'{{"a": "一", "b": "二", "label": {text}, "image": "q"}}'],
        )  # type: ignore[arg-type]
    row = '{"a": "一", "b": "二", "label": "e", "image": "q"}'
    for name, lines, wanted in (
        ("an empty line", ["", row], "read"),
        ("white lines", ["  \t", row], "read"),
        ("a list", ["[1, 2]"], "refuse"),
        ("a number", ["3"], "refuse"),
        ("two objects on a line", [row + row], "refuse"),
        (
            "a key twice",
            ['{"a": "一", "a": "二", "b": "二", "label": "e", "image": "q"}'],
            "refuse",
        ),
        ("a field missing", ['{"a": "一", "label": "e", "image": "q"}'], "refuse"),
        ("more fields", ['{"a": "一", "b": "二", "label": "e", "image": "q", "z": null}'], "read"),
        ("both empty", ['{"a": "", "b": " ", "label": "e", "image": "q"}'], "refuse"),
        ("one empty", ['{"a": "", "b": "二", "label": "e", "image": "q"}'], "read"),
        ("single quotes", ["{'a': '一', 'b': '二', 'label': 'e', 'image': 'q'}"], "refuse"),
        ("a comma too many", [row[:-1] + ",}"], "refuse"),
    ):
        yield _lines(name, wanted, "train", lines)  # type: ignore[arg-type]
    for name, content, wanted in _files():
        yield _file(name, content, wanted)


def _lines(name: str, wanted: Wanted, part: str, lines: list[Any]) -> Input:
    def make(folder: Path, dice: random.Random) -> list[str]:
        ground(folder)
        kept = rows(part)
        place = dice.randint(0, len(kept))
        write_rows(folder, part, [*kept[:place], *lines, *kept[place:]])
        return ["check", "task.toml"]

    return Input(entrance="data", name=name, wanted=wanted, make=make)


def _files() -> Iterator[tuple[str, Callable[[str], tuple[str, bytes]], Wanted]]:
    """(name, part → (ending, content), wanted)"""
    header, cells = "a,b,label,image", [",".join(row.values()) for row in rows("x")]

    def csv(
        *lines: str, codec: str = "utf-8", end: str = "\n"
    ) -> Callable[[str], tuple[str, bytes]]:
        return lambda part: (
            "csv",
            (end.join(line.replace("x", part) for line in lines) + end).encode(codec),
        )

    yield "csv", csv(header, *cells), "read"
    yield "csv with a BOM", csv(header, *cells, codec="utf-8-sig"), "read"
    yield "csv with CRLF", csv(header, *cells, end="\r\n"), "read"
    yield "csv of an article", csv(header, "あ" * 140_000 + "x,二,e,x9", *cells), "read"
    yield "csv in CP932", csv(header, *cells, codec="cp932"), "read"
    yield "csv in EUC-JP", csv(header, *cells * 20, codec="euc_jp"), "refuse"
    yield "csv in UTF-16", csv(header, *cells, codec="utf-16"), "read"
    yield (
        "csv, a column twice",
        csv("a,b,label,image,a", *(line + ",z" for line in cells)),
        "refuse",
    )
    yield "csv, a cell too many", csv(header, cells[0] + ",z"), "refuse"
    yield "csv, a cell too few", csv(header, "一,二,e"), "refuse"
    yield (
        "csv by tabs",
        csv(header.replace(",", "\t"), *(line.replace(",", "\t") for line in cells)),
        "read",
    )
    yield "csv, a quote left open", csv(header, '"一,二,e,x'), "refuse"
    yield "csv, the header alone", csv(header), "refuse"
    yield (
        "csv, empty rows and columns",
        csv(header + ",,", *(f"{each},," for each in cells), ",,,,,"),
        "read",
    )
    yield (
        "csv, a value without a name",
        csv(header + ",", *(f"{each},z" for each in cells)),
        "refuse",
    )
    yield (
        "csv by gzip",
        lambda part: ("csv.gz", gzip.compress(csv(header, *cells)(part)[1])),
        "read",
    )
    yield (
        "csv by gzip, cut short",
        lambda part: ("csv.gz", gzip.compress(csv(header, *cells)(part)[1])[:-9]),
        "refuse",
    )
    yield "csv that is called gzip", lambda part: ("csv.gz", csv(header, *cells)(part)[1]), "refuse"
    tabs = [line.replace(",", "\t") for line in (header, *cells)]
    yield "tsv in CP932", lambda part: ("tsv", csv(*tabs, codec="cp932")(part)[1]), "read"
    yield "csv of nothing", lambda part: ("csv", b""), "refuse"
    array = lambda part: json.dumps(rows(part), ensure_ascii=False)  # noqa: E731
    yield "json array", lambda part: ("json", array(part).encode()), "read"
    yield "json array with a BOM", lambda part: ("json", ("\ufeff" + array(part)).encode()), "read"
    yield "json array cut short", lambda part: ("json", array(part)[:-5].encode()), "refuse"
    yield "json array of lists", lambda part: ("json", b"[[1], [2]]"), "refuse"
    yield "json array of nothing", lambda part: ("json", b"[]"), "refuse"
    yield (
        "json of one object with a list in it",
        lambda part: ("json", ('{"data": ' + array(part) + "}").encode()),
        "refuse",
    )
    yield (
        "jsonl in UTF-16",
        lambda part: (
            "jsonl",
            "".join(json.dumps(row) + "\n" for row in rows(part)).encode("utf-16"),
        ),
        "refuse",
    )
    yield "jsonl of noise", lambda part: ("jsonl", bytes(range(256)) * 9), "refuse"
    yield "parquet of noise", lambda part: ("parquet", b"PAR1" + b"\0" * 64), "refuse"
    yield "an ending that nobody knows", lambda part: ("xlsx", b"PK"), "refuse"


def _file(name: str, content: Callable[[str], tuple[str, bytes]], wanted: Wanted) -> Input:
    def make(folder: Path, dice: random.Random) -> list[str]:
        files = {}
        for part in ("train", "validation", "test"):
            ending, text = content(part)
            (folder / f"{part}.{ending}").write_bytes(text)
            files[part] = {"path": f"{part}.{ending}"}
        (folder / "task.toml").write_text(toml({**TASK, "files": files}), encoding="utf-8")
        return ["check", "task.toml"]

    return Input(entrance="data", name=name, wanted=wanted, make=make)


def run_inputs() -> Iterator[Input]:
    """Every number of a run with values that cannot be meant, by the file and by --set; words, paths and keys."""
    for place, good in (
        ("train.learning_rate", [1e-5, 1, "1e-3", "0.5x", KeyError]), ("train.epochs", [1, 0.5, 20]), ("train.batch", [1, 64]), ("train.max_length", [64, 4096]),
        ("train.warmup", [0, 0.5, 1]), ("train.clip", [0.1, 10]), ("train.weight_decay", [0, 0.1]), ("train.seed", [0, 2**31]), ("lora.rank", [1, 16]),
        ("lora.alpha", [1, 32.5]), ("lora.dropout", [0, 0.5]), ("score.validations", [0, 3]), ("task.train_rows", [1, 10**6]), ("task.eval_rows", [1, 10**6]),
    ):  # fmt: skip
        for value in good:
            yield _run(f"{place} = {value!r}", "read", place, value)
        for value in (True, False, float("nan"), float("inf"), -1, 10**24, "drei", [], [1], {}, ""):
            yield _run(f"{place} = {value!r}", "refuse", place, value)
            if not isinstance(value, (dict, list)):
                yield _set(
                    f"--set {place}={value!r}",
                    "refuse",
                    f"{place}={toml({'x': value}).partition(' = ')[2].strip()}",
                )
    for place, value in (
        ("train.learning_rat", 1), ("trian.batch", 8), ("method", "lroa"), ("method", "full"), ("train.schedule", "lin"), ("train.precision", "fp16"), ("train.step", "fast"),
        ("train.long_rows", "cut"), ("train.decay", 0.5), ("train.micro_batch", 3), ("lora.targets", "q+x"), ("lora.targets", "q+q"), ("lora.targets", ""), ("lora.rank", 17),
        ("model.path", "nowhere"), ("model.path", "owner/none"), ("model.path", ""), ("model.path", "task.toml"), ("task.name", "nowhere"), ("task.name", "run.toml"),
        ("task.split", "x"), ("task.format", "x"), ("task.format", "chat"), ("task.version", "1"), ("task.data_dir", "nowhere"), ("adapter", "nowhere"), ("train.max_length", 8),
        ("train", 3), ("model", "builtin"), ("task", []), ("score.decode", "captured?"), ("train.learning_rate", "0x"), ("model", KeyError), ("task", KeyError),
    ):  # fmt: skip
        yield _run(f"{place} = {value!r}", "refuse", place, value)
    for change in (
        "train",
        "=3",
        "train.=3",
        ".train=3",
        "train..batch=3",
        "train.batch.x=3",
        "a b=c",
        "lora.rank=\ud800",
        "task.name=a\0b",
        "train.batch=" + "[" * 9000,
    ):
        yield _set(f"--set {change[:30]!r}", "refuse", change)
    for content, name in ((b"", "an empty file"), (b"\xff\xfe", "no UTF-8"), (b"a = ", "cut short"), (b"a = " + b"[" * 9000, "nested"), (b"a = " + b"9" * 9000, "a long number"),
                          ("［model］".encode(), "full-width brackets"), (b"a = 1\na = 2\n", "a key twice"), (b"\0", "a NUL")):  # fmt: skip
        yield _raw(f"a run file that is {name}", content)


def _run(name: str, wanted: Wanted, place: str, value: Any) -> Input:
    def make(folder: Path, dice: random.Random) -> list[str]:
        ground(folder)
        with_model(folder)
        (folder / "run.toml").write_text(toml(changed(RUN, place, value)), encoding="utf-8")
        return ["check", "run.toml"]

    return Input(entrance="run file", name=name, wanted=wanted, make=make)


def _set(name: str, wanted: Wanted, change: str) -> Input:
    def make(folder: Path, dice: random.Random) -> list[str]:
        ground(folder)
        with_model(folder)
        (folder / "run.toml").write_text(toml(RUN), encoding="utf-8")
        return ["check", "run.toml", "--set", change]

    return Input(entrance="--set", name=name, wanted=wanted, make=make)


def _raw(name: str, content: bytes) -> Input:
    def make(folder: Path, dice: random.Random) -> list[str]:
        (folder / "run.toml").write_bytes(content)
        return [dice.choice(["check", "run"]), "run.toml"]

    return Input(entrance="run file", name=name, wanted="refuse", make=make)


def study_inputs() -> Iterator[Input]:
    good: list[tuple[str, Any]] = [
        ("methods.0.grid.rank", [1, 2, 4]), ("margin", 1), ("seeds", 3), ("lanes", 4), ("answers_shown", 0), ("title", "題"), ("name", "a-b_c.1"), ("reference_rows", True),
        ("methods.0.search", {"kind": "random", "trials": 3}), ("tasks", [{"name": "task.toml"}, {"name": "task.toml", "format": "paper"}]),
    ]  # fmt: skip
    for place, value in good:
        yield _study(f"{place} = {value!r}"[:60], "read", place, value)
    bad: list[tuple[str, Any]] = [
        ("name", "a b"), ("name", ""), ("name", "../x"), ("models", []), ("tasks", []), ("methods", []), ("models", [{}]), ("margin", 0), ("margin", 100), ("margin", True),
        ("margin", float("nan")), ("seeds", 0), ("seeds", 10**24), ("seeds", True), ("lanes", 0), ("answers_shown", -1), ("methods.0.kind", "lroa"), ("methods.0.grid", {"rnk": [1]}),
        ("methods.0.grid", {"rank": []}), ("methods.0.grid", {"rank": 3}), ("methods.0.grid", {"rank": [True]}), ("methods.0.grid", {"rank": {"low": 1, "high": 4}}),
        ("methods.0.grid", {"learning_rate": [float("inf")]}), ("methods.0.grid", {"seed": [1]}), ("methods.1.grid", {"rank": [1]}), ("methods.0.tasks", ["x"]),
        ("methods.0.search", {"kind": "tpe", "trials": 0}), ("methods.0.search", {"kind": "grid", "trials": 3}), ("methods.0.search", {"kind": "none"}),
        ("methods.0.adapter", "nowhere"), ("methods.1.name", "LoRA"), ("train.learning_rate", True), ("train.learnin_rate", 1), ("train", [1]), ("score.batch", 0), ("tsaks", []),
        ("tasks", [{"name": "task.toml"}, {"name": "task.toml"}]), ("methods.0.grid", {"learning_rate": {"low": 1, "high": float("nan")}}),
    ]  # fmt: skip
    for place, value in bad:
        yield _study(f"{place} = {value!r}"[:60], "refuse", place, value)


def _study(name: str, wanted: Wanted, place: str, value: Any) -> Input:
    def make(folder: Path, dice: random.Random) -> list[str]:
        ground(folder)
        with_model(folder)
        (folder / "study.toml").write_text(toml(changed(STUDY, place, value)), encoding="utf-8")
        return (
            ["check", "study.toml"]
            if wanted == "read" or dice.random() < 0.5
            else ["study", "study.toml"]
        )

    return Input(entrance="study file", name=name, wanted=wanted, make=make)


def model_inputs() -> Iterator[Input]:
    """Settings, weights and tokenizers of a model folder; what no weights are needed for is seen without them."""
    for key, value in (
        ("num_hidden_layers", 3), ("num_hidden_layers", 1), ("num_hidden_layers", 10**9), ("num_hidden_layers", True), ("num_hidden_layers", "2"), ("hidden_size", 64), ("hidden_size", 31),
        ("vocab_size", 600), ("vocab_size", 10**12), ("intermediate_size", 50), ("num_attention_heads", 5), ("num_attention_heads", 0), ("num_key_value_heads", 3), ("model_type", "x"),
        ("model_type", "t5"), ("model_type", "bert"), ("model_type", None), ("auto_map", {"AutoConfig": "x.X"}), ("quantization_config", {"quant_method": "gptq"}),
        ("vision_config", {}), ("transformers_weights", "model.safetensors"), ("eos_token_id", "x"), ("hidden_act", "nonsense"), ("torch_dtype", "nonsense"),
        ("rope_parameters", {"rope_type": "nonsense"}),
    ):  # fmt: skip
        wanted: Wanted = "refuse"
        if (key, value) in (("auto_map", {"AutoConfig": "x.X"}), ("torch_dtype", "nonsense")):
            wanted = "read"  # llama is transformers' own; the stored type is ours to choose
        yield _folder(
            f"config.json: {key} = {str(value)[:30]}",
            wanted,
            _json_change("config.json", key, value),
        )
    for key, value, says in (
        ("eos_token", None, "refuse"), ("tokenizer_class", "NoSuchTokenizer", None), ("chat_template", "{{ nothing }}", "read"), ("auto_map", {"AutoTokenizer": ["x.X", None]}, "refuse"),
        ("pad_token", None, "read"), ("model_max_length", 3, "read"), ("extra", "x", "read"),
    ):  # fmt: skip
        if says is not None:
            yield _folder(
                f"tokenizer_config.json: {key} = {str(value)[:30]}",
                says,
                _json_change("tokenizer_config.json", key, value),
            )  # type: ignore[arg-type]
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        for content in (
            b"",
            b"{",
            b"[]",
            b"\xff\xfe\0",
            b"3",
            b"version https://git-lfs.github.com/spec/v1\n",
        ):
            yield _folder(f"{name} holds {content[:8]!r}", "refuse", _content(name, content))
    for content in (
        b"",
        b"\x08\0\0\0\0\0\0\0{}",
        b"\xff" * 64,
        b"version https://git-lfs.github.com/spec/v1\n",
    ):
        yield _folder(
            f"model.safetensors holds {content[:8]!r}",
            "refuse",
            _content("model.safetensors", content),
        )
    yield _folder(
        "nothing but the weights",
        "refuse",
        lambda folder, dice: [path.unlink() for path in folder.iterdir() if path.suffix == ".json"],
    )
    yield _folder(
        "no weights", "refuse", lambda folder, dice: (folder / "model.safetensors").unlink()
    )
    yield _folder(
        "weights called otherwise",
        "refuse",
        lambda folder, dice: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    )
    for target in (
        "../model.safetensors",
        "/etc/hosts",
        "x.bin",
        "sub/x.safetensors",
        "missing.safetensors",
    ):
        yield _folder(f"an index that names {target}", "refuse", _index(target))
    for count in (1, 2, 5):
        yield _folder(
            f"{count} tensors dropped",
            "refuse",
            _tensors(count, lambda tensors, name: tensors.pop(name)),
        )
        yield _folder(
            f"{count} tensors cut",
            "refuse",
            _tensors(
                count, lambda tensors, name: tensors.update({name: tensors[name][:1].clone()})
            ),
        )
        yield _folder(
            f"{count} tensors more",
            "refuse",
            _tensors(
                count, lambda tensors, name: tensors.update({f"{name}.more": tensors[name].clone()})
            ),
        )
        yield _folder(
            f"{count} tensors with NaN",
            "refuse",
            _tensors(count, lambda tensors, name: tensors[name].view(-1)[:1].fill_(float("nan"))),
            load=True,
        )
        yield _folder(
            f"{count} tensors in bf16",
            "read",
            _tensors(count, lambda tensors, name: tensors.update({name: tensors[name].bfloat16()})),
            load=True,
        )


def _json_change(name: str, key: str, value: Any) -> Callable[[Path, random.Random], Any]:
    def change(folder: Path, dice: random.Random) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content[key] = value
        (folder / name).write_text(
            json.dumps({one: kept for one, kept in content.items() if kept is not None}),
            encoding="utf-8",
        )

    return change


def _content(name: str, content: bytes) -> Callable[[Path, random.Random], Any]:
    return lambda folder, dice: (folder / name).write_bytes(content)


def _index(target: str) -> Callable[[Path, random.Random], Any]:
    def change(folder: Path, dice: random.Random) -> None:
        names = list(load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": dict.fromkeys(names, target)}), encoding="utf-8"
        )

    return change


def _tensors(
    count: int, how: Callable[[dict[str, torch.Tensor], str], Any]
) -> Callable[[Path, random.Random], Any]:
    def change(folder: Path, dice: random.Random) -> None:
        tensors = load_file(folder / "model.safetensors")
        for name in dice.sample(
            [name for name in sorted(tensors) if tensors[name].shape[0] > 1], count
        ):
            how(tensors, name)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def _folder(
    name: str, wanted: Wanted, change: Callable[[Path, random.Random], Any], load: bool = False
) -> Input:
    def make(folder: Path, dice: random.Random) -> list[str]:
        ground(folder)
        change(with_model(folder), dice)
        (folder / "run.toml").write_text(toml(RUN), encoding="utf-8")
        return ["check", "run.toml", *(["--load"] if load else [])]

    return Input(entrance="model folder", name=name, wanted=wanted, make=make)


def adapter_inputs() -> Iterator[Input]:
    yield _adapter("as it is", "read", {}, None)
    for key, value, wanted in (
        ("peft_type", "IA3", "refuse"), ("peft_type", None, "refuse"), ("task_type", "SEQ_CLS", "refuse"), ("task_type", None, "read"), ("bias", "all", "refuse"), ("r", 3, "refuse"),
        ("r", "2", "refuse"), ("r", True, "refuse"), ("r", -2, "refuse"), ("lora_alpha", 0, "refuse"), ("lora_alpha", float("nan"), "refuse"), ("lora_alpha", float("inf"), "refuse"),
        ("lora_alpha", 5.5, "read"), ("use_dora", True, "refuse"), ("use_rslora", True, "read"), ("modules_to_save", ["x"], "refuse"), ("new_setting", 3, "refuse"),
        ("new_setting", None, "read"), ("rank_pattern", {"q_proj": 7}, "refuse"), ("rank_pattern", [], "read"), ("alpha_pattern", {"q_proj": 4}, "read"), ("alpha_pattern", {"(": 4}, "refuse"),
        ("base_model_name_or_path", "someone/else", "read"), ("init_lora_weights", "pissa", "refuse"), ("layers_to_transform", [0], "read"), ("lora_bias", True, "refuse"),
    ):  # fmt: skip
        yield _adapter(f"{key} = {value!r}", wanted, {key: value}, None)  # type: ignore[arg-type]
    changes: list[tuple[str, Callable[[dict[str, torch.Tensor], str], Any]]] = [
        ("NaN", lambda tensors, name: tensors[name].view(-1)[:1].fill_(float("nan"))), ("dropped", lambda tensors, name: tensors.pop(name)),
        ("cut", lambda tensors, name: tensors.update({name: tensors[name][:1].clone()})), ("more", lambda tensors, name: tensors.update({f"x.{name}": tensors[name].clone()})),
        ("of whole numbers", lambda tensors, name: tensors.update({name: tensors[name].int()})),
        ("named .default.", lambda tensors, name: tensors.update({name.replace(".weight", ".default.weight"): tensors.pop(name)})),
    ]  # fmt: skip
    for name, how in changes:
        wanted = "read" if name == "named .default." else "refuse"
        yield _adapter(f"a tensor {name}", wanted, {}, how)  # type: ignore[arg-type]


def _adapter(
    name: str,
    wanted: Wanted,
    settings: dict[str, Any],
    how: Callable[[dict[str, torch.Tensor], str], Any] | None,
) -> Input:
    def make(folder: Path, dice: random.Random) -> list[str]:
        from tsugiki.config.run import LoraConfig
        from tsugiki.model.export import export_adapter
        from tsugiki.model.lora import attach

        ground(folder)
        with_model(folder)
        if "adapter" not in _KEPT:
            _KEPT["adapter"] = Path(tempfile.mkdtemp()) / "adapter"
            export_adapter(
                attach(build.llama(), LoraConfig(targets="q+v", rank=2), seed=0),
                _KEPT["adapter"],
                "model",
            )
        shutil.copytree(_KEPT["adapter"], folder / "adapter")
        path = folder / "adapter" / "adapter_config.json"
        content = {**json.loads(path.read_text(encoding="utf-8")), **settings}
        path.write_text(
            json.dumps({key: value for key, value in content.items() if value is not None}),
            encoding="utf-8",
        )
        if how is not None:
            tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
            how(tensors, dice.choice(sorted(tensors)))
            save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
        given = {
            "model": RUN["model"],
            "task": RUN["task"],
            "adapter": "adapter",
            "train": {"max_length": 128},
        }
        (folder / "run.toml").write_text(toml(given), encoding="utf-8")
        return ["check", "run.toml"]

    return Input(entrance="adapter", name=name, wanted=wanted, make=make)


def argument_inputs() -> Iterator[Input]:
    refused = [
        ["check", "nowhere.toml"], ["check", "."], ["check", ""], ["check", "a\0b"], ["check", "x" * 5000], ["run", "nowhere.toml"], ["run", "."], ["run", "task.toml"],
        ["study", "nowhere"], ["study", "task.toml"], ["study", ""], ["study", "demo", "--jobs", "0"], ["study", "demo", "--jobs", "x"], ["study", "demo", "--lang", "fr"],
        ["study", "demo", "--nonsense"], ["report", "nowhere"], ["report", "demo"], ["report", "demo", "--out", "task.toml"], ["score", "nowhere"], ["score", "."], ["score", "task.toml"],
        ["score", ".", "--part", "x"], ["score", ".", "--rules", "x", "--answer-modes"], ["show", "nowhere"], ["show", "."], ["compare", "a", "b"], ["compare", "a"], ["generate", "nowhere", "--text", "x"],
        ["generate", ".", "--text", ""], ["generate", ".", "--max-new-tokens", "0"], ["export", "nowhere", "--to", "x"], ["export", ".", "--to", "."], ["import", "nowhere", "--model", "builtin"],
        ["import", "nowhere", "--model", "builtin", "--task", "sample_nli"], ["ls"], ["ls", "--out", "task.toml"], ["tasks", "show", "nowhere"], ["tasks", "show", "sample_nli", "--part", "x"],
        ["tasks", "show", "sample_nli", "--rows", "0"], ["tasks", "show", "sample_nli", "--format", "x"], ["tasks", "show", "sample_nli", "--split", "x"],
        ["tasks", "show", "sample_nli", "--tokens", "--model", "nowhere"], ["tasks", "nonsense"], ["nonsense"], ["tasks", "show", "sample_nli", "--version", "2"],
    ]  # fmt: skip
    read = [["--help"], ["check"], ["tasks", "list"], ["tasks", "list", "--json"], ["tasks", "show", "sample_nli"], ["tasks", "show", "task.toml", "--rows", "99"], ["study", "demo", "--dry-run"],
            ["study", "paper", "--dry-run", "--json"], ["check", "task.toml"], ["check", "task.toml", "--json"], ["tasks", "show", "sample_nli", "--tokens", "--rows", "1"]]  # fmt: skip
    for wanted, some in (("refuse", refused), ("read", read)):
        for arguments in some:
            yield _arguments(arguments, wanted)  # type: ignore[arg-type]


def _arguments(arguments: list[str], wanted: Wanted) -> Input:
    def make(folder: Path, dice: random.Random) -> list[str]:
        ground(folder)
        return arguments

    return Input(entrance="arguments", name=" ".join(arguments)[:60], wanted=wanted, make=make)


# ---- the campaign ------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """Raised by the alarm; no handler of ours catches it."""


def outcome_of(arguments: list[str], folder: Path) -> tuple[str, str]:
    """(outcome, what was said) of one command in a folder, as a process of its own would end."""
    from tsugiki.cli import commands as cli

    def late(number: int, frame: Any) -> None:
        raise Hang

    said, before, argv = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors="replace"),
        os.getcwd(),
        sys.argv,
    )
    signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_S)
    os.chdir(folder)
    sys.argv = ["tsugiki", *arguments]
    code: Any = 0
    try:
        with (
            contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")),
            contextlib.redirect_stderr(said),
        ):
            cli.main()
    except SystemExit as ended:
        code = ended.code
    except Hang:
        return "hang", ""
    except BaseException as broken:
        return "traceback", f"{type(broken).__name__}: {str(broken)[:200]}"
    finally:
        signal.alarm(0)
        os.chdir(before)
        sys.argv = argv
    said.flush()
    lines = [
        line
        for line in said.buffer.getvalue().decode("utf-8", "replace").splitlines()
        if line.strip() and not line.endswith(": starting …")  # said before torch is loaded
    ]  # type: ignore[attr-defined]
    if code in (0, None):
        return "read", ""
    if code == 1:
        return "traceback", lines[-1][:200]
    ours = [line for line in lines if line.startswith("tsugiki:")]
    usage = any("Usage:" in line for line in lines)
    return ("refused" if usage or (len(ours) == 1 and len(lines) == 1) else "lines"), (
        ours or lines or [""]
    )[-1][:300]


def all_inputs() -> list[Input]:
    made = [
        *task_inputs(),
        *data_inputs(),
        *run_inputs(),
        *study_inputs(),
        *model_inputs(),
        *adapter_inputs(),
        *argument_inputs(),
    ]
    return list({f"{one.entrance}: {one.name}": one for one in made}.values())


def campaign(seed: int, share: float, out: Path) -> list[dict[str, Any]]:
    """Runs what is not in `out` yet; returns all rows."""
    inputs = all_inputs()
    chosen = random.Random(seed).sample(inputs, round(len(inputs) * share))
    kept = (
        [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        if out.exists()
        else []
    )
    code = code_now()
    # What other code did says nothing of this.
    kept = [row for row in kept if row["seed"] == seed and row["code"] == code]
    done = {row["input"] for row in kept}
    out.parent.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(chosen):
        name = f"{one.entrance}: {one.name}"
        if name in done:
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            arguments = one.make(Path(folder), random.Random(f"{seed}:{name}"))
            outcome, said = outcome_of(arguments, Path(folder))
        row = {
            "seed": seed,
            "code": code,
            "input": name,
            "entrance": one.entrance,
            "wanted": one.wanted,
            "outcome": outcome,
            "said": said,
            "s": round(time.monotonic() - start, 2),
        }
        kept.append(row)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not right(row):
            print(
                f"[{number + 1}/{len(chosen)}] {name}: must be {one.wanted}, was {outcome}: {said}"
            )
    wanted = {f"{one.entrance}: {one.name}" for one in chosen}
    return [row for row in kept if row["input"] in wanted]


def code_now(own: Path = Path(__file__)) -> str:
    """12 digits that name the code that is tried: a campaign goes on only where the same code began it."""
    files = [*sorted((ROOT / "src" / "tsugiki").rglob("*.py")), own]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def right(row: dict[str, Any]) -> bool:
    return {"read": "read", "refuse": "refused"}[row["wanted"]] == row["outcome"]


def table(found: list[dict[str, Any]], seed: int) -> str:
    """The table of docs/reliability.md."""
    lines = [
        "| entrance | inputs | must be read | must be refused | wrongly accepted | wrongly refused | tracebacks | hangs | not one line | slowest (s) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = [
        *dict.fromkeys(row["entrance"] for row in sorted(found, key=lambda row: row["entrance"])),
        "all",
    ]
    for group in groups:
        some = [row for row in found if group in ("all", row["entrance"])]
        counts = Counter((row["wanted"], row["outcome"]) for row in some)
        wanted = Counter(row["wanted"] for row in some)
        ended = Counter(row["outcome"] for row in some)
        cells = [
            group,
            len(some),
            wanted["read"],
            wanted["refuse"],
            counts["refuse", "read"],
            counts["read", "refused"],
            ended["traceback"],
            ended["hang"],
            ended["lines"],
        ]
        lines.append("| " + " | ".join(map(str, [*cells, max(row["s"] for row in some)])) + " |")
    machine = f"{os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    return "\n".join(lines) + f"\n\nSeed {seed}, {len(found)} inputs; {machine}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of all inputs, drawn by the seed")
    parser.add_argument("--out", type=Path, default=ROOT / "campaign" / "doors.jsonl")
    parser.add_argument("--page", type=Path, help="write the table between the marks of this page")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = campaign(given.seed, given.share, given.out)
    made = table(found, given.seed)
    print(made)
    if given.page is not None:
        head, begin, rest = given.page.read_text(encoding="utf-8").partition("<!-- doors -->\n")
        _, end, tail = rest.partition("<!-- /doors -->")
        given.page.write_text(head + begin + made + end + tail, encoding="utf-8")
    sys.exit(not all(map(right, found)))


if __name__ == "__main__":
    main()
