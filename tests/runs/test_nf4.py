"""QLoRA as a user meets it: runs, rows of a study, an exported adapter, a merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests import build
from tests.build import TRAIN, in_words, run_config, study_of
from tests.model.test_nf4 import save_4bit
from tests.runs.test_export import snippet_in
from tsugiki.cli import export_commands, run_commands
from tsugiki.cli.app import app
from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError
from tsugiki.model.layouts import groups_of
from tsugiki.model.loading import num_parameters, read_model
from tsugiki.model.lora import lora_layers
from tsugiki.model.nf4 import Nf4Linear
from tsugiki.report.material import gather
from tsugiki.runs.finished import load_trained, score_run
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.runs.use import export_merged, export_run
from tsugiki.study.cells import parse_study
from tsugiki.study.sweep import run_study


@pytest.fixture
def broad(tmp_path: Path) -> Path:
    """Rows of whole blocks: on a CPU the library makes others dense wrongly."""
    return build.save(tmp_path / "broad", "broad gpt2")


def trained(model: Path, task: Path, out: Path, **train: Any) -> RunRecord:
    choice = {"path": str(model), "name": "tiny", "base": "nf4"}
    asked = {**TRAIN, "epochs": 6, "learning_rate": 2e-2, **train}
    config = run_config(model, task, model=choice, train=asked)
    [record] = run_group([config], Store(out))
    return record


def test_the_record_says_what_the_base_was_kept_in(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = trained(model_folder, task_file, tmp_path)
    assert record.provenance.numerics.base == "nf4"
    assert record.losses[-1] < record.losses[0]
    train = {**TRAIN, "epochs": 6, "learning_rate": 2e-2}
    config = run_config(model_folder, task_file, train=train)
    [plain] = run_group([config], Store(tmp_path))
    assert plain.folder != record.folder
    base = load_trained(record)
    coded = sum(isinstance(module, Nf4Linear) for module in base.model.modules())
    assert coded == sum(map(len, groups_of(base.model)))
    assert len(lora_layers(base.model)) == 4
    same = base.num_parameters - record.outcome.trainable
    assert record.outcome.total == plain.outcome.total == same + record.outcome.trainable


def test_the_exported_adapter_answers_alike_over_the_librarys_4_bits(
    broad: Path, task_file: Path, tmp_path: Path
) -> None:
    record = score_run(trained(broad, task_file, tmp_path / "out"), "test")
    export_run(record, tmp_path / "adapter")
    made: dict[str, Any] = {}
    exec(snippet_in(tmp_path / "adapter"), made)
    assert made["model"].base_model.model.is_loaded_in_4bit
    rows = load_task(record.config.task).examples["test"]
    answers = [made["answer"](**row.fields) for row in rows]
    assert answers == [row.answer for row in record.answers("test")]
    assert "4 bits" in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")


def test_a_merged_model_is_of_the_dense_values(
    broad: Path, task_file: Path, tmp_path: Path
) -> None:
    """Not of the weights before they were rounded: adapters were trained over the rounded ones."""
    record = trained(broad, task_file, tmp_path / "out")
    seen = export_merged(record, tmp_path / "merged", "fp32")
    assert seen.changed == 0
    assert seen.stored_before == "nf4"
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    base = load_trained(record)
    layer = base.model.get_submodule("transformer.h.1.mlp.c_fc")
    dense = layer.dense().t()
    assert torch.equal(weights["transformer.h.1.mlp.c_fc.weight"], dense)
    assert "quantization_config" not in json.loads(
        (tmp_path / "merged" / "config.json").read_text(encoding="utf-8")
    )


def test_over_a_ready_4_bit_checkpoint_all_of_it_works(
    broad: Path, task_file: Path, tmp_path: Path
) -> None:
    """Training, scores, and a merged model that is in 4 bits no more."""
    folder = save_4bit(build.save(tmp_path / "b", "broad qwen3"), tmp_path / "4bit")
    record = score_run(trained(folder, task_file, tmp_path / "out"), "test")
    assert record.losses[-1] < record.losses[0]
    seen = export_merged(record, tmp_path / "merged", "fp32")
    assert seen.changed == 0
    given = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in given
    assert given["dtype"] == "float32"
    model = read_model(tmp_path / "merged", torch.float32)
    assert model.num_parameters() == num_parameters(build.broad_qwen3())


def test_merging_into_4_bits_is_refused_with_the_way(
    broad: Path, task_file: Path, tmp_path: Path
) -> None:
    record = trained(broad, task_file, tmp_path / "out", epochs=1)
    assert export_commands.app is run_commands.app is app
    wanted = ["export", str(record.folder), "--to", str(tmp_path / "merged"), "--merge"]
    refused = CliRunner().invoke(app, [*wanted, "--dtype", "nf4"])
    assert "Merge into bf16" in str(refused.exception), refused.output
    written = CliRunner().invoke(app, [*wanted, "--force"])
    assert "weights nf4 → bf16" in written.stdout


def test_qlora_is_a_row_beside_lora_and_full_fine_tuning(
    model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    given = study_of(model_folder, task_file)
    rate = {"learning_rate": [3e-3]}
    given["methods"] = [
        {"name": "LoRA", "kind": "lora", "grid": {**rate, "rank": [2]}},
        {"name": "QLoRA", "kind": "lora", "base": "nf4", "grid": {**rate, "rank": [2]}},
        {"name": "FT", "kind": "full", "grid": rate},
        {"name": "base", "kind": "base"},
        {"name": "base nf4", "kind": "base", "base": "nf4"},
    ]
    result = run_study(parse_study(given, "study"), Store(tmp_path))
    assert result.missing == {}
    kept = {
        key[2]: result.records[cell.label].provenance.numerics.base
        for key, cell in result.chosen.items()
    }
    wanted = {"LoRA": "fp32", "QLoRA": "nf4", "FT": "fp32", "base": "fp32", "base nf4": "nf4"}
    assert kept == wanted
    tables = {table.name: table for table in in_words(gather(result))}
    for name in ("scores", "costs"):
        rows = [" ".join(map(str, row)) for row in tables[name].rows]
        assert sum("QLoRA" in row for row in rows) == 1, name
    given["methods"][2]["base"] = "nf4"
    with pytest.raises(ConfigError, match='4 bits cannot be tuned by kind = "full"'):
        parse_study(given, "study")
