"""What others use a run with: task files of lm-evaluation-harness and flexeval, a repository on the
Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import build
from tests.build import TRAIN, run_config
from tests.data.hub import serve
from tests.data.test_hub import run as run_there
from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError, ModelError
from tsugiki.model.loading import load_tokenizer
from tsugiki.runs.finished import score_run
from tsugiki.runs.push import push_adapter
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.runs.use import export_for_tool


def trained(model: Path, task: Path, out: Path, **changes: Any) -> RunRecord:
    config = run_config(model, task, train={**TRAIN, "epochs": 1}, **changes)
    [record] = run_group([config], Store(out))
    return record


@pytest.mark.parametrize("tool", ["lm-eval", "flexeval"])
def test_a_task_asks_the_tool_what_the_evaluation_asked(
    tool: str, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = score_run(trained(model_folder, task_file, tmp_path / "out"), "test")
    export_for_tool(record, tmp_path / "scored", tool)
    lines = (tmp_path / "scored" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows, examples = [json.loads(line) for line in lines], load_task(record.config.task).examples
    assert [row["target"] for row in rows] == [each.target for each in examples["test"]]
    tokenizer = load_tokenizer(model_folder)
    assert all("[SEP]" in row["prompt"] for row in rows)
    assert all(tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for row in rows)
    assert (tmp_path / "scored" / "adapter" / "adapter_model.safetensors").exists()
    said = (tmp_path / "scored" / "README.md").read_text(encoding="utf-8")
    assert f"{record.main_score('test'):.4f}" in said
    assert "float32" in said
    if tool == "flexeval":
        setup = json.loads((tmp_path / "scored" / "tsugiki_tiny.jsonnet").read_text("utf-8"))
        assert setup["init_args"]["gen_kwargs"]["max_new_tokens"] == 6
        return
    text = (tmp_path / "scored" / "tsugiki_tiny.yaml").read_text(encoding="utf-8")
    task = yaml.safe_load(text.replace("!function ", ""))
    assert task["generation_kwargs"] == {"until": ["</s>"], "max_gen_toks": 6, "do_sample": False}
    made: dict[str, Any] = {}
    exec((tmp_path / "scored" / "rule.py").read_text(encoding="utf-8"), made)
    for answer, target in (("含意", "含意"), (" 含意\n", "含意"), ("含意。", "含意"), ("", "含意")):
        found = made["process_results"]({"target": target}, [answer])
        assert found == {"accuracy": float(answer.strip() == target)}


def test_full_fine_tuning_is_scored_over_its_merged_model(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = trained(model_folder, task_file, tmp_path / "out", method="full", lora=None)
    export_for_tool(record, tmp_path / "scored", "lm-eval")
    assert not (tmp_path / "scored" / "adapter").exists()
    assert "pretrained=MERGED" in (tmp_path / "scored" / "README.md").read_text(encoding="utf-8")


def test_a_score_that_is_no_match_is_refused_with_the_way(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    text = task_file.read_text(encoding="utf-8").replace('"accuracy"', '"char_f1"')
    other = task_file.with_name("other.toml")
    text = text.replace('"classification"', '"generation"').replace('"tiny"', '"other"')
    other.write_text("\n".join(line for line in text.splitlines() if "[labels]" not in line
                               and line[:4] not in ('e = ', 'n = ', 'c = ')), "utf-8")  # fmt: skip
    record = trained(model_folder, other, tmp_path / "out")
    with pytest.raises(ConfigError, match="score RUN --rules all"):
        export_for_tool(record, tmp_path / "scored", "lm-eval")
    assert not (tmp_path / "scored").exists(), "all of it or nothing"


def test_an_adapter_over_a_folder_of_this_machine_is_not_pushed(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = trained(model_folder, task_file, tmp_path / "out")
    with pytest.raises(ModelError, match="lies on this machine alone"):
        push_adapter(record, tmp_path / "adapter", "someone/adapter")
    assert not (tmp_path / "adapter").exists()


PUSH = """
from pathlib import Path
from tests.build import TRAIN, run_config
from tsugiki.errors import TsugikiError
from tsugiki.runs.push import push_adapter
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
task, out = map(Path, {paths!r})
model = {{"path": "someone/tiny", "name": "tiny"}}
config = run_config(Path("m"), task, model=model, train={{**TRAIN, "epochs": 1}})
[record] = run_group([config], Store(out))
for folder in ("first", "second"):
    try:
        print("pushed to", push_adapter(record, out / folder, "someone/adapter"))
    except TsugikiError as error:
        print(type(error).__name__, error)
"""


def test_an_adapter_becomes_a_new_private_repository_and_never_another(
    task_file: Path, tmp_path: Path
) -> None:
    """Over a base of the Hub; of a local server that speaks its protocol."""
    build.save(tmp_path / "repo")
    code = PUSH.format(paths=[str(task_file), str(tmp_path / "out")])
    with serve(tmp_path / "repo", "models", "someone/tiny") as hub:
        paths = f"src:{Path.cwd()}"
        done = run_there(code, hub.address, tmp_path / "home", HF_TOKEN="hf_x", PYTHONPATH=paths)
    assert f"pushed to {hub.address}/someone/adapter" in done.stdout, done.stdout + done.stderr
    [wanted] = hub.asked
    assert wanted.get("visibility") == "private" or wanted.get("private") is True, wanted
    pushed = hub.made["someone/adapter"]
    written = {path.name: path.read_bytes() for path in (tmp_path / "out" / "first").iterdir()}
    assert {name: pushed[name] for name in written} == written
    assert json.loads(pushed["adapter_config.json"])["base_model_name_or_path"] == "someone/tiny"
    assert b"hf_x" not in b"".join(pushed.values())
    assert "ModelError --push someone/adapter: the Hub answered" in done.stdout
