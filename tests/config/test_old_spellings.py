"""What earlier versions called settings is read, said, and names the same run."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.build import run_config
from tsugiki.config.old_spellings import OldSpelling
from tsugiki.config.run import ScoreConfig
from tsugiki.data.tasks import load_task
from tsugiki.errors import ConfigError
from tsugiki.runs.identity import recipe_of
from tsugiki.study.cells import parse_study
from tsugiki.study.missing import study_folder


def test_an_old_name_is_read_and_said(model_folder: Path, task_file: Path) -> None:
    with pytest.warns(OldSpelling, match=r"score\.during is called score\.validations now"):
        old = run_config(model_folder, task_file, score={"during": 2, "validation_rows": 9})
    assert old.score == ScoreConfig(validations=2, validation_rows=9)


def test_an_old_value_is_read_and_names_the_same_run(model_folder: Path, task_file: Path) -> None:
    train = {"learning_rate": 1e-3}
    with pytest.warns(OldSpelling, match=r'train\.step = "captured" is called "cuda_graph" now'):
        old = run_config(model_folder, task_file, train={**train, "step": "captured"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = run_config(model_folder, task_file, train={**train, "step": "cuda_graph"})
        eager = run_config(model_folder, task_file, train={**train, "step": "eager"})
    assert old == new
    task = load_task(new.task)
    # The digits of the version that wrote "captured".
    assert recipe_of(old, task)[:16] == "3e2694fb6512cc75"
    assert recipe_of(new, task) == recipe_of(old, task) != recipe_of(eager, task)


def test_both_names_at_once_are_refused(model_folder: Path, task_file: Path) -> None:
    with pytest.raises(ConfigError, match="during: is the old name of validations, which is given"):
        run_config(model_folder, task_file, score={"during": 2, "validations": 2})


def test_the_folder_of_a_study_keeps_its_name(tmp_path: Path) -> None:
    """The digits of the version that wrote `during`."""
    given = {
        "name": "s",
        "models": [{"path": "m"}],
        "tasks": [{"name": "t"}],
        "methods": [{"name": "FT", "kind": "full", "grid": {"learning_rate": [1e-5]}}],
        "score": {"validations": 2},
        "train": {"step": "cuda_graph"},
    }
    assert study_folder(tmp_path, parse_study(given, "s")).name == "s-9c477a"
