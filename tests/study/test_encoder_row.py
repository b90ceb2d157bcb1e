"""A study with an encoder's row beside LoRA's and full fine-tuning's, to its report."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests import build
from tests.runs.test_encoder import save_pairs
from tsugiki.config.study import StudySpec
from tsugiki.errors import ConfigError
from tsugiki.report.material import gather
from tsugiki.report.write import write_report
from tsugiki.runs.store import Store
from tsugiki.study.cells import collect, expand, parse_study
from tsugiki.study.sweep import run_study


def study_with(folder: Path, **changes: object) -> StudySpec:
    """LoRA and full fine-tuning of a tiny Llama, an encoder; two closed tasks and one of free
    text."""
    tiny = save_pairs(folder / "tiny")
    text = tiny.read_text(encoding="utf-8")
    start, end = text.index("[labels]"), text.index("[formats]")
    free = (text[:start] + text[end:]).replace('name = "tiny"', 'name = "free"')
    free = free.replace("classification", "generation").replace('"accuracy"', '"char_f1"')
    (folder / "tiny" / "free.toml").write_text(free, encoding="utf-8")
    tasks = [tiny, build.save_choice(folder / "choice"), folder / "tiny" / "free.toml"]
    given = {
        "name": "with_encoder",
        "seeds": 2,
        "models": [{"path": str(build.save(folder / "llama")), "name": "causal"}],
        "tasks": [{"name": str(task)} for task in tasks],
        "train": {"epochs": 20, "batch": 8, "precision": "fp32"},
        "methods": [
            {"name": "LoRA", "kind": "lora", "grid": {"learning_rate": [1e-2]}},
            {"name": "FT", "kind": "full", "grid": {"learning_rate": [3e-3]}},
            {
                "name": "RoBERTa",
                "kind": "encoder",
                "model": str(build.save_encoder(folder / "roberta-tiny")),
                "grid": {"learning_rate": [1e-5, 3e-3]},
            },
        ],
        **changes,
    }
    return parse_study(given, "test")


@pytest.mark.slow
def test_a_row_beside_the_others_to_its_report(tmp_path: Path) -> None:
    study, store = study_with(tmp_path), Store(tmp_path / "out")
    result = run_study(study, store)

    # Chosen on validation, both seeds scored on test, nothing outside the candidates.
    for task in ("tiny", "tiny_choice"):
        cell = result.chosen["causal", task, "RoBERTa"]
        assert cell.settings == {"learning_rate": 3e-3}
        runs = result.seeds(cell)
        assert [run.config.train.seed for run in runs] == [0, 1]
        assert all(run.scored("test").candidate_rate == 1.0 for run in runs)
        assert all(run.main_score("test") > 0.5 for run in runs)
        assert runs[0].outcome.trainable == runs[0].outcome.total
    # Free text has no such row: its reason stands there, and the others were run.
    assert ("causal", "free", "RoBERTa") not in result.chosen
    assert ("causal", "free", "LoRA") in result.chosen
    reasons = [why for label, why in result.missing.items() if " free · RoBERTa" in label]
    assert len(reasons) == 2
    assert all("its answers are free text" in why for why in reasons)

    where = write_report(gather(result, "tsugiki study s"), store.root, "en")
    folder = where if where.is_dir() else where.parent
    for page in ("report.en.html", "report.ja.html"):
        html = (folder / page).read_text(encoding="utf-8")
        assert "RoBERTa (roberta-tiny)" in html
    assert "選択肢から選ぶエンコーダ" in html
    with (folder / "scores.csv").open(encoding="utf-8-sig") as file:
        scores = {(row["task"], row["method"]): row for row in csv.DictReader(file)}
    row = scores["tiny", "RoBERTa (roberta-tiny)"]
    assert (row["n"], row["seeds"], row["candidate_rate"]) == ("9", "2", "1.0")
    assert "free text" in scores["free", "RoBERTa (roberta-tiny)"]["note"]
    assert scores["tiny", "causal-FT"]["note"] == "difference: reference"

    # Compared with the causal model's own methods, pair by pair.
    with (folder / "comparison.csv").open(encoding="utf-8-sig") as file:
        pairs = {tuple(row[name] for name in ("first", "second")) for row in csv.DictReader(file)}
    assert {("LoRA", "FT"), ("LoRA", "RoBERTa"), ("RoBERTa", "FT")} <= pairs

    # What is on disk is all of it.
    again = collect(study, store)
    assert again.chosen.keys() == result.chosen.keys()


def test_its_model_is_named_and_tells_itself_apart(tmp_path: Path) -> None:
    study = study_with(tmp_path)
    cells = [cell for cell in expand(study) if cell.method.kind == "encoder"]
    assert {cell.config.model.label for cell in cells} == {"roberta-tiny"}
    assert {cell.key[0] for cell in cells} == {"causal"}
    lora, full, row = study.model_dump()["methods"]
    with pytest.raises(ConfigError, match='model: is needed by kind = "encoder"'):
        study_with(tmp_path / "a", methods=[{**row, "model": None}])
    with pytest.raises(ConfigError, match='model: is needed by kind = "encoder"'):
        study_with(tmp_path / "b", methods=[{**lora, "model": {"path": "x"}}])
    with pytest.raises(ConfigError, match='called "causal" like another model'):
        study_with(tmp_path / "c", methods=[{**row, "model": {"path": "x", "name": "causal"}}])
    assert full["model"] is None


def test_check_says_time_and_memory_of_it(tmp_path: Path) -> None:
    from tsugiki.cli.check import Planned, check_file

    study = study_with(tmp_path)
    path = tmp_path / "study.toml"
    path.write_text(_as_toml(study, tmp_path), encoding="utf-8")
    lines = list(check_file(path, planned=Planned(out=tmp_path / "out"), memory_gib=24))
    said = "\n".join(lines)
    assert "tiny: memory: encoder, 2 configurations: 0." in said
    assert "time: causal · tiny_choice · RoBERTa: 3 runs" in said
    assert "model roberta-tiny: " in said


def _as_toml(study: StudySpec, folder: Path) -> str:
    tasks = "\n".join(f'[[tasks]]\nname = "{task.name}"' for task in study.tasks[:2])
    return f"""
name = "checked"
seeds = 2
models = [{{ path = "{folder}/llama", name = "causal" }}]
train = {{ epochs = 2, precision = "fp32" }}
{tasks}
[[methods]]
name = "RoBERTa"
kind = "encoder"
model = "roberta-tiny"
grid = {{ learning_rate = [1e-3, 3e-3] }}
"""
