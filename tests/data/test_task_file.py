"""Task files as short as people write them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tsugiki.cli.first_look import look_at_task
from tsugiki.config.run import TaskChoice
from tsugiki.data.leaks import refuse_leak
from tsugiki.data.new_task import columns_of, task_text
from tsugiki.data.splits import may_overlap
from tsugiki.data.task_file import read_task
from tsugiki.data.tasks import (
    SPLITS,
    Task,
    all_at_hand,
    load_task,
    task_digest,
    unanswered,
)
from tsugiki.errors import DataError

WORDS = ["良い", "悪い", "普通"]


def write_csv(path: Path, rows: int = 100, encoding: str = "utf-8") -> Path:
    lines = [f"{n},レビュー{n}です,{WORDS[n % 3]}" for n in range(rows)]
    path.write_bytes("\n".join(["番号,本文,星", *lines, ""]).encode(encoding))
    return path


def load(folder: Path, text: str, name: str = "reviews.toml") -> Task:
    (folder / name).write_text(text, encoding="utf-8")
    return load_task(TaskChoice(name=str(folder / name)))


SHORT = 'fields = ["本文"]\ntarget = "星"\nfiles = "a.csv"\n'


def test_fields_target_and_a_file_are_enough(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    task = load(tmp_path, SHORT)
    spec = task.spec
    assert (spec.name, spec.title, spec.kind, spec.metric) == (
        "reviews", "reviews", "classification", "accuracy",
    )  # fmt: skip
    assert spec.labels == {word: word for word in sorted(WORDS)}
    assert spec.max_new_tokens >= len("良い".encode())
    assert (task.format, task.template) == ("plain", "本文: {本文}\n星: ")
    assert [len(task.examples[part]) for part in SPLITS] == [80, 10, 10]
    ids = [row.id for part in SPLITS for row in task.examples[part]]
    assert len(set(ids)) == 100, "every row once"
    assert load(tmp_path, SHORT).examples == task.examples
    assert load(tmp_path, SHORT + "seed = 1\n").examples != task.examples
    assert task_digest(load(tmp_path, SHORT + "seed = 1\n")) != task_digest(task)


@pytest.mark.parametrize("group", [None, "客"])
def test_what_belongs_together_goes_together(group: str | None, tmp_path: Path) -> None:
    """Rows of one group; without groups those of one text, also with white space or widths that
    differ, and pairs that are swapped."""
    draw, lines = random.Random(0), []
    for n in range(600):
        pair = [f"文{n % 150}", f"句{n % 150}"]
        draw.shuffle(pair)
        lines.append({"a": pair[0] + " " * (n % 2), "b": pair[1], "星": str(n % 2), "客": n % 40})
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8"
    )
    named = f'group = "{group}"\n' if group else ""
    text = 'fields = ["a", "b"]\ntarget = "星"\nfiles = "a.jsonl"\nratio = [2, 1, 1]\n' + named
    task = load(tmp_path, text)
    seen: dict[object, set[str]] = {}
    for part in SPLITS:
        for row in task.examples[part]:
            key = row.group if group else frozenset(v.strip() for v in row.fields.values())
            seen.setdefault(key, set()).add(part)
    assert len(seen) == (40 if group else 150)
    assert all(len(parts) == 1 for parts in seen.values())
    sizes = [len(task.examples[part]) for part in SPLITS]
    assert sum(sizes) == 600
    assert sizes == pytest.approx([300, 150, 150], abs=30)


def test_files_that_are_there_are_kept_and_the_rest_is_cut(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        write_csv(tmp_path / f"{name}.csv", {"train": 90, "validation": 12, "test": 15}[name])
    given = 'fields = ["本文"]\ntarget = "星"\n[files]\ntrain = "train.csv"\n'
    task = load(tmp_path, given + 'validation = "validation.csv"\ntest = "test.csv"\n')
    assert [len(task.examples[part]) for part in SPLITS] == [90, 12, 15]
    task = load(tmp_path, given + 'test = "test.csv"\n')
    assert [len(task.examples[part]) for part in SPLITS] == [80, 10, 15]
    with pytest.raises(DataError, match="files are called a, train: call them train, validation"):
        load(tmp_path, given + 'a = "test.csv"\n')


def test_a_share_is_no_leak_and_the_whole_file_is_one(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    task, other = load(tmp_path, SHORT), load(tmp_path, SHORT + "seed = 3\n")
    for part in ("validation", "test"):
        refuse_leak(task, task.files["train"], part)
        with pytest.raises(DataError, match="cut from the same rows"):
            refuse_leak(other, task.files["train"], part)
        with pytest.raises(DataError, match="cut from the same rows"):
            refuse_leak(task, {"all": next(iter(task.files["train"].values())).split()[0]}, part)
    assert may_overlap("x share 0.0-0.5 seed 0", "x share 0.4-0.6 seed 0")
    assert not may_overlap("x share 0.0-0.5 seed 0", "x share 0.5-0.6 seed 0")
    assert not may_overlap("x", "y")


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["yes", "no"] * 20, "classification"),
        ([f"要約{n}" for n in range(40)], "generation"),
        (["同じ"] * 40, "generation"),
        ([True, False] * 20, "classification"),
        ([n % 5 for n in range(40)], "classification"),
    ],
)
def test_answers_that_come_again_are_labels(
    answers: list[object], kind: str, tmp_path: Path
) -> None:
    rows = [{"q": f"問{n}", "a": answer} for n, answer in enumerate(answers)]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    task = load(tmp_path, 'fields = ["q"]\ntarget = "a"\nfiles = "a.json"\n')
    assert task.spec.kind == kind
    assert task.spec.metric == {"classification": "accuracy", "generation": "rouge"}[kind]


def test_candidates_stand_in_the_prompt(tmp_path: Path) -> None:
    rows = [{"q": f"問{n}", "ア": "青い空", "イ": f"赤{n}", "正解": n % 2} for n in range(40)]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    text = 'fields = ["q"]\nchoices = ["ア", "イ"]\ntarget = "正解"\nfiles = "a.json"\n'
    task = load(tmp_path, text)
    assert (task.spec.kind, task.spec.fields) == ("choice", ("q", "ア", "イ"))
    assert task.template == "q: {q}\nア: {ア}\nイ: {イ}\n正解: "
    assert task.spec.max_new_tokens >= len("青い空".encode())


@pytest.mark.parametrize("name", ["alpaca", "sharegpt", "openai"])
def test_rows_of_other_tools(name: str, tmp_path: Path) -> None:
    turns = [("user", "質問{n}"), ("assistant", "答え{n}")]
    rows: list[dict[str, object]] = []
    for n in range(30):
        if name == "alpaca":
            rows.append(
                {"instruction": f"質問{n}", "input": "資料" * (n % 2), "output": f"答え{n}"}
            )
        elif name == "sharegpt":
            said = [{"from": {"user": "human"}.get(who, "gpt"), "value": text.format(n=n)}
                    for who, text in turns]  # fmt: skip
            rows.append({"system": "規則", "conversations": said})
        else:
            rows.append({"messages": [{"role": who, "content": text.format(n=n)}
                                      for who, text in turns]})  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    task = load(tmp_path, f'formatting = "{name}"\nfiles = "a.json"\n')
    assert task.spec.kind == "generation"
    row = task.examples["train"][0]
    assert row.target.startswith("答え")
    if name == "alpaca":
        assert task.format == "plain"
        assert any("資料" in each.fields["instruction"] for each in task.examples["train"])
        assert unanswered(task.spec, [(1, {"instruction": "新しい"})], "x")[0].fields == {
            "instruction": "新しい"
        }
    else:
        assert task.format == "chat"
        assert [who for who, _ in row.turns] == ["system"] * (name == "sharegpt") + ["user"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("promt = 'x'\n" + SHORT, 'promt: unknown key. Did you mean "prompt"'),
        ("fields = ['本文']\nfiles = 'a.csv'\n", "target: missing"),
        ("fields = ['本文']\ntarget = '星'\n", "files: missing"),
        (SHORT + "ratio = [1, 2]\n", "ratio: must be three numbers above 0"),
        (SHORT + "ratio = [1, 0, 2]\n", "ratio: must be three numbers above 0"),
        (SHORT + "seed = 0.5\n", "seed: must be a whole number"),
        (SHORT + "prompt = '{本分}'\n", 'no field "本分". Known: 本文'),
        (SHORT + "encoding = 'utf-99'\n", "not in the encoding utf-99"),
        (SHORT + "formatting = 'axolotl'\n", "formatting"),
        ("formatting = 'openai'\nprompt = 'x'\nfiles = 'a.csv'\n", "prompt: a task with messages"),
    ],
)
def test_what_is_wrong_in_a_short_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=message):
        load(tmp_path, text)


def test_too_many_different_answers_are_no_labels(tmp_path: Path) -> None:
    rows = [{"q": f"問{n}", "a": f"答え{n}"} for n in range(120)]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(DataError, match=r'120 different answers.*kind = "generation"'):
        load(tmp_path, 'kind = "classification"\nfields=["q"]\ntarget="a"\nfiles="a.json"\n')


def test_what_is_found_follows_the_data(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv")
    (tmp_path / "t.toml").write_text(SHORT, encoding="utf-8")
    before = read_task(tmp_path / "t.toml")
    assert read_task(tmp_path / "t.toml") is before, "read once"
    text = (tmp_path / "a.csv").read_text(encoding="utf-8")
    (tmp_path / "a.csv").write_text(text.replace("普通", "並"), encoding="utf-8")
    assert "並" in read_task(tmp_path / "t.toml").labels


@pytest.mark.parametrize("encoding", ["utf-8", "cp932"])
def test_a_task_file_is_made_from_a_table(encoding: str, tmp_path: Path) -> None:
    columns = columns_of(write_csv(tmp_path / "口コミ.csv", encoding=encoding))
    assert (columns.fields, columns.target) == (("本文",), "星"), "numbers of rows are no field"
    assert columns.labels == tuple(sorted(WORDS))
    assert len(columns.notes) == (encoding == "cp932")
    task = load(tmp_path, task_text(columns, tmp_path), "口コミ.toml")
    assert task.spec.title == "口コミ"
    assert [len(task.examples[part]) for part in SPLITS] == [80, 10, 10]
    assert task.notes == columns.notes


def test_a_column_that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    rows = [{"a": f"あ{n}", "b": f"い{n}", "c": f"う{n}"} for n in range(40)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"which of its columns is the answer.*--target"):
        columns_of(path)
    with pytest.raises(DataError, match="no column “d”"):
        columns_of(path, target="d")
    found = columns_of(path, fields=["a"], target="c")
    task = load(tmp_path, task_text(found, tmp_path), "t.toml")
    assert (task.spec.kind, task.spec.fields, task.spec.target) == ("generation", ("a",), "c")


def test_data_of_a_short_task_lie_where_data_dir_says(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_csv(tmp_path / "rows" / "a.csv")
    (tmp_path / "t.toml").write_text(SHORT, encoding="utf-8")
    choice = TaskChoice(name=str(tmp_path / "t.toml"), data_dir=str(tmp_path / "rows"))
    look_at_task(choice)
    assert all_at_hand(choice)
    assert len(load_task(choice).examples["train"]) == 80
    with pytest.raises(DataError, match=r"a\.csv: no such file"):
        look_at_task(TaskChoice(name=str(tmp_path / "t.toml")))
