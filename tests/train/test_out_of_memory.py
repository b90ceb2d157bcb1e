"""Memory that runs out on the way: the eager step goes on in smaller backward passes, to the same
result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import build
from tests.parity.test_training import CPU, FP32, config, lane_of, rows
from tests.train.test_lanes import LANES, lanes_of
from tsugiki.config.run import LoraConfig
from tsugiki.train import objective as objective_module
from tsugiki.train.engine import fit
from tsugiki.train.step import EagerStep

DROPPED = LoraConfig(targets="q+v", rank=4, dropout=0.3)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A device that holds so many rows of a backward pass, from its `after`th on."""
    real, device = objective_module.summed_losses, {"rows": 10**9, "after": 0, "refused": 0}

    def losses(backbone: Any, head: Any, batch: Any, *others: Any) -> torch.Tensor:
        device["after"] -= 1
        if device["after"] < 0 and len(batch.input_ids) > device["rows"]:
            device["refused"] += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(backbone, head, batch, *others)

    monkeypatch.setattr(objective_module, "summed_losses", losses)
    return device


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("after", [0, 5])
def test_the_step_goes_on_in_smaller_passes_to_the_same_result(
    method: str, after: int, full: dict[str, int]
) -> None:
    """As `micro_batch` would, whose masks of dropout are the same, too."""
    settings, made = config(epochs=4, batch=8), []
    lora = DROPPED if method == "lora" else None
    for rows_there in (10**9, 3):
        full.update(rows=rows_there, after=after)
        model = build.llama()
        lane = lane_of(model, settings, method, 10, lora)
        step = EagerStep(model, rows(), 3, CPU, FP32)
        made.append((fit(step, [lane], CPU, folders=[None])[0].history.loss, lane, step.kind))
    (wanted, whole, kind), (losses, cut, cut_kind) = made
    assert full["refused"] == 2, "8 rows, 4 rows: then 2 fit"
    assert (kind, cut_kind) == ("eager", "eager, at most 2 rows a backward pass")
    assert losses == pytest.approx(wanted, rel=1e-5)
    for name, parameter in whole.parameters.items():
        assert torch.allclose(parameter, cut.parameters[name], atol=2e-4), name


def test_several_lanes_are_cut_together(full: dict[str, int]) -> None:
    made = []
    for rows_there in (10**9, 9):
        full.update(rows=rows_there, after=3)
        model = build.llama()
        lanes = lanes_of(model, LANES)
        results = fit(EagerStep(model, rows(), 3, CPU, FP32), lanes, CPU, folders=[None] * 4)
        made.append([result.history.loss for result in results])
    assert full["refused"] > 0
    for wanted, losses in zip(*made, strict=True):
        assert losses == pytest.approx(wanted, rel=1e-4)


def test_one_row_that_does_not_fit_is_an_error(full: dict[str, int]) -> None:
    full.update(rows=0)
    model = build.llama()
    lane = lane_of(model, config(), "lora", 10, DROPPED)
    with pytest.raises(torch.OutOfMemoryError):
        fit(EagerStep(model, rows(), 3, CPU, FP32), [lane], CPU, folders=[None])
