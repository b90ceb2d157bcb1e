"""Golden files: loss curves (CPUs differ in the last bits, so to 1e-4) and rendered prompts with
ids and mask, to the letter."""

from __future__ import annotations

import json

import pytest

from tests.golden.make_golden import FOLDER, loss_curves, prompts


def test_loss_curves() -> None:
    kept = json.loads((FOLDER / "loss_curves.json").read_text(encoding="utf-8"))
    now = loss_curves()
    assert now.keys() == kept.keys()
    for name, curve in now.items():
        assert len(curve) == 8
        assert curve == pytest.approx(kept[name], rel=1e-4), name


def test_prompts() -> None:
    assert prompts() == json.loads((FOLDER / "prompts.json").read_text(encoding="utf-8"))
