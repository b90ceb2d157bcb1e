"""What a CPU computes in follows from the switch alone: in both kinds a run trains, is kept apart,
goes on, and answers as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.build import TRAIN, run_config
from tsugiki.runs.finished import score_run
from tsugiki.runs.reading import RunRecord
from tsugiki.runs.record import StoredNumerics
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.runs.use import answer_texts, export_merged

pytestmark = pytest.mark.precision

AUTO = {**TRAIN, "precision": "auto"}
KINDS = {"0": "fp32", "1": "bf16"}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TSUGIKI_CPU_BF16", request.param)
    return KINDS[request.param]


def run_of(method: str, model: Path, task: Path, store: Path) -> RunRecord:
    changes = {"method": "full", "lora": None} if method == "full" else {}
    [record] = run_group([run_config(model, task, train=AUTO, **changes)], Store(store))
    return record


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_in_each_kind_is_trained_scored_and_asked(
    method: str, kind: str, model_folder: Path, task_file: Path, tmp_path: Path
) -> None:
    record = score_run(run_of(method, model_folder, task_file, tmp_path), "test")
    stored = kind if method == "lora" else "fp32"
    halves = (method, kind) == ("full", "bf16")
    trained = "fp32 (bf16 + int16)" if halves else "fp32"
    assert record.provenance.numerics == StoredNumerics(compute=kind, base=stored, trained=trained)
    assert record.losses[-1] < record.losses[0]
    prompt = "文1: 犬が公園を走っています。[SEP]文2: 動物が外にいます。[SEP]"
    assert answer_texts(record, [prompt], 6) == answer_texts(record, [prompt], 6)
    if method == "full":
        seen = export_merged(record, tmp_path / "merged", "fp32")
        assert seen.changed == 0


def test_the_two_kinds_are_two_runs(
    model_folder: Path, task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = set()
    for given in KINDS:
        monkeypatch.setenv("TSUGIKI_CPU_BF16", given)
        folders.add(run_of("lora", model_folder, task_file, tmp_path).folder)
    assert len(folders) == 2
