"""What a run's own numbers say is wrong with it, on runs that were really made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.lora_vs_ft.causes import in_bf16, no_end

from tests import build
from tsugiki.config.run import LoraConfig, TrainConfig
from tsugiki.data.example import Example
from tsugiki.data.prompts import Tokens
from tsugiki.model.lora import attach
from tsugiki.model.numerics import Numerics
from tsugiki.runs import shared as shared_module
from tsugiki.runs.rounds import run_group
from tsugiki.runs.store import Store
from tsugiki.runs.symptoms import lost_updates, symptoms_of
from tsugiki.train.engine import fit
from tsugiki.train.lane import Lane, OneVector
from tsugiki.train.step import EagerStep
from tsugiki.words import in_language

CPU = torch.device("cpu")
FP32 = Numerics(compute="fp32", base="fp32", trained="fp32")


def test_an_end_that_is_not_trained_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run with its answers' ends trained, and with them left out of the loss, as where
    padding is the EOS token and padding is masked."""
    model, task = build.save(tmp_path / "model"), build.save_task(tmp_path / "task")
    train = {"learning_rate": 3e-3, "epochs": 40, "batch": 8, "precision": "fp32"}
    config = build.run_config(model, task, train=train, method="full", lora=None)
    whole = run_group([config], Store(tmp_path / "whole"))[0]
    assert whole.scores("validation") is not None
    assert not symptoms_of(whole, whole.scores("validation"))  # type: ignore[arg-type]

    made = shared_module.tokens_of

    def without_ends(*args: object, **more: object) -> list[Tokens]:
        rows = made(*args, **more)  # type: ignore[arg-type]
        return no_end(rows, args[0], args[1]) if "train" in args else rows  # type: ignore[arg-type]

    monkeypatch.setattr(shared_module, "tokens_of", without_ends)
    broken = run_group([config], Store(tmp_path / "broken"))[0]
    scores = broken.scores("validation")
    assert scores is not None
    [said, *_] = symptoms_of(broken, scores)
    assert said.startswith("answers end nowhere: ")
    assert "解答が終わりません" in in_language("ja", said)
    assert scores.main.value < 0.05


def test_a_rate_far_below_the_recipe_is_named_where_answers_have_no_form(tmp_path: Path) -> None:
    model, task = build.save(tmp_path / "model"), build.save_task(tmp_path / "task")
    config = build.run_config(
        model, task, train={"learning_rate": 1e-6, "epochs": 1, "batch": 8, "precision": "fp32"}
    )
    record = run_group([config], Store(tmp_path / "runs"))[0]
    scores = record.scores("validation")
    assert scores is not None
    said = symptoms_of(record, scores)
    assert len(said) == 2
    assert "times lower than the recipe's" in said[1]


@pytest.mark.parametrize(("rounded", "rate"), [(False, 1e-5), (True, 1e-5), (True, 1e-2)])
def test_updates_that_rounding_loses_are_named(rounded: bool, rate: float) -> None:
    """A is of the order of .1 and moves by the rate: in bf16, eight bits, a step of 1e-5 is none.
    In fp32 it is one, and so is one of 1e-2 in bf16."""
    rows = [
        Tokens(
            example=Example(id=str(n), fields={}, target=""),
            prompt_ids=(10 + n, 30, 40),
            target_ids=(50 + n, 2),
        )
        for n in range(8)
    ]
    model = build.llama()
    train = TrainConfig(learning_rate=rate, epochs=5, batch=4, precision="fp32")
    attached = attach(model, LoraConfig(targets="all-linear", rank=4), seed=0)
    lane = Lane("LoRA", attached.parameters, train, len(rows), moves=OneVector(attached))
    if rounded:
        in_bf16(lane)
    assert lane.lost_to_rounding() is None
    fit(EagerStep(model, rows, 3, CPU, FP32), [lane], CPU, folders=[None])
    said = list(lost_updates(lane.name, lane.lost_to_rounding()))
    assert bool(said) == (rounded and rate < 1e-3), lane.lost_to_rounding()
    if said:
        assert said[0].startswith("updates are lost to rounding: a step of LoRA left ")
