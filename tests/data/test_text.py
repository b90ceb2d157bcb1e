"""What is text comes in as it is; what is none is refused with file and row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import build
from tsugiki.config.run import TaskChoice
from tsugiki.config.task import TaskSpec
from tsugiki.data.rows import read_rows
from tsugiki.data.tasks import drawn, load_task
from tsugiki.data.text import as_text
from tsugiki.errors import DataError
from tsugiki.toml import parse, read_toml


@pytest.mark.parametrize(
    ("value", "text"), [("文 ", "文 "), (0, "0"), (-3, "-3"), (3.5, "3.5"), ("", "")]
)
def test_texts_and_numbers_are_read(value: object, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "is NaN: a missing value"),
        (math.inf, "is the number inf, not text"),
        (1.0, "is the number 1.0, not text"),
        (True, "is true, not text"),
        ([1], "is a list, not text"),
        ({"a": 1}, "is an object, not text"),
        (b"x", "is of the type bytes, not text"),
        ("半\ud83d", "is not valid Unicode"),
        ("a\0b", "holds a NUL character"),
    ],
)
def test_what_is_no_text_is_refused(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        as_text(value)
    assert as_text(True, label=True) == "true"


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "true", "1.0", "[]", "{}", '"\\ud83d"', '"\\u0000"', "null"]
)
def test_a_field_that_is_no_text_is_named_with_file_and_row(value: str, task_file: Path) -> None:
    path = task_file.parent / "train.jsonl"
    path.write_text(
        path.read_text(encoding="utf-8")
        + f'{{"a": {value}, "b": "文", "label": "e", "image": "9"}}\n',
        encoding="utf-8",
    )
    with pytest.raises(DataError, match=r'train\.jsonl row 25: field "a" (is|holds)'):
        load_task(TaskChoice(name=str(task_file)))


ROWS = [{"a": "一", "b": "二"}, {"a": "三\n四", "b": ""}]


def test_one_array_is_read_as_one_object_a_line_is(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(
        "\ufeff " + json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8"
    )
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8"
    )
    assert (
        list(read_rows(tmp_path / "rows.json"))
        == list(read_rows(tmp_path / "rows.jsonl"))
        == list(enumerate(ROWS, 1))
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1, "a": 2}\n', r'row 1: the key "a" stands there twice'),
        (
            "a.jsonl",
            '{"x": 1}\n{"a": ' + "[" * 100_000 + "\n",
            "row 2: (nested too deeply|not a JSON object)",
        ),
        ("a.json", '[{"a": 1}, 3]', "row 2: must be a JSON object, is int"),
        ("a.json", '[{"a": 1}', "not a JSON object in UTF-8"),
        ("a.csv", "a,b,a\n1,2,3\n", 'two columns are called "a"'),
        ("a.txt", "x", 'unknown ending ".txt". Known: .jsonl, .json, .csv, .tsv, .parquet, .arrow'),
    ],
)
def test_files_that_cannot_be_meant_are_refused(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


def test_an_article_of_140_000_characters_in_a_csv_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "あ" * 140_000 + "\n", encoding="utf-8")
    assert len(next(read_rows(tmp_path / "a.csv"))[1]["text"]) == 140_000


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"]),
        tmp_path / "a.parquet",
    )
    with pytest.raises(DataError, match='two columns are called "a"'):
        list(read_rows(tmp_path / "a.parquet"))


def choices(folder: Path, rows: Callable[[str], list[dict]]) -> Path:
    text = (
        build.TASK.replace('kind = "classification"', 'kind = "choice"')
        .replace("accuracy", "exact_match")
        .replace('fields = ["a", "b"]', 'fields = ["a"]')
    )
    text = text.replace('[labels]\ne = "含意"\nn = "中立"\nc = "矛盾"\n', "").replace(
        'group = "image"', 'choices = ["c0", "c1", "c2"]'
    )
    text = text.replace("文1: {a}[SEP]文2: {b}[SEP]", "{a}[SEP]")
    (folder / "choice.toml").write_text(text, encoding="utf-8")
    for part in ("train", "validation", "test"):
        (folder / f"{part}.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(part)),
            encoding="utf-8",
        )
    return folder / "choice.toml"


@pytest.mark.parametrize(("label", "target"), [("②", "②"), ("1", "②"), ("２", "③"), (0, "①")])
def test_circled_digits_are_texts_and_digits_are_places(
    label: object, target: str, tmp_path: Path
) -> None:
    path = choices(
        tmp_path, lambda part: [{"a": f"問{part}", "c0": "①", "c1": "②", "c2": "③", "label": label}]
    )
    assert load_task(TaskChoice(name=str(path))).examples["test"][0].target == target


@pytest.mark.parametrize("sign", ["²", "❷", "⑴", "⁰", "9" * 5000])
def test_what_is_no_place_and_no_candidate_is_refused(sign: str, tmp_path: Path) -> None:
    path = choices(
        tmp_path, lambda part: [{"a": f"問{part}", "c0": "①", "c1": "②", "c2": "③", "label": sign}]
    )
    with pytest.raises(DataError, match="is neither one of the candidates"):
        load_task(TaskChoice(name=str(path)))


def test_candidates_that_are_one_after_normalisation_are_refused_where_they_are_scored(
    tmp_path: Path,
) -> None:
    def task_with(bad: str) -> TaskChoice:
        def rows(part: str) -> list[dict]:
            return [
                {
                    "a": f"面積{part}",
                    "c0": "10㎡",
                    "c1": "10m2",
                    "c2": "5",
                    "label": 0 if part == bad else 2,
                }
            ]

        return TaskChoice(name=str(choices(tmp_path, rows)))

    for bad in ("validation", "test"):
        with pytest.raises(
            DataError,
            match=f"{bad} row .* the candidates “10㎡” and “10m2” are the same after normalisation",
        ):
            load_task(task_with(bad))
    # Training on it, or another answer being right, makes no score untrue.
    for bad in ("train", "none"):
        assert load_task(task_with(bad)).name == "tiny"


def spec_of(task_file: Path, **changes: object) -> TaskSpec:
    return parse(TaskSpec, {**read_toml(task_file), **changes}, "task.toml", DataError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"e": "IV", "n": "Ⅳ", "c": "x"}}, "two labels share one word"),
        ({"labels": {"e": " ", "n": "y", "c": "x"}}, r"labels.e: String should match pattern"),
        ({"formats": {"paper": ""}}, r"formats.paper: “” holds none of the fields"),
        ({"formats": {"paper": "文[SEP]"}}, "holds none of the fields"),
        ({"formats": {"paper": "{a.__class__}"}}, 'no field "a.__class__"'),
        ({"formats": {"paper": "{a[0]}"}}, "no field"),
        (
            {"formats": {"paper": "{a:>1000000000}"}},
            "only the field's name may stand between the brackets",
        ),
        ({"formats": {"paper": "{a!r}"}}, "only the field's name"),
        ({"formats": {"paper": "{a"}}, "Write {{ and }} for curly brackets"),
        ({"formats": {"paper": "{}"}}, 'no field ""'),
        ({"group_pattern": "(["}, "is no regular expression"),
        ({"max_new_tokens": True}, "must be a number, got true"),
    ],
)
def test_task_files_that_cannot_be_meant_are_refused(
    changes: dict, message: str, task_file: Path
) -> None:
    with pytest.raises(DataError, match=message):
        spec_of(task_file, **changes)


def test_a_pattern_that_runs_away_is_stopped(task_file: Path) -> None:
    task_file.write_text(
        task_file.read_text(encoding="utf-8").replace(
            'group = "image"', 'group = "image"\ngroup_pattern = "((a|aa)+)$"'
        ),
        encoding="utf-8",
    )
    path = task_file.parent / "train.jsonl"
    path.write_text(
        json.dumps(
            {"a": "一", "b": "二", "label": "e", "image": "a" * 60 + "!"}, ensure_ascii=False
        )
        + "\n",
        encoding="utf-8",
    )
    with pytest.raises(
        DataError, match=r"train\.jsonl row 1: group_pattern .* ran for more than 1 s"
    ):
        load_task(TaskChoice(name=str(task_file)))


def test_few_rows_are_a_sample_by_a_fixed_seed_not_the_first_ones(task_file: Path) -> None:
    whole = load_task(TaskChoice(name=str(task_file)))
    few = load_task(TaskChoice(name=str(task_file), train_rows=5, eval_rows=4))
    for part, number in (("train", 5), ("validation", 4), ("test", 4)):
        assert (
            few.examples[part]
            == drawn(whole.examples[part], number)
            != list(whole.examples[part][:number])
        )
