"""What a run is worth on what it was not tuned on: the same numbers as if that were its task, kept
once, with its rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.build import run_config, save_other
from tsugiki.config.run import TaskChoice, TextChoice
from tsugiki.data.documents import read_documents
from tsugiki.errors import DataError
from tsugiki.runs import elsewhere
from tsugiki.runs.answer_modes import answer_modes
from tsugiki.runs.elsewhere import missing_of, read_wanted, score_elsewhere
from tsugiki.runs.finished import load_trained, score_run
from tsugiki.runs.reading import RunRecord, read_answers, read_record
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Run, Store

TEXTS = ["犬が公園を走っています。", "猫は魚を食べた。\n子どもが庭にいる。", "動物が外にいます。"]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.txt"
    path.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def other_task(task_file: Path, tmp_path: Path) -> Path:
    """The same rows under another name, their test and validation exchanged."""
    return save_other(task_file, tmp_path / "other", "other", test="validation", validation="test")


def trained(model: Path, task: Path, root: Path, **changes: object) -> RunRecord:
    return run_group([run_config(model, task, **changes)], Store(root))[0]


FULL = {"method": "full", "lora": None}


@pytest.mark.parametrize("changes", [{}, FULL], ids=["lora", "full"])
def test_a_task_is_scored_as_if_it_were_the_runs_own(
    changes: dict, model_folder: Path, task_file: Path, other_task: Path, tmp_path: Path
) -> None:
    record = trained(model_folder, task_file, tmp_path, **changes)
    wanted = [read_wanted(TaskChoice(name=str(other_task)))]
    record = score_elsewhere(record, wanted)
    [entry] = record.outcome.elsewhere
    assert (entry.name, entry.text) == ("other", None)
    assert entry.scores is not None
    assert entry.likeliest is not None
    # The other task's test rows are this task's validation rows.
    own = record.scored("validation")
    assert entry.scores.main.value == own.main.value
    assert entry.scores.failures == own.failures
    kept = read_answers(record.folder / entry.scores.file)
    assert [row.answer for row in kept] == [row.answer for row in record.answers("validation")]
    modes = {row.mode: row.value for row in answer_modes(record, "validation")}
    assert entry.likeliest.main.value == modes["sum"]


def test_a_texts_perplexity_is_that_of_a_plain_computation(
    model_folder: Path, task_file: Path, text_file: Path, tmp_path: Path
) -> None:
    record = trained(model_folder, task_file, tmp_path)
    record = score_elsewhere(record, [read_wanted(TextChoice(text=str(text_file)))])
    [entry] = record.outcome.elsewhere
    assert entry.text is not None
    lines = (record.folder / entry.text.file).read_text(encoding="utf-8").splitlines()
    kept = [json.loads(line) for line in lines]
    base = load_trained(record)
    opening = base.tokenizer("")["input_ids"][:1]
    for text, (nats, tokens) in zip(TEXTS, kept, strict=True):
        ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
        given = [*opening, *ids]
        with torch.no_grad():
            logits = base.model(torch.tensor([given])).logits[0].log_softmax(-1)
        read = given[1:]
        expected = -sum(float(logits[at, token]) for at, token in enumerate(read))
        assert (nats, tokens) == (pytest.approx(expected, rel=1e-4), len(read))
    assert entry.text.nats == pytest.approx(sum(n for n, _ in kept) / sum(t for _, t in kept))
    assert entry.text.documents == 3


def test_windows_do_not_overlap_and_read_every_token(
    model_folder: Path,
    task_file: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elsewhere, "WINDOW", 7)
    record = trained(model_folder, task_file, tmp_path)
    record = score_elsewhere(record, [read_wanted(TextChoice(text=str(text_file)))])
    text = record.outcome.elsewhere[0].text
    assert text is not None
    tokenizer = load_trained(record).tokenizer
    lengths = [len(tokenizer(each, add_special_tokens=False)["input_ids"]) for each in TEXTS]
    assert text.window == 7
    assert max(lengths) > 14
    given = 0 if tokenizer("")["input_ids"] else sum(math.ceil(each / 7) for each in lengths)
    assert text.tokens == sum(lengths) - given


def test_what_was_scored_is_not_scored_again(
    model_folder: Path,
    task_file: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = trained(model_folder, task_file, tmp_path)
    wanted = [read_wanted(TextChoice(text=str(text_file)))]
    assert len(missing_of(record, wanted)) == 1
    record = score_elsewhere(record, wanted)
    monkeypatch.setattr(elsewhere, "load_trained", lambda record: pytest.fail("loaded again"))
    assert score_elsewhere(record, wanted).outcome == record.outcome
    text_file.write_text("\n\n".join(TEXTS[:2]), encoding="utf-8")
    assert missing_of(record, [read_wanted(TextChoice(text=str(text_file)))]), "another text"


def test_a_runs_own_task_is_no_other_task(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = trained(model_folder, task_file, tmp_path)
    assert missing_of(record, [read_wanted(TaskChoice(name=str(task_file)))]) == []


def test_rows_that_were_trained_on_are_refused(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    leak = save_other(
        task_file, tmp_path / "other", "other", train="validation", test="train", validation="test"
    )
    record = trained(model_folder, task_file, tmp_path)
    with pytest.raises(DataError, match="test is cut from the same rows as the training data"):
        score_elsewhere(record, [read_wanted(TaskChoice(name=str(leak)))])
    assert read_record(record.folder).outcome.elsewhere == ()


def test_a_run_that_starts_over_forgets_it(
    model_folder: Path, task_file: Path, text_file: Path, tmp_path: Path
) -> None:
    record = score_run(trained(model_folder, task_file, tmp_path), "test")
    record = score_elsewhere(record, [read_wanted(TextChoice(text=str(text_file)))])
    before = Run(record.folder).start_over()
    assert not list(record.folder.glob("elsewhere-*"))
    Run(record.folder).put_back(before)
    assert read_record(record.folder).outcome == record.outcome
    assert list(record.folder.glob("elsewhere-*"))


@pytest.mark.parametrize(
    ("name", "content", "changes", "message"),
    [
        ("a.txt", None, {}, "no such file"),
        ("a.txt", " \n\n ", {}, "holds no text"),
        ("a.txt", "犬\0", {}, "NUL"),
        ("a.txt", "犬", {"field": "body"}, "is read of rows only"),
        ("a.jsonl", '{"title": "犬"}', {}, 'no field "text". Name one with field = …: title'),
        ("a.jsonl", '{"text": 3.5}\n{"text": null}', {}, "row 2: text is"),
        ("a.csv", "text\n犬", {"field": "body"}, 'no field "body"'),
    ],
)
def test_a_text_that_cannot_be_read_is_said(
    name: str, content: str | None, changes: dict, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as said:
        read_documents(TextChoice(text=str(path), **changes))
    assert message in str(said.value)
    assert str(path) in str(said.value)


def test_texts_in_another_encoding_are_said_and_few_are_drawn_by_a_seed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("日本語".encode("cp932"))
    with pytest.raises(DataError, match="must be UTF-8"):
        read_documents(TextChoice(text=str(tmp_path / "a.txt")))
    rows = [json.dumps({"content": f"文 {number}"}, ensure_ascii=False) for number in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows), encoding="utf-8")
    some = [
        read_documents(TextChoice(text=str(tmp_path / "a.jsonl"), documents=5)) for _ in range(2)
    ]
    assert some[0] == some[1]
    assert len(set(some[0].texts)) == 5
