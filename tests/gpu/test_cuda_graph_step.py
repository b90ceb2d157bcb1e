"""The captured step against the plain one on a CUDA device: same rows, same masks, same losses to
bf16 noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests import build
from tests.parity.test_training import CPU, FP32, config, lane_of, rows
from tsugiki.config.run import LoraConfig
from tsugiki.model.loading import no_dropout
from tsugiki.model.numerics import Numerics, pick_numerics
from tsugiki.score.decode import generate_all
from tsugiki.score.predict import generate_ids
from tsugiki.train.cuda_graph_step import CudaGraphStep
from tsugiki.train.engine import fit
from tsugiki.train.full_weights import FullWeights
from tsugiki.train.lane import Lane
from tsugiki.train.open_step import open_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]
CUDA = torch.device("cuda")


def course(
    kind: str,
    method: str,
    step: str,
    folder: Path | None = None,
    upto: int | None = None,
    lora: LoraConfig | None = None,
    **settings: Any,
) -> tuple[list[float], Lane]:
    numerics = pick_numerics(method, "auto", CUDA)
    model = build.MODELS[kind]().to(
        CUDA, torch.bfloat16 if numerics.base == "bf16" else torch.float32
    )
    no_dropout(model)
    rate = 1e-2 if method == "lora" else 1e-3
    train = config(epochs=6, learning_rate=rate, step=step, precision="auto", **settings)
    lane = lane_of(model, train, method, 10, lora)
    if method == "full":
        moves = FullWeights(model, train, halves=True)
        lane = Lane("FT", dict(model.named_parameters()), train, 10, moves=moves)
    lane.steps = upto or lane.steps
    with open_step(model, [lane], rows(), pad_id=3, device=CUDA, numerics=numerics) as opened:
        assert isinstance(opened, CudaGraphStep) == (step == "cuda_graph")
        history = fit(opened, [lane], CUDA, folders=[folder], checkpoint_every_s=0.0)[0].history
    assert all(module._compiled_call_impl is None for module in model.modules())
    assert method == "lora" or all(parameter.grad is None for parameter in lane.moved)
    return history.loss, lane


@pytest.mark.parametrize("kind", ["llama", "gpt2", "broad llama", "broad gpt2", "broad qwen3"])
@pytest.mark.parametrize(
    ("method", "lora", "settings"),
    [
        ("lora", None, {}),
        ("lora", LoraConfig(targets="all-linear", rank=4), {"micro_batch": 2}),
        ("lora", LoraConfig(targets="q+v", rank=4, dropout=0.2), {}),
        ("full", None, {}),
        ("full", None, {"micro_batch": 2}),
        ("full", None, {"moments": "bf16"}),
        ("full", None, {"moments": "8bit", "weights": "24bit"}),
        ("full", None, {"moments": "8bit", "clip_from": "last_step"}),
    ],
)
def test_the_captured_step_trains_as_the_plain_one(
    kind: str, method: str, lora: LoraConfig | None, settings: dict
) -> None:
    plain, _ = course(kind, method, "eager", lora=lora, **settings)
    counters.clear()
    captured, _ = course(kind, method, "cuda_graph", lora=lora, **settings)
    assert captured == pytest.approx(plain, rel=1e-2)
    assert captured[-1] < captured[0]
    assert not counters["graph_break"], dict(counters["graph_break"])
    if lora is None or not lora.dropout:
        assert counters["stats"]["unique_graphs"] <= 1, dict(counters["stats"])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_captured_run_resumed_goes_on_to_the_same_losses(method: str, tmp_path: Path) -> None:
    straight, whole = course("llama", method, "cuda_graph")
    course("llama", method, "cuda_graph", tmp_path, upto=7)
    resumed, lane = course("llama", method, "cuda_graph", tmp_path)
    assert resumed == straight
    assert all(
        torch.equal(parameter, lane.parameters[name])
        for name, parameter in whole.parameters.items()
    )


@pytest.mark.parametrize("refused", [1, 3])
def test_a_step_too_large_for_the_memory_is_split_then_recomputed(
    refused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows a step stay the same; the backward passes get smaller, and at last the layers compute
    twice."""
    record = CudaGraphStep._capture_all
    seen: list[CudaGraphStep] = []

    def full(self: CudaGraphStep, wanted: dict, fewest: dict) -> list:
        seen.append(self)
        if len(seen) <= refused:
            raise torch.OutOfMemoryError("as if")
        return record(self, wanted, fewest)

    straight, _ = course("llama", "lora", "cuda_graph")
    monkeypatch.setattr(CudaGraphStep, "_capture_all", full)
    split, _ = course("llama", "lora", "cuda_graph")
    assert seen[0].max_tokens is None
    assert seen[1].max_tokens is not None
    assert seen[-1].recomputed == (refused == 3)
    assert split == pytest.approx(straight, rel=1e-2)


def test_the_losses_equal_the_cpu_reference() -> None:
    model = build.llama()
    lane = lane_of(model, config(epochs=6, learning_rate=1e-2), "lora", 10)
    with open_step(model, [lane], rows(), pad_id=3, device=CPU, numerics=FP32) as step:
        reference = fit(step, [lane], CPU, folders=[None])[0].history.loss
    assert course("llama", "lora", "cuda_graph")[0] == pytest.approx(reference, rel=2e-2)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_captured_answers_equal_the_plain_ones(kind: str) -> None:
    """fp32 weights in bf16 products: where two tokens are close the answers may part; few do."""
    numerics = Numerics(compute="bf16", base="bf16", trained="fp32")
    model = build.MODELS[kind](seed=5).to(CUDA, torch.bfloat16)
    prompts = [
        tuple(5 + (7 * n + 3 * place) % 300 for place in range(1 + n % 9)) for n in range(40)
    ]
    with numerics.autocast(CUDA):
        plain = generate_ids(model, prompts, max_new_tokens=8, stops=(), pad_id=3)
    captured = generate_all(model, prompts, max_new_tokens=8, batch=16, stops=(), numerics=numerics)
    again = generate_all(model, prompts, max_new_tokens=8, batch=16, stops=(), numerics=numerics)
    assert captured == again
    assert sum(one == other for one, other in zip(plain, captured, strict=True)) >= 34
