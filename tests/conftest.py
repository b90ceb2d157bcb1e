"""Shared fixtures: tiny model folders and task files, one thread where bits are compared, the
shared data if it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TSUGIKI_DEVICE", "cpu")
# fp32 whatever the CPU is fast at; `make test` repeats the marked part in bf16.
os.environ.setdefault("TSUGIKI_CPU_BF16", "0")
os.environ["OMP_NUM_THREADS"] = "1"  # two workers on two cores, and the processes that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers

from tests import build

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.save(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.save(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    return build.save_task(tmp_path / "task")


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of real data sets (`TSUGIKI_TESTDATA`); without it the test is skipped."""
    given = os.environ.get("TSUGIKI_TESTDATA")
    if not given or not Path(given, "jcommonsenseqa").exists():
        pytest.skip("TSUGIKI_TESTDATA does not name a folder with the real task data")
    return Path(given)
