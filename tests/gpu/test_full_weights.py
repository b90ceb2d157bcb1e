"""Full fine-tuning over halves on a CUDA device: kernels against their CPU twins; gradients by
layer against whole ones, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import build
from tests.parity.test_training import config, rows
from tests.train.test_full_weights import KINDS, same_bits
from tsugiki.config.run import Moments, Weights
from tsugiki.fast.adamw import (
    TILE,
    StepNumbers,
    add_moments,
    joined,
    make_state,
    moments_of,
    squares,
    update,
)
from tsugiki.model.loading import no_dropout
from tsugiki.model.numerics import pick_numerics
from tsugiki.train.engine import FitResult, fit
from tsugiki.train.full_weights import FullWeights
from tsugiki.train.lane import Lane
from tsugiki.train.open_step import open_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("moments", ["fp32", "bf16", "8bit"])
@pytest.mark.parametrize(("halves", "weights"), [(True, "fp32"), (True, "24bit"), (False, "fp32")])
def test_the_kernel_equals_its_twin(halves: bool, weights: Weights, moments: Moments) -> None:
    torch.manual_seed(0)
    size = 100_003
    start = torch.randn(size) * 0.02
    devices = [torch.device("cpu"), CUDA]
    states = [make_state(start.clone().to(d), 2, halves=halves, weights=weights) for d in devices]
    numbers = [StepNumbers(d, 5) for d in devices]
    for state in states:
        add_moments(state, moments)
    scale = 10 ** torch.randn(size)
    for step in range(1, 31):
        gradient = (torch.randn(size) * scale * 1e-3).bfloat16()
        for state, told, device in zip(states, numbers, devices, strict=True):
            own = gradient.to(device)
            norm = told.clip(squares(own), 0.5)
            assert norm.item() == pytest.approx(gradient.float().norm().item(), rel=1e-4)
            told.set(step, 1e-3, 0.1)
            sums = torch.zeros(-(-size // TILE), device=device)
            update(state, own, told, sums)
            assert sums.sum().sqrt().item() == pytest.approx(norm.item(), rel=1e-4)
    wholes = [s.weight if s.rest is None else joined(s.weight, s.rest) for s in states]
    moved = (wholes[0] - start).norm()
    exact = moments == "fp32" and weights == "fp32"
    assert (wholes[0] - wholes[1].cpu()).norm() < (1e-5 if exact else 2e-2) * moved
    for one, other in zip(*(moments_of(s, slice(0, size)) for s in states), strict=True):
        assert (one - other.cpu()).norm() < (1e-5 if moments == "fp32" else 2e-2) * one.norm()
        assert torch.isclose(one, other.cpu(), rtol=1e-3).float().mean() > 0.95


def trained(
    kind: str, changes: dict[str, Any], by_layer: bool, folder: Path | None = None, upto: int = 0
) -> tuple[Lane, FitResult]:
    numerics = pick_numerics("full", "auto", CUDA)
    model = build.MODELS[kind]().to(CUDA)
    no_dropout(model)
    train = config(epochs=6, learning_rate=1e-3, precision="auto", clip=0.5, **changes)
    moves = FullWeights(model, train, halves=True)
    lane = Lane("FT", dict(model.named_parameters()), train, 10, moves=moves)
    lane.steps = upto or lane.steps
    with pytest.MonkeyPatch.context() as patch:
        if by_layer:
            patch.setattr("tsugiki.train.open_step.WHOLE_GRADIENT_BYTES", 1e15)
        with open_step(model, [lane], rows(), pad_id=3, device=CUDA, numerics=numerics) as step:
            assert ("gradients by layer" in step.kind) == (by_layer or "clip_from" in changes)
            result = fit(step, [lane], CUDA, folders=[folder], checkpoint_every_s=0.0)[0]
    return lane, result


@pytest.mark.parametrize("kind", ["llama", "gpt2", "broad llama", "broad qwen3"])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_gradients_by_layer_are_the_same_steps(kind: str, changes: dict[str, Any]) -> None:
    lane, result = trained(kind, changes, by_layer=False)
    by_layer, other = trained(kind, changes, by_layer=True)
    assert result.history.loss == other.history.loss
    assert result.history.norm == other.history.norm
    assert same_bits(lane, by_layer)
    assert result.history.loss[-1] < result.history.loss[0]


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_resumed_run_goes_on_to_the_same_bits(
    changes: dict[str, Any], by_layer: bool, tmp_path: Path
) -> None:
    straight, result = trained("broad llama", changes, by_layer)
    trained("broad llama", changes, by_layer, tmp_path, upto=7)
    resumed, again = trained("broad llama", changes, by_layer, tmp_path)
    assert again.resumed_from > 0
    assert again.history.loss == result.history.loss
    assert same_bits(straight, resumed)
