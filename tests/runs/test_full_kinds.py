"""Full fine-tuning whose weights and moments are kept in fewer bits, as a user meets it: a run, its
scores, its exported model, rows of a study."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.build import TRAIN, in_words, run_config, study_of
from tsugiki.config.run import RunConfig
from tsugiki.fast.adamw import joined
from tsugiki.report.material import gather
from tsugiki.report.notes import protocol_text
from tsugiki.runs.finished import score_run
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.runs.use import export_merged
from tsugiki.study.cells import parse_study
from tsugiki.study.sweep import run_study
from tsugiki.train.checkpoint import latest_tensors

KINDS = [
    {},
    {"moments": "bf16"},
    {"moments": "8bit", "weights": "24bit"},
    {"moments": "8bit", "clip_from": "last_step"},
]


@pytest.fixture(autouse=True)
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CPU_BF16", "1")


def full(model: Path, task: Path, **changes: str) -> RunConfig:
    train = {**TRAIN, "precision": "auto", "learning_rate": 3e-3, **changes}
    return run_config(model, task, method="full", lora=None, train=train)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_run_of_each_kind_is_scored_and_exported_as_it_was_trained(
    changes: dict[str, str], model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    [record] = run_group([full(model_folder, task_file, **changes)], Store(tmp_path / "runs"))
    assert record.losses[-1] < record.losses[0]
    trained = record.scores("validation")
    assert trained is not None
    weights = record.folder / "weights"
    kept = {name: tensor.clone() for name, tensor in latest_tensors(weights).items()}
    again = score_run(record, "test")
    assert again.scores("test") is not None
    seen = export_merged(record, tmp_path / "merged", "fp32")
    assert seen.changed == 0
    written = load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in written.items():
        whole = joined(kept[f"param/{name}"], kept[f"rest/{name}"])
        assert torch.equal(tensor, whole), name
        assert not torch.equal(tensor, tensor.bfloat16().float()) or tensor.numel() < 64, name


def test_each_kind_is_another_run_and_the_default_is_named_as_before(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    names = [run_group([full(model_folder, task_file, **kind)], store)[0].folder for kind in KINDS]
    assert len(set(names)) == len(KINDS)
    spelt_out = {"moments": "fp32", "weights": "fp32", "clip_from": "exact"}
    assert run_group([full(model_folder, task_file, **spelt_out)], store)[0].folder == names[0]


def test_kinds_are_rows_of_a_study_and_lora_reads_nothing_of_them(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    """[train] names a kind for full fine-tuning; a method's grid names its own."""
    given = study_of(model_folder, task_file)
    rate = {"learning_rate": [3e-3]}
    given["train"] = {"epochs": 2, "precision": "bf16", "moments": "bf16"}
    given["methods"] = [
        {"name": "LoRA", "kind": "lora", "grid": {**rate, "rank": [2]}},
        {"name": "FT", "kind": "full", "grid": {**rate, "moments": ["fp32"]}},
        {"name": "FT bf16", "kind": "full", "grid": rate},
        {"name": "FT 8-bit", "kind": "full", "grid": {**rate, "moments": ["8bit"]}},
    ]
    result = run_study(parse_study(given, "study"), Store(tmp_path))
    assert result.missing == {}
    kinds = {key[2]: cell.config.train.moments for key, cell in result.chosen.items()}
    assert kinds == {"LoRA": "fp32", "FT": "fp32", "FT bf16": "bf16", "FT 8-bit": "8bit"}
    tables = {table.name: table for table in in_words(gather(result))}
    rows = [" ".join(map(str, row)) for row in tables["scores"].rows]
    assert [sum(name in row for row in rows) for name in ("FT bf16", "FT 8-bit")] == [1, 1]
    said = {
        cell.method.name: protocol_text(result.records[cell.label], "en").split(";")[0]
        for cell in result.chosen.values()
    }
    assert said["FT"] == "FT: dropout 0"
    assert said["FT bf16"] == "FT: dropout 0, moments bf16"
    assert said["FT 8-bit"] == "FT: dropout 0, moments 8bit"
