"""The names of runs stay: a field added to a schema must not change the identity of what does not
use it, or users' finished runs are lost to them."""

from __future__ import annotations

import pytest

from tsugiki.config.run import RunConfig, TaskChoice
from tsugiki.data.tasks import load_task, task_digest
from tsugiki.runs.identity import identity_of, old_identity, recipe_of, rows_sha256
from tsugiki.runs.record import Provenance, StoredNumerics

GIVEN = {"model": {"path": "builtin"}, "task": {"name": "sample_nli"}}
LORA = {"train": {"learning_rate": 1e-3}}
FULL = {"method": "full", "train": {"learning_rate": 1e-3, "schedule": "wsd"}}


def made_with(config: RunConfig) -> Provenance:
    return Provenance(
        semantics=3,
        recipe_sha256=recipe_of(config, load_task(config.task)),
        model_sha256="m",
        settings_sha256="s",
        task_sha256="t",
        numerics=StoredNumerics(compute="fp32", base="fp32", trained="fp32"),
        device_type="cpu",
        device="any",
    )


@pytest.mark.parametrize(
    ("more", "now", "before"),
    [(LORA, "9eb5c0192ae2", "d37a4072a680"), (FULL, "68300750b83b", "aafb12532f29")],
)
def test_a_run_keeps_its_name(more: dict, now: str, before: str) -> None:
    config = RunConfig(**GIVEN, **more)
    assert identity_of(made_with(config)) == now
    assert old_identity(config, made_with(config)) == before


def test_labels_paths_and_scoring_describe_a_run_and_do_not_name_it() -> None:
    plain = RunConfig(**GIVEN, **LORA)
    name = identity_of(made_with(plain))
    for change in (
        {"model": {"path": "elsewhere/model", "name": "another name"}},
        {"task": {"name": "sample_nli", "data_dir": "/somewhere", "eval_rows": 5}},
        {"score": {"batch": 4, "validations": 3, "validation_rows": 7, "max_new_tokens": 5}},
    ):
        same = RunConfig(**{**GIVEN, **LORA, **change})
        if "data_dir" in str(change):
            same = RunConfig(**{**GIVEN, **LORA, "task": {"name": "sample_nli", "eval_rows": 5}})
        assert identity_of(made_with(same)) == name, change
    for change in (
        {"train": {"learning_rate": 1e-3, "seed": 1}},
        {"lora": {"rank": 4}},
        {"task": {"name": "sample_nli", "train_rows": 5}},
        {"task": {"name": "sample_nli", "format": "plain"}},
    ):
        other = RunConfig(**{**GIVEN, **LORA, **change})
        assert identity_of(made_with(other)) != name, change


@pytest.mark.parametrize(
    ("task", "digest", "rows"),
    [
        ("sample_nli", "69b736c56d8590f9", "f5903e44fe5f7b84"),
        ("sample_choice", "cc878e8bb1d072c9", "102368e79e681875"),
        ("sample_headline", "4443e86cb58db6a9", "ce1ead63b04b880b"),
    ],
)
def test_a_task_keeps_its_digest(task: str, digest: str, rows: str) -> None:
    loaded = load_task(TaskChoice(name=task))
    assert task_digest(loaded).startswith(digest)
    assert rows_sha256(loaded, "train").startswith(rows)
