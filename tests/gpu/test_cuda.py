"""On a CUDA device: the same losses and answers as the CPU reference; bf16 within its noise;
bit-equal resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import build
from tests.parity.test_training import CPU, FP32, config, lane_of, rows
from tsugiki.fast.attention import by_document
from tsugiki.fast.short_document_attention import short_document_attention
from tsugiki.model.loading import no_dropout
from tsugiki.model.numerics import Numerics, pick_numerics
from tsugiki.score.predict import generate_ids
from tsugiki.train.engine import fit
from tsugiki.train.lane import Lane
from tsugiki.train.step import EagerStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]
CUDA = torch.device("cuda")


def losses(
    kind: str,
    method: str,
    device: torch.device,
    numerics: Numerics,
    folder: Path | None = None,
    upto: int | None = None,
) -> tuple[list[float], Lane]:
    model = build.MODELS[kind]().to(
        device, torch.bfloat16 if numerics.base == "bf16" else torch.float32
    )
    no_dropout(model)
    lane = lane_of(model, config(epochs=3, learning_rate=1e-3), method, 10)
    if upto:
        lane.steps = upto
    result = fit(
        EagerStep(model, rows(), 3, device, numerics),
        [lane],
        device,
        folders=[folder],
        checkpoint_every_s=0.0,
    )[0]
    return result.history.loss, lane


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_losses_equal_the_cpu_reference(kind: str, method: str) -> None:
    reference, _ = losses(kind, method, CPU, FP32)
    fp32, _ = losses(kind, method, CUDA, FP32)
    assert fp32 == pytest.approx(reference, rel=1e-4)
    bf16, _ = losses(kind, method, CUDA, pick_numerics(method, "auto", CUDA))
    assert bf16 == pytest.approx(reference, rel=2e-2)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_resumed_on_cuda_goes_on_to_the_same_losses(method: str, tmp_path: Path) -> None:
    numerics = pick_numerics(method, "auto", CUDA)
    straight, whole = losses("llama", method, CUDA, numerics)
    losses("llama", method, CUDA, numerics, tmp_path, upto=6)
    resumed, lane = losses("llama", method, CUDA, numerics, tmp_path)
    assert resumed == straight
    assert all(
        torch.equal(parameter, lane.parameters[name])
        for name, parameter in whole.parameters.items()
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_answers_equal_the_cpus(kind: str) -> None:
    prompts = [[5, 6, 7], [9, 10, 11, 12, 13, 14], [20]]
    reference = generate_ids(
        build.MODELS[kind](seed=3), prompts, max_new_tokens=10, stops=(2,), pad_id=3
    )
    assert (
        generate_ids(
            build.MODELS[kind](seed=3).to(CUDA), prompts, max_new_tokens=10, stops=(2,), pad_id=3
        )
        == reference
    )


def test_memory_and_times_are_measured() -> None:
    model = build.llama().to(CUDA)
    lane = lane_of(model, config(), "full", 10)
    measured = fit(EagerStep(model, rows(), 3, CUDA, FP32), [lane], CUDA, folders=[None])[0].cost
    assert measured.device == torch.cuda.get_device_name()
    assert measured.peak_reserved_bytes >= measured.peak_allocated_bytes > 0
    assert measured.step_s_median > 0


@pytest.mark.parametrize(("heads", "group", "width"), [(16, 1, 128), (8, 4, 64), (4, 2, 32)])
@pytest.mark.parametrize("longest", [7, 64, 128])
def test_short_document_attention_equals_its_fp32_twin(
    heads: int, group: int, width: int, longest: int
) -> None:
    """Values and gradients to bf16 noise; empty documents; the strides that models give."""
    torch.manual_seed(longest)
    lengths = [*torch.randint(0, longest + 1, (40,)).tolist(), longest]
    edges = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    n = edges[-1]
    q = (
        torch.randn(heads, n, width, device=CUDA, dtype=torch.bfloat16)
        .transpose(0, 1)
        .requires_grad_()
    )
    k, v = (
        torch.randn(n, heads // group, width, device=CUDA, dtype=torch.bfloat16).requires_grad_()
        for _ in range(2)
    )
    out, _ = short_document_attention(
        q, k, v, None, None, torch.tensor(edges, dtype=torch.int32, device=CUDA), width**-0.5
    )
    slopes = torch.randn_like(out)
    found = (out, *torch.autograd.grad(out, (q, k, v), slopes))
    plain = [one.detach().float().requires_grad_() for one in (q, k, v)]
    expected = by_document(*plain, edges, width**-0.5)
    for one, other in zip(
        found, (expected, *torch.autograd.grad(expected, plain, slopes.float())), strict=True
    ):
        assert ((one.float() - other).norm() / other.norm()).item() < 1e-2


def test_the_memory_of_a_probe_does_not_hold_what_earlier_ones_left(tmp_path: Path) -> None:
    """Rank 16 had less than rank 8, which was probed after it: each left a workspace on a stream
    of its own."""
    from tsugiki.report.exclusive import peak_of_one
    from tsugiki.runs.store import Store
    from tsugiki.study.cells import parse_study
    from tsugiki.study.sweep import run_study

    grid = {"targets": ["q+k+v+o"], "learning_rate": [1e-3]}
    methods = [
        {"name": f"r{rank}", "kind": "lora", "grid": {**grid, "rank": [rank]}}
        for rank in (64, 16, 4)
    ]
    tasks = [
        {"name": name, "train_rows": 400, "eval_rows": 40}
        for name in ("sample_nli", "sample_choice")
    ]
    given = {
        "name": "m",
        "models": [{"path": "builtin", "name": "m"}],
        "tasks": tasks,
        "methods": methods,
        "train": {"epochs": 1},
    }
    result = run_study(parse_study(given, "study"), Store(tmp_path))
    assert not result.missing
    peaks = {
        key[1:]: peak_of_one(result.records[cell.label]) for key, cell in result.chosen.items()
    }
    for task in ("sample_nli", "sample_choice"):
        assert peaks[task, "r64"] > peaks[task, "r16"] > peaks[task, "r4"]
        assert peaks[task, "r64"] < 1.5 * peaks[task, "r4"]
