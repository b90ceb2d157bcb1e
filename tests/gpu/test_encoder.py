"""The encoder row on a card: as on a CPU in fp32, and learned in bf16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import build
from tests.runs.test_encoder import SHAPES, config_of, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]


@SHAPES
def test_an_encoder_trains_as_on_a_cpu(
    save: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, task = build.save_encoder(tmp_path / "model"), save(tmp_path / "task")
    config = config_of(encoder, task, epochs=5, learning_rate=1e-3)
    on_card = run(config, tmp_path / "card")
    monkeypatch.setenv("TSUGIKI_DEVICE", "cpu")
    on_cpu = run(config, tmp_path / "cpu")
    assert on_card.losses == pytest.approx(on_cpu.losses, rel=2e-3)


@SHAPES
def test_an_encoder_learns_in_bf16(save: Callable[[Path], Path], tmp_path: Path) -> None:
    encoder, task = build.save_encoder(tmp_path / "model"), save(tmp_path / "task")
    record = run(config_of(encoder, task, precision="auto"), tmp_path / "out")
    assert record.provenance.numerics.compute == "bf16"
    assert record.main_score("validation") == 1.0
