"""The last line of a study names a command: as it is printed it runs, whatever the task."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests import build
from tests.build import study_of
from tests.cli.test_cli import in_this_process
from tests.data.test_chat import TALK, TEMPLATE
from tsugiki.cli.printing import print_report
from tsugiki.runs.store import Store
from tsugiki.study.cells import parse_study
from tsugiki.study.sweep import run_study
from tsugiki.toml import Given
from tsugiki.words import Language

LORA = [{"name": "LoRA", "kind": "lora", "grid": {"learning_rate": [1e-3], "rank": [2]}}]
BASE = [{"name": "base", "kind": "base"}]


def talk(folder: Path, formatting: str) -> Path:
    """Conversations as OpenAI's or ShareGPT's files hold them."""
    folder.mkdir()
    text = TALK if formatting == "openai" else TALK.replace('messages = "messages"\n', "")
    (folder / "talk.toml").write_text(
        text.replace("max_new_tokens", f'formatting = "{formatting}"\nmax_new_tokens'), "utf-8"
    )
    for name in ("talk", "held_out", "test"):
        turns = [("user", f"{name}の色は？\n$HOME 'x'"), ("assistant", "青です")]
        row: object = {"messages": [{"role": who, "content": said} for who, said in turns]}
        if formatting == "sharegpt":
            other = {"user": "human", "assistant": "gpt"}
            row = {"conversations": [{"from": other[who], "value": said} for who, said in turns]}
        (folder / f"{name}.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    return folder / "talk.toml"


def awkward(folder: Path) -> Path:
    """Rows with what a shell would read otherwise, and with long texts on several lines."""
    path = build.save_task(folder)
    for part in ("train", "validation", "test"):
        file = path.parent / f"{part}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            row["a"] = f"it's $HOME = `{row['a']}`\n" + "長い" * 12
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.write_text(text, encoding="utf-8")
    return path


def task_of(kind: str, folder: Path) -> Given:
    if kind in ("openai", "sharegpt"):
        return {"name": str(talk(folder / "talk", kind))}
    if kind == "classification":
        return {"name": str(awkward(folder / "tiny"))}
    return {"name": f"sample_{kind}", "train_rows": 16, "eval_rows": 6}


def next_command(said: str) -> str:
    [line] = [line for line in said.splitlines() if line.startswith(("Next: ", "次は: "))]
    return re.sub(r"   [（(].*", "", line.partition(": ")[2])


@pytest.mark.parametrize(
    ("kind", "methods", "language"),
    [
        ("classification", LORA, "en"),
        ("choice", LORA, "ja"),
        ("headline", BASE, "en"),
        ("openai", LORA, "ja"),
        ("sharegpt", BASE, "en"),
    ],
)
def test_the_command_that_is_named_runs(
    kind: str, methods: list[Given], language: Language, model_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    settings = base / "tokenizer_config.json"
    given = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps({**given, "chat_template": TEMPLATE}), encoding="utf-8")
    study = {
        "name": "s",
        "train": {"epochs": 1, "precision": "fp32"},
        "models": [{"path": str(base), "name": "tiny"}],
        "tasks": [task_of(kind, tmp_path)],
        "methods": methods,
    }
    monkeypatch.chdir(tmp_path)
    result = run_study(parse_study(study, "s"), Store(Path("my runs")))
    print_report(result, Path("my runs"), "again", False, language)
    said = capsys.readouterr().out
    command = shlex.split(next_command(said))
    assert command[:3] == ["tsugiki", "generate", str(next(iter(result.records.values())).folder)]
    done = in_this_process(monkeypatch, *command[1:])
    assert done.returncode == 0, done.stderr
    assert len(next_command(said)) < 500
    values = [pair.partition("=")[2] for pair in command[4::2]]
    assert all(values)
    if kind == "classification":
        assert values[0].startswith("it's $HOME = `")
    if kind in ("openai", "sharegpt"):
        assert command[4] == "user=held_outの色は？ $HOME 'x'"


def test_where_the_weights_are_elsewhere_a_look_is_named(
    model_folder: Path, task_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    study = {**study_of(model_folder, task_file), "methods": LORA}
    result = run_study(parse_study(study, "s"), Store(tmp_path))
    [record] = result.records.values()
    shutil.rmtree(record.folder / "weights")
    print_report(result, tmp_path, "again", False)
    command = shlex.split(next_command(capsys.readouterr().out))
    assert command == ["tsugiki", "show", str(record.folder)]
    assert in_this_process(monkeypatch, *command[1:]).returncode == 0
