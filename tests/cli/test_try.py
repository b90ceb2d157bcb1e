"""The page on this machine: what it answers, and whom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests import build
from tests.build import TRAIN, run_config
from tsugiki.cli.try_page import app_of
from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError
from tsugiki.runs.finished import score_run
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.rounds import run_group
from tsugiki.runs.side_by_side import SideBySide
from tsugiki.runs.store import Store
from tsugiki.runs.use import answer_texts

HERE = "http://127.0.0.1:8765"


@pytest.fixture
def records(model_folder: Path, task_file: Path, tmp_path: Path) -> list[RunRecord]:
    """LoRA, full fine-tuning, and the untouched base."""
    store, train = Store(tmp_path / "out"), {**TRAIN, "epochs": 3}
    configs = [
        run_config(model_folder, task_file, train=train),
        run_config(model_folder, task_file, method="full", lora=None, train=train),
        run_config(model_folder, task_file, method="base", lora=None, train={"precision": "fp32"}),
    ]
    return [score_run(run_group([config], store)[0], "test") for config in configs]


def client_of(records: list[RunRecord], **given: str) -> TestClient:
    return TestClient(app_of(SideBySide(records), "en"), base_url=given.get("url", HERE))


def test_every_column_answers_as_its_run_did(records: list[RunRecord]) -> None:
    runs, task = SideBySide(records[:2]), load_task(records[0].config.task)
    base, lora, full = (
        {row.id: row.answer for row in record.answers("test")}
        for record in (records[2], records[0], records[1])
    )
    for example in task.examples["test"]:
        prompt, said = runs.row(example.fields)
        assert "[SEP]" in prompt
        assert [each.text for each in said] == [base[example.id], lora[example.id],
                                                full[example.id]]  # fmt: skip
        for each in said:
            assert [name for name, _ in each.shares] == ["含意", "中立", "矛盾"]
            assert sum(share for _, share in each.shares) == pytest.approx(1.0)
    assert [name.split()[0] for name in runs.names] == ["base", "LoRA", "FT"]


def test_free_text_is_gone_on_with_as_generate_does(records: list[RunRecord]) -> None:
    said = SideBySide(records[1::-1]).text("犬が公園")
    wanted = [answer_texts(record, ["犬が公園"], 64)[0] for record in (records[1], records[0])]
    assert [each.text for each in said[1:]] == wanted


def test_the_page_shows_escaped_answers_in_both_languages(records: list[RunRecord]) -> None:
    client = client_of(records[:2])
    first = client.get("/")
    assert first.status_code == 200
    assert "default-src 'none'" in first.headers["content-security-policy"]
    assert first.text.count("<textarea") == 3
    given = {"kind": "row", "field:a": "犬<script>alert(1)</script>", "field:b": "猫\"'&"}
    page = client.post("/", data=given).text
    assert "<script" not in page
    assert "犬&lt;script&gt;" in page
    assert len(re.findall(r'class="answer"', page)) == 3
    assert page.count('class="bar"') == 9
    text = client.post("/", data={"kind": "text", "text": "犬が"}).text
    assert len(re.findall(r'class="answer"', text)) == 3
    japanese = TestClient(app_of(SideBySide(records[:1]), "ja"), base_url=HERE).get("/").text
    assert '<html lang="ja">' in japanese
    assert "答える" in japanese


def test_it_answers_to_this_machine_and_its_own_page_alone(records: list[RunRecord]) -> None:
    runs = records[:1]
    assert client_of(runs, url="http://attacker.example").get("/").status_code == 400
    client = client_of(runs)
    given = {"kind": "row", "field:a": "犬", "field:b": "猫"}
    refused = client.post("/", data=given, headers={"Origin": "http://attacker.example"})
    assert refused.status_code == 403
    assert client.post("/", data=given, headers={"Origin": "null"}).status_code == 403
    assert client.post("/", data=given, headers={"Origin": HERE}).status_code == 200
    assert client.post("/", data={"text": "犬" * 300_000}).status_code == 413
    long = client.post("/", data={"kind": "text", "text": "犬" * 21_000})
    assert long.status_code == 400
    assert "20,000 characters" in long.text
    assert client.post("/", data={"kind": "text", "text": " "}).status_code == 400
    assert client.put("/").status_code == 405


def test_runs_of_two_tasks_or_one_twice_are_refused(
    records: list[RunRecord], model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    other = build.save_other(task_file, tmp_path / "other", "other")
    config = run_config(model_folder, other, train=TRAIN)
    [record] = run_group([config], Store(tmp_path / "out"))
    with pytest.raises(ConfigError, match="of 2 tasks"):
        SideBySide([records[0], record])
    with pytest.raises(ConfigError, match="named twice"):
        SideBySide([records[0], records[0]])
