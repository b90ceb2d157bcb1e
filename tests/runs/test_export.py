"""An exported adapter: its card's snippet answers as the evaluation did; whole or not at all."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.build import TRAIN, run_config
from tsugiki.data.tasks import load_task
from tsugiki.errors import ModelError
from tsugiki.runs import use
from tsugiki.runs.finished import score_run
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.runs.use import export_run

CHAT = (
    "{% for turn in messages %}<s>{{ turn['role'] }}: {{ turn['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def trained(model: Path, task_file: Path, out: Path, **changes: Any) -> RunRecord:
    train = {**TRAIN, "epochs": 4}
    config = run_config(
        model, task_file, train=train, lora={"targets": "q+v", "rank": 4}, **changes
    )
    return run_group([config], Store(out))[0]


def snippet_in(folder: Path) -> str:
    """The card's own Python, pointed at the folder."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    code = card.split("```python\n")[1].split("```")[0]
    return code.replace('ADAPTER = "."', f"ADAPTER = {str(folder)!r}")


@pytest.mark.parametrize("form", ["paper", "chat"])
def test_the_cards_snippet_answers_as_the_evaluation_did(
    form: str, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """Whatever the base's own settings of generation are."""
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    settings = {"repetition_penalty": 1.8, "do_sample": True, "temperature": 0.7}
    (base / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    path = base / "tokenizer_config.json"
    given = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**given, "chat_template": CHAT}), encoding="utf-8")
    task = {"name": str(task_file), "format": form}
    record = score_run(trained(base, task_file, tmp_path / "out", task=task), "test")
    export_run(record, tmp_path / "adapter")
    made: dict[str, Any] = {}
    exec(snippet_in(tmp_path / "adapter"), made)  # what a reader of the card runs
    rows = load_task(record.config.task).examples["test"]
    answers = [made["answer"](**row.fields) for row in rows]
    assert answers == [row.answer for row in record.answers("test")]
    assert len(set(answers)) > 1 or record.losses[-1] < record.losses[0]


def test_what_stands_beside_the_weights(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = score_run(trained(model_folder, task_file, tmp_path / "out"), "test")
    export_run(record, tmp_path / "adapter")
    files = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    expected = ["README.md", "adapter_config.json", "adapter_model.safetensors", "tsugiki.json"]
    assert files == expected
    for name in files:
        mode = stat.S_IMODE((tmp_path / "adapter" / name).stat().st_mode)
        assert mode & 0o044 == 0o044, f"{name} can be read by others"
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == str(model_folder.resolve())
    assert front["library_name"] == "peft"
    usage = json.loads((tmp_path / "adapter" / "tsugiki.json").read_text(encoding="utf-8"))
    assert usage["prompt"]["template"] == load_task(record.config.task).template
    values = {(each["part"], each["score"]): each["value"] for each in usage["scores"]}
    assert values["test", "accuracy"] == record.main_score("test")
    assert f"| test | accuracy | {record.main_score('test'):.3f} [" in card
    assert str(task_file) not in card, "folders of the user's are not passed on"


def test_nothing_is_left_of_an_export_that_failed(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = trained(model_folder, task_file, tmp_path / "out")

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(use, "card_of", full)
    with pytest.raises(ModelError, match=r"adapter: cannot be written: .*No space left on device"):
        export_run(record, tmp_path / "adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "task"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("mine")
    with pytest.raises(ModelError, match="not an empty folder"):
        export_run(record, tmp_path / "mine")
    assert (tmp_path / "mine" / "a.txt").read_text() == "mine"
