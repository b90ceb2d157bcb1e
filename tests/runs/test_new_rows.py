"""New rows through a finished run: answers of the evaluation, in every format, resumed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.build import TRAIN, run_config
from tsugiki.data.rows import read_rows
from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError, DataError, RunError
from tsugiki.runs import new_rows
from tsugiki.runs.finished import score_run
from tsugiki.runs.new_rows import label_file, label_lines, write_rows
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.runs.use import other_ending


@pytest.fixture
def record(model_folder: Path, task_file: Path, tmp_path: Path) -> RunRecord:
    train = {**TRAIN, "epochs": 6}
    [made] = run_group([run_config(model_folder, task_file, train=train)], Store(tmp_path / "out"))
    return score_run(made, "test")


def rows_of(record: RunRecord, *, answered: bool) -> list[dict[str, Any]]:
    """Test rows as a user's file has them."""
    task = load_task(record.config.task)
    known = {word: label for label, word in task.spec.labels.items()}
    return [
        {
            **row.fields,
            "note": "=1+1",
            **({task.spec.target: known[row.target]} if answered else {}),
        }
        for row in task.examples["test"]
    ]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_answers_are_those_of_the_evaluation(
    ending: str, record: RunRecord, tmp_path: Path
) -> None:
    given = rows_of(record, answered=False)
    source, to = tmp_path / f"new{ending}", tmp_path / f"out{ending}"
    write_rows(source, given, list(given[0]), like=source) if ending != ".csv" else _excel(
        source, given
    )
    seen = label_file(record, source, to)
    assert (seen.rows, seen.earlier, seen.known) == (len(given), 0, 0)
    written = [row for _, row in read_rows(to)]
    assert [row["prediction"] for row in written] == [
        answer.answer for answer in record.answers("test")
    ]
    labels = load_task(record.config.task).spec.fixed_answers
    for before, row in zip(given, written, strict=True):
        assert {name: row[name] for name in before} == before
        assert [float(row[f"log_p:{label}"]) < 0 for label in labels] == [True] * len(labels)
        fine = row["prediction"] in labels
        assert bool(row["failure"]) is not fine
    if ending == ".csv":
        assert to.read_bytes().startswith(b"\xef\xbb\xbf"), "as Excel wrote it, so that it reads it"
    assert not list(tmp_path.glob(".out*"))
    with pytest.raises(DataError, match="is there already: nothing is overwritten"):
        label_file(record, source, to)


