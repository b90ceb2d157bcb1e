"""Adapters that plain peft made: imported as runs, scored, set beside trained cells, exported
again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch

from tests import build
from tests.build import TRAIN, in_words, run_config, study_of
from tsugiki.config.run import RunConfig
from tsugiki.data.prompts import prompt_ids_of, render
from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError, ModelError
from tsugiki.report.material import gather
from tsugiki.report.write import write_report
from tsugiki.runs.events import Events
from tsugiki.runs.finished import score_run
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.runs.use import export_run
from tsugiki.study.cells import parse_study
from tsugiki.study.sweep import run_study
from tsugiki.toml import parse

MADE = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "neox": ["query_key_value", "dense"],
}


def adapter_of(kind: str, folder: Path) -> Path:
    """What a user of peft has: a trained adapter on disk. (Values drawn, so that it changes the
    answers.)"""
    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=MADE[kind],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        fan_in_fan_out=kind == "gpt2",
    )
    model = peft.get_peft_model(build.MODELS[kind](), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.mul_(6)
    model.save_pretrained(folder)
    return folder


def imported(model: Path, task: Path, adapter: Path) -> RunConfig:
    return run_config(model, task, lora=None, train={"precision": "fp32"}, adapter=str(adapter))


@pytest.mark.parametrize("kind", list(MADE))
def test_an_adapter_of_peft_is_scored_as_peft_answers_and_leaves_again(
    kind: str, task_file: Path, tmp_path: Path
) -> None:
    folder = build.save(tmp_path / "model", kind)
    adapter = adapter_of(kind, tmp_path / "adapter")
    [record] = run_group([imported(folder, task_file, adapter)], Store(tmp_path))
    assert record.status == "done"
    record = score_run(record, "test")
    theirs = peft.PeftModel.from_pretrained(build.MODELS[kind](), adapter).eval()
    task, tokenizer = load_task(record.config.task), build.tokenizer()
    answers = record.answers("test")
    for example, kept in zip(task.examples["test"], answers, strict=True):
        ids = torch.tensor([prompt_ids_of(tokenizer, render(task.template, example))])
        out = theirs.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=3)[
            0, ids.shape[1] :
        ]
        assert kept.answer.strip() == tokenizer.decode(out, skip_special_tokens=True).strip()
    export_run(record, tmp_path / "again")
    again = peft.PeftModel.from_pretrained(build.MODELS[kind](), tmp_path / "again").eval()
    probe = torch.tensor([[5, 9, 30, 41]])
    torch.testing.assert_close(again(probe).logits, theirs(probe).logits, rtol=1e-5, atol=1e-5)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"adapter .*adapter_model.safetensors: cannot be read"):
        run_group([imported(folder, task_file, adapter)], Store(tmp_path / "other"))
    export_run(record, tmp_path / "once-more")


def test_an_imported_adapter_has_a_row_beside_trained_cells(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    adapter = adapter_of("llama", tmp_path / "adapter")
    given = study_of(model_folder, task_file)
    cells = [
        {"name": "theirs", "kind": "lora", "adapter": str(adapter)},
        {"name": "LoRA", "kind": "lora", "grid": {"learning_rate": [1e-2], "rank": [2]}},
    ]
    study = parse_study({**given, "methods": cells, "reference_rows": False}, "study")
    result = run_study(study, Store(tmp_path))
    page = write_report(gather(result), tmp_path)
    tables = in_words(gather(result))
    rows = next(table for table in tables if table.name == "scores").rows
    assert [row[1] for row in rows[:2]] == ["tiny-theirs", "tiny-LoRA"]
    assert rows[0][2] != "not scored yet"
    text = page.read_text(encoding="utf-8")
    assert (
        "imported adapter (q+v+down, r = 3, α = 6): trained elsewhere, on what is not known here"
        in text
    )
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    run_study(study, Store(tmp_path))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}


def test_another_adapter_at_the_same_place_is_another_run(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    config = imported(model_folder, task_file, adapter_of("llama", tmp_path / "adapter"))
    [one] = run_group([config], Store(tmp_path))
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 6', '"lora_alpha": 7'))
    [other] = run_group([config], Store(tmp_path))
    assert one.folder != other.folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"rank": 2}}, r"adapter: needs method = \"lora\" and no \[lora\]"),
        ({"method": "full", "train": TRAIN}, r"adapter: needs method = \"lora\""),
    ],
)
def test_settings_that_an_adapter_would_ignore_are_refused(
    change: dict, message: str, model_folder: Path, task_file: Path
) -> None:
    given = {
        "model": {"path": str(model_folder)},
        "task": {"name": str(task_file)},
        "adapter": "somewhere",
        **change,
    }
    with pytest.raises(ConfigError, match=message):
        parse(RunConfig, given, "test")


@pytest.mark.slow
def test_the_command(model_folder: Path, task_file: Path, tmp_path: Path) -> None:
    adapter = adapter_of("llama", tmp_path / "adapter")
    command = [
        sys.executable,
        "-m",
        "tsugiki",
        "import",
        str(adapter),
        "--model",
        str(model_folder),
        "--task",
        str(task_file),
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "LoRA q+v+down, rank 3, α 6" in done.stdout
    assert "Next: tsugiki score" in done.stdout
    (adapter / "adapter_config.json").write_text(
        (adapter / "adapter_config.json")
        .read_text()
        .replace('"use_dora": false', '"use_dora": true')
    )
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "use_dora = True is not implemented" in done.stderr


def adapter_with(
    folder: Path, to: Path, settings: dict | None = None, change: object = None
) -> Path:
    """A copy of an adapter with other settings (None takes a key away) or tensors."""
    import json

    from safetensors.torch import load_file, save_file

    to.mkdir()
    given = {
        **json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")),
        **(settings or {}),
    }
    (to / "adapter_config.json").write_text(json.dumps(given), encoding="utf-8")
    tensors = load_file(folder / "adapter_model.safetensors")
    changed = change(tensors) if change else tensors  # type: ignore[operator]
    save_file(changed, to / "adapter_model.safetensors")
    return to


def not_finite(tensors: dict) -> dict:
    name = min(tensors)
    tensors[name][0, 0] = float("inf")
    return tensors


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({}, not_finite, "holds values that are not finite numbers"),
        ({"lora_alpha": float("inf")}, None, "lora_alpha = inf must be above 0, and a number"),
        ({"lora_alpha": True}, None, "lora_alpha = True must be above 0, and a number"),
        (
            {"r": 4},
            None,
            r"has 3 rows, but adapter_config.json says rank 4: peft would scale it otherwise",
        ),
        ({"peft_type": "IA3"}, None, "peft_type = 'IA3' is not implemented"),
        ({"task_type": "SEQ_CLS"}, None, "task_type = 'SEQ_CLS' is not implemented"),
        ({"bias": "all"}, None, "bias = 'all' is not implemented"),
        ({"use_something_new": True}, None, "use_something_new = True is not known here"),
        ({"rank_pattern": {"((a|aa)+)+$(": 3}}, None, "is no regular expression"),
    ],
)
def test_adapters_that_are_not_what_they_seem_are_refused_before_a_run_exists(
    settings: dict,
    tensors: object,
    message: str,
    model_folder: Path,
    task_file: Path,
    tmp_path: Path,
) -> None:
    made = adapter_with(
        adapter_of("llama", tmp_path / "adapter"), tmp_path / "changed", settings, tensors
    )
    with pytest.raises(ModelError, match=message):
        run_group([imported(model_folder, task_file, made)], Store(tmp_path))
    assert not (tmp_path / "runs").exists()


def test_an_adapter_made_for_another_base_is_told(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    made = adapter_with(
        adapter_of("llama", tmp_path / "adapter"),
        tmp_path / "changed",
        {"base_model_name_or_path": "someone/another-7b"},
    )
    notes: list[str] = []
    run_group(
        [imported(model_folder, task_file, made)], Store(tmp_path), Events(on_note=notes.append)
    )
    assert any("says that it was made for someone/another-7b" in note for note in notes)
