"""The captured step's logic on a CPU: the device's graphs are stood in for by the work itself, run
at each replay. Everything else is the real code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import build
from tests.parity.test_training import CPU, FP32, config, lane_of, rows
from tests.train.test_lanes import KINDS, LANES, Asked, StopAt, lanes_of, together
from tsugiki.config.run import LoraConfig
from tsugiki.score.predict import generate_ids
from tsugiki.train import cuda_graph_step as cuda_graphs
from tsugiki.train import open_step
from tsugiki.train.engine import FitResult, fit
from tsugiki.train.lane import Lane
from tsugiki.train.open_step import cuda_graph_step
from tsugiki.train.step import EagerStep

FUSED: list[Asked] = [(lora.model_copy(update={"dropout": 0.0}), train) for lora, train in LANES]


class Replayed:
    """Runs work where a device would capture it, and again where it would replay it."""

    def __init__(self, device: torch.device):
        self.captured = 0

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, work: Callable[[], None]) -> SimpleNamespace:
        self.captured += 1
        return SimpleNamespace(replay=work)


class HostTorch:
    """torch with the calls that need a device stood in for."""

    cuda = SimpleNamespace(
        reset_peak_memory_stats=lambda device: None,
        max_memory_allocated=lambda device: 0,
        empty_cache=lambda: None,
        Event=lambda: SimpleNamespace(synchronize=lambda: None, record=lambda: None),
        CUDAGraph=torch.cuda.CUDAGraph,
    )

    @staticmethod
    def zeros(*sizes: Any, pin_memory: bool = False, **named: Any) -> torch.Tensor:
        return torch.zeros(*sizes, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def on_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "torch", HostTorch())
    monkeypatch.setattr(cuda_graphs, "GraphCapturer", Replayed)
    monkeypatch.setattr(open_step, "_compiled_layers", lambda model, once: nullcontext())


def recorded(
    kind: str,
    asked: Sequence[Asked],
    folders: Sequence[Path] | None = None,
    killed_at: int | None = None,
    only: Sequence[int] | None = None,
) -> tuple[list[Lane], list[FitResult]]:
    model = build.MODELS[kind]()
    lanes = lanes_of(model, asked)
    with cuda_graph_step(model, lanes, rows(), CPU, FP32) as step:
        here = lanes if only is None else [lanes[number] for number in only]
        results = fit(
            StopAt(step, killed_at) if killed_at else step,
            here,
            CPU,
            folders=folders or [None] * len(here),
            checkpoint_every_s=0.0,
        )
    return lanes, results


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", [FUSED, LANES], ids=["fused", "dropout"])
def test_recorded_lanes_equal_the_reference(kind: str, asked: list[Asked]) -> None:
    lanes, results = recorded(kind, asked)
    reference, expected = together(kind, asked)
    for lane, result, other, alone in zip(lanes, results, reference, expected, strict=True):
        assert result.history.loss == pytest.approx(alone.history.loss, rel=1e-5)
        assert result.history.step_tokens == alone.history.step_tokens
        assert result.history.norm == pytest.approx(alone.history.norm, rel=2e-2)
        for name, parameter in other.parameters.items():
            assert torch.allclose(lane.parameters[name], parameter, rtol=1e-3, atol=2e-4), name


def test_lanes_of_other_lengths_rest_when_they_have_ended() -> None:
    asked = [
        (lora, train.model_copy(update={"epochs": 1 + 2 * number}))
        for number, (lora, train) in enumerate(FUSED)
    ]
    lanes, results = recorded("llama", asked)
    ended = {name: parameter.detach().clone() for name, parameter in lanes[0].parameters.items()}
    _, [alone] = together("llama", asked[:1])
    assert results[0].history.loss == pytest.approx(alone.history.loss, rel=1e-5)
    assert lanes[0].step == lanes[0].steps < lanes[3].steps
    _, [shortest] = recorded("llama", asked[:1])
    assert shortest.history.loss == pytest.approx(results[0].history.loss, rel=1e-5)
    [again] = lanes_of(build.llama(), asked[:1])
    assert {name: tensor.shape for name, tensor in again.parameters.items()} == {
        name: tensor.shape for name, tensor in ended.items()
    }


def test_lanes_at_different_steps_share_a_recording() -> None:
    """As runs do that go on from a longer one's checkpoints: each reads its own rows, the shorter
    ones' room is filled up."""
    asked = [
        (LoraConfig(targets="q+v", rank=2), config(epochs=epochs, seed=seed))
        for epochs, seed in ((4, 0), (6, 0), (3, 5))
    ]
    _, expected = together("llama", asked)
    model = build.llama()
    lanes = lanes_of(model, asked)
    ahead = EagerStep(model, rows(), 3, CPU, FP32)
    for _ in range(4):
        ahead([lanes[1]])
    for _ in range(2):
        ahead([lanes[2]])
    with cuda_graph_step(model, lanes, rows(), CPU, FP32) as step:
        results = fit(step, lanes, CPU, folders=[None] * 3)
    for result, alone, done in zip(results, expected, (0, 4, 2), strict=True):
        assert result.history.loss == pytest.approx(alone.history.loss[done:], rel=1e-5)


def test_a_recorded_group_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole, straight = recorded("llama", FUSED)
    folders = [tmp_path / str(number) for number in range(len(FUSED))]
    with pytest.raises(KeyboardInterrupt):
        recorded("llama", FUSED, folders, killed_at=9)
    lanes, resumed = recorded("llama", FUSED, folders)
    for lane, result, other, expected in zip(lanes, resumed, whole, straight, strict=True):
        assert result.resumed_from > 0
        assert result.history.loss == expected.history.loss
        assert all(
            torch.equal(parameter, lane.parameters[name])
            for name, parameter in other.parameters.items()
        )


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_one_recorded_lane_equals_the_reference(method: str, micro_batch: int | None) -> None:
    losses = []
    for kind in ("eager", "cuda_graph"):
        model = build.llama()
        lane = lane_of(model, config(epochs=4, micro_batch=micro_batch), method, 10)
        if kind == "eager":
            losses.append(
                fit(EagerStep(model, rows(), 3, CPU, FP32), [lane], CPU, folders=[None])[
                    0
                ].history.loss
            )
        else:
            with cuda_graph_step(model, [lane], rows(), CPU, FP32) as step:
                assert step.kind == "cuda_graph"
                losses.append(fit(step, [lane], CPU, folders=[None])[0].history.loss)
            assert method == "lora" or all(
                parameter.grad is None for parameter in model.parameters()
            )
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_plain_generation_in_the_middle_of_a_recorded_run() -> None:
    """`score.decode = "eager"` while validation is looked at: the model's own attention answers,
    with the same adapters."""
    prompts = [tuple(5 + (7 * n + 3 * place) % 300 for place in range(2 + n % 9)) for n in range(6)]
    model = build.llama()
    [lane] = lanes_of(model, FUSED[:1])
    with cuda_graph_step(model, [lane], rows(), CPU, FP32) as step:
        step([lane])
        with step.paused():
            found = generate_ids(model, prompts, max_new_tokens=6, stops=(), pad_id=3)
        step([lane])
    assert len(found) == len(prompts)
    again = build.llama()
    [other] = lanes_of(again, FUSED[:1])
    EagerStep(again, rows(), 3, CPU, FP32)([other])
    assert generate_ids(again, prompts, max_new_tokens=6, stops=(), pad_id=3) == found
