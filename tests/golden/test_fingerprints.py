"""The names of runs stay: a field added to a schema must not change the fingerprint of what does
not use it, or users' finished runs are lost to them."""

from __future__ import annotations

import pytest

from tsugiki.config.run import RunConfig, TaskChoice
from tsugiki.data.tasks import load_task, task_digest

GIVEN = {"model": {"path": "builtin"}, "task": {"name": "sample_nli"}}


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"train": {"learning_rate": 1e-3}}, "88d3edf89c59"),
        ({"method": "full", "train": {"learning_rate": 1e-3, "schedule": "wsd"}}, "4700c340f4f2"),
    ],
)
def test_a_run_keeps_its_name(more: dict, name: str) -> None:
    assert RunConfig(**GIVEN, **more).fingerprint({"model_sha256": "x"}) == name


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        ("sample_nli", "69b736c56d8590f9"),
        ("sample_choice", "cc878e8bb1d072c9"),
        ("sample_headline", "4443e86cb58db6a9"),
    ],
)
def test_a_task_keeps_its_digest(task: str, digest: str) -> None:
    assert task_digest(load_task(TaskChoice(name=task))).startswith(digest)