def _excel(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_known_target_is_compared_with(record: RunRecord, tmp_path: Path) -> None:
    source = tmp_path / "new.jsonl"
    given = rows_of(record, answered=True)
    write_rows(source, given, list(given[0]), like=source)
    seen = label_file(record, source, tmp_path / "out.jsonl")
    assert seen.known == len(given)
    assert seen.right == sum(row.failure.startswith("right") for row in record.answers("test"))


def test_a_killed_call_goes_on_where_it_stood(
    record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, to = tmp_path / "new.jsonl", tmp_path / "out.jsonl"
    given = rows_of(record, answered=False)
    write_rows(source, given, list(given[0]), like=source)
    label_file(record, source, tmp_path / "straight.jsonl")
    real, calls = new_rows.Answerer.answers, []

    def killed(self: Any, rows: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, rows)

    monkeypatch.setattr(new_rows.Answerer, "answers", killed)
    with pytest.raises(KeyboardInterrupt):
        label_file(record, source, to, at_once=2)
    part = tmp_path / ".out.jsonl.part"
    part.write_bytes(part.read_bytes() + b'{"row": "5", "answ')  # a line that was cut
    assert not to.exists()
    seen = label_file(record, source, to, at_once=2)
    assert seen.earlier == 4
    assert sum(calls[3:]) == len(given) - 4
    assert to.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()


def test_answers_of_another_file_are_not_taken(record: RunRecord, tmp_path: Path) -> None:
    source, to = tmp_path / "new.jsonl", tmp_path / "out.jsonl"
    given = rows_of(record, answered=False)
    write_rows(source, given, list(given[0]), like=source)
    part = tmp_path / ".out.jsonl.part"
    for content in (b'{"run": "another"}\n', b"not JSON\n"):
        part.write_bytes(content)
        with pytest.raises(DataError, match=r"answers of another run or of another file"):
            label_file(record, source, to)
        assert part.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("new.jsonl", '{"sentence1": "犬"}\n', r'row 1: field "\w+" is missing'),
        ("new.jsonl", "", "has no rows"),
        ("new.txt", "犬", 'unknown ending ".txt"'),
        ("gone.jsonl", None, "no such file"),
    ],
)
def test_wrong_input_is_one_line(
    name: str, content: str | None, message: str, record: RunRecord, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        label_file(record, tmp_path / name, tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("*out.jsonl*"))


def test_columns_and_endings_that_cannot_be(record: RunRecord, tmp_path: Path) -> None:
    source = tmp_path / "new.jsonl"
    given = [{**rows_of(record, answered=False)[0], "prediction": "mine"}]
    write_rows(source, given, list(given[0]), like=source)
    with pytest.raises(DataError, match='has a column "prediction", as answers have'):
        label_file(record, source, tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match="must end in one of"):
        label_file(record, source, tmp_path / "out.xlsx")


def test_rows_that_do_not_fit_are_named_and_the_rest_is_answered(
    record: RunRecord, tmp_path: Path
) -> None:
    source, to = tmp_path / "new.jsonl", tmp_path / "out.jsonl"
    given = rows_of(record, answered=False)[:3]
    field = load_task(record.config.task).spec.fields[0]
    given[1] = {**given[1], field: "犬が公園を走る。" * 400}
    write_rows(source, given, list(given[0]), like=source)
    seen = label_file(record, source, to)
    assert seen.failures["too_long"] == 1
    written = [row for _, row in read_rows(to)]
    assert [row["failure"] == "too_long" for row in written] == [False, True, False]
    assert written[1]["prediction"] is None


def test_lines_are_answered_as_they_come(record: RunRecord) -> None:
    given = rows_of(record, answered=False)[:2]
    heard: list[int] = []

    def lines() -> Iterator[bytes]:
        for number, row in enumerate(given):
            heard.append(number)
            yield json.dumps(row).encode() + b"\n"

    answers = label_lines(record, lines(), "standard input")
    first = next(answers)
    assert heard == [0]
    assert first["prediction"] == record.answers("test")[0].answer
    assert len(list(answers)) == 1
    clash = json.dumps({**given[0], "prediction": "mine"}).encode()
    for line, message in (
        ("犬".encode(), "standard input line 1: not a JSON object"),
        (b"\xff\xfe{}", "line 1: not a JSON object in UTF-8"),
        (b"[" * 100_000, "line 1: nested too deeply"),
        (b'{"a": "1", "a": "2"}', 'the key "a" stands there twice'),
        (clash, 'has a column "prediction", as answers have'),
        (b'{"note": "\\ud83d"}', "holds half of a character"),
    ):
        with pytest.raises(DataError, match=message):
            next(label_lines(record, [line], "standard input"))


def test_a_task_file_that_changed_is_refused(
    record: RunRecord, task_file: Path, tmp_path: Path
) -> None:
    source = tmp_path / "new.jsonl"
    given = rows_of(record, answered=False)
    write_rows(source, given, list(given[0]), like=source)
    text = task_file.read_text(encoding="utf-8")
    task_file.write_text(text.replace("含意", "同じ"), encoding="utf-8")
    with pytest.raises(RunError, match="has changed since this run was trained"):
        label_file(record, source, tmp_path / "out.jsonl")


def test_a_text_that_ends_otherwise_than_in_training_is_told(record: RunRecord) -> None:
    task = load_task(record.config.task)
    tail = task.template.rpartition("}")[2]
    assert tail
    assert other_ending(record, [f"犬{tail}"]) is None
    said = other_ending(record, [f"犬{tail}", "犬"])
    assert said is not None
    assert said.startswith(f"1 of 2 texts do not end in “{tail}”")


def test_cells_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [{"a": "一\r二", "b": "三\n四", "c": 'x,"y"', "d": [1, None]}]
    write_rows(tmp_path / "new.csv", rows, list("abcd"), like=Path(__file__))
    [(_, row)] = list(read_rows(tmp_path / "new.csv"))
    assert row == {**rows[0], "d": "[1, null]"}


def test_what_parquet_cannot_hold_is_said_before_anything_is_answered(
    record: RunRecord, tmp_path: Path
) -> None:
    source = tmp_path / "new.jsonl"
    given = [{**row, "note": 10**24} for row in rows_of(record, answered=False)]
    write_rows(source, given, list(given[0]), like=source)
    with pytest.raises(DataError, match=r"cannot be written as Parquet: .*Take --to NAME\.jsonl"):
        label_file(record, source, tmp_path / "out.parquet")
    assert not list(tmp_path.glob(".out*"))
