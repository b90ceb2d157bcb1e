"""Full fine-tuning over halves: however gradients are handed over, the same steps; a checkpoint
holds all that a resumed run needs. On a CPU, with the device's graphs stood in for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import build
from tests.parity.test_training import CPU, FP32, config, rows
from tests.train.test_cuda_graph_step import on_a_host  # noqa: F401 - a fixture
from tests.train.test_lanes import StopAt
from tests.train.test_packed import wide_llama
from tsugiki.config.run import TrainConfig
from tsugiki.errors import RunError
from tsugiki.fast.adamw import joined
from tsugiki.model.loading import no_dropout
from tsugiki.model.numerics import Numerics
from tsugiki.train.checkpoint import LaneState, latest_checkpoint, read_checkpoint, save_checkpoint
from tsugiki.train.engine import FitResult, fit
from tsugiki.train.full_weights import FullWeights, is_needed, put_weights
from tsugiki.train.lane import Lane
from tsugiki.train.leaf import add_rows
from tsugiki.train.open_step import cuda_graph_step
from tsugiki.train.step import EagerStep

BF16 = Numerics(compute="bf16", base="fp32", trained="fp32 (bf16 + int16)")
MODELS = {**build.MODELS, "wide": wide_llama}
KINDS: list[dict[str, Any]] = [
    {},
    {"moments": "bf16"},
    {"moments": "8bit", "weights": "24bit"},
    {"clip_from": "last_step", "moments": "8bit"},
]


def settings(**changes: Any) -> TrainConfig:
    asked = {"epochs": 4, "learning_rate": 3e-3, "clip": 0.5, "weight_decay": 0.1, **changes}
    return config(precision="bf16", **asked)


def lane_of(model: torch.nn.Module, train: TrainConfig, numerics: Numerics = BF16) -> Lane:
    no_dropout(model)
    moves = FullWeights(model, train, halves=numerics.compute == "bf16")
    return Lane("FT", dict(model.named_parameters()), train, 10, moves=moves)


def trained(
    kind: str,
    train: TrainConfig,
    *,
    fast: bool = True,
    by_layer: bool = False,
    folder: Path | None = None,
    killed_at: int | None = None,
    numerics: Numerics = BF16,
) -> tuple[Lane, FitResult]:
    model = MODELS[kind]()
    lane = lane_of(model, train, numerics)
    assert isinstance(lane.moves, FullWeights)
    if not fast:
        lane.moves.by_layer |= by_layer
        step: Any = EagerStep(model, rows(), 3, CPU, numerics)
        return lane, fit(step, [lane], CPU, folders=[folder], checkpoint_every_s=0.0)[0]
    with pytest.MonkeyPatch.context() as patch:
        if by_layer:  # as if whole gradients had no room
            patch.setattr("tsugiki.train.open_step.WHOLE_GRADIENT_BYTES", 1e15)
        with cuda_graph_step(model, [lane], rows(), CPU, numerics) as step:
            assert lane.moves.by_layer == (by_layer or train.clip_from == "last_step")
            assert ("gradients by layer" in step.kind) == lane.moves.by_layer
            running = StopAt(step, killed_at) if killed_at else step
            result = fit(running, [lane], CPU, folders=[folder], checkpoint_every_s=0.0)[0]
    assert all(parameter.grad is None for parameter in lane.moved)
    return lane, result


def same_bits(one: Lane, other: Lane) -> bool:
    first, second = one.state_tensors(), other.state_tensors()
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "wide"])
@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("fast", [True, False])
def test_gradients_by_layer_are_the_same_steps(
    kind: str, changes: dict[str, Any], fast: bool
) -> None:
    lane, result = trained(kind, settings(**changes), fast=fast)
    by_layer, other = trained(kind, settings(**changes), fast=fast, by_layer=True)
    assert result.history.loss == other.history.loss
    assert result.history.norm == other.history.norm
    assert same_bits(lane, by_layer)
    assert result.history.loss[-1] < 0.8 * result.history.loss[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "wide"])
def test_the_fast_step_equals_the_eager_one(kind: str) -> None:
    """One matmul of q, k and v, packed rows: to bf16 noise."""
    (fast, one), (eager, other) = (trained(kind, settings(), fast=fast) for fast in (True, False))
    assert one.history.loss == pytest.approx(other.history.loss, rel=2e-2)
    whole = [
        torch.cat([joined(t[f"param/{n}"], t[f"rest/{n}"]).reshape(-1) for n in lane.parameters])
        for lane in (fast, eager)
        for t in (lane.own_tensors(),)
    ]
    start = torch.cat([p.detach().reshape(-1) for p in MODELS[kind]().parameters()])
    moved = (whole[1] - start).norm()
    assert (whole[0] - whole[1]).norm() < 0.35 * moved


@pytest.mark.parametrize("moments", ["fp32", "bf16", "8bit"])
def test_summed_gradients_are_those_of_one_pass(moments: str) -> None:
    train = settings(moments=moments)
    _, whole = trained("llama", train)
    for fast in (True, False):
        lane, cut = trained("llama", train.model_copy(update={"micro_batch": 2}), fast=fast)
        assert isinstance(lane.moves, FullWeights)
        assert lane.moves.summed
        assert cut.history.loss == pytest.approx(whole.history.loss, rel=2e-2)
        assert cut.history.norm == pytest.approx(whole.history.norm, rel=5e-2)


def test_the_last_steps_norm_clips() -> None:
    """The first step is clipped by its own: it is looked at before it counts."""
    clips: list[float] = []

    class Heard(FullWeights):
        def _update_and_sum(self, leaf: Any, gradient: Any) -> None:
            if leaf is self.leaves[0] and gradient is not None and self.numbers.values[0]:
                clips.append(self.numbers.values[-1].item())
            super()._update_and_sum(leaf, gradient)

    train = settings(clip_from="last_step")
    model = build.llama()
    no_dropout(model)
    lane = Lane(
        "FT", dict(model.named_parameters()), train, 10, moves=Heard(model, train, halves=True)
    )
    with cuda_graph_step(model, [lane], rows(), CPU, BF16) as step:
        norms = fit(step, [lane], CPU, folders=[None])[0].history.norm
    assert len(clips) == len(norms) == lane.steps
    before = [norms[0], *norms]
    assert clips == pytest.approx([min(1.0, 0.5 / (norm + 1e-6)) for norm in before[:-1]])
    assert any(clip < 1 for clip in clips)
    assert any(abs(one - other) > 0.01 for one, other in pairwise(clips))
    _, exact = trained("llama", settings())
    assert exact.history.norm[0] == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_killed_run_resumes_to_the_same_bits(changes: dict[str, Any], tmp_path: Path) -> None:
    train = settings(**changes)
    straight, result = trained("llama", train)
    with pytest.raises(KeyboardInterrupt):
        trained("llama", train, folder=tmp_path, killed_at=6)
    resumed, again = trained("llama", train, folder=tmp_path)
    assert 0 < again.resumed_from < straight.steps
    assert again.history.loss == result.history.loss
    assert same_bits(straight, resumed)


def test_what_was_kept_is_put_back(tmp_path: Path) -> None:
    lane, _ = trained("llama", settings())
    path = save_checkpoint(tmp_path, lane.step, lane.own_tensors(), LaneState())
    kept, _ = read_checkpoint(path)
    halves, whole = build.llama(), build.llama()
    put_weights(halves, kept, whole=False)
    put_weights(whole, kept, whole=True)
    own = lane.own_tensors()
    for name, parameter in halves.named_parameters():
        assert torch.equal(parameter, own[f"param/{name}"])
    for name, parameter in whole.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, joined(own[f"param/{name}"], own[f"rest/{name}"]))
    earlier = build.llama()
    fp32 = {f"param/{name}": p.detach() + 1 for name, p in earlier.named_parameters()}
    put_weights(earlier, fp32, whole=False)  # of a version without halves
    assert all(torch.equal(p, fp32[f"param/{n}"]) for n, p in earlier.named_parameters())


def test_a_checkpoint_of_other_weights_is_refused(tmp_path: Path) -> None:
    trained("llama", settings(weights="24bit"), folder=tmp_path)
    path = latest_checkpoint(tmp_path)
    assert path is not None
    tensors, _ = read_checkpoint(path)
    lane = lane_of(build.llama(), settings())
    with pytest.raises(RunError, match=r"is not kept in torch\.int16 there"):
        lane.load_state(tensors, 1, 1)


@pytest.mark.parametrize("moments", ["bf16", "8bit"])
def test_whole_weights_take_moments_of_few_bits(moments: str) -> None:
    lane, result = trained("llama", settings(moments=moments), fast=False, numerics=FP32)
    _, exact = trained("llama", settings(), fast=False, numerics=FP32)
    assert all(parameter.dtype == torch.float32 for parameter in lane.parameters.values())
    assert result.history.loss == pytest.approx(exact.history.loss, rel=5e-2)
    assert result.history.loss != exact.history.loss


def test_when_weights_are_kept_otherwise() -> None:
    assert not is_needed(settings(), halves=False)
    assert is_needed(settings(), halves=True)
    assert is_needed(settings(moments="bf16"), halves=False)
    with pytest.raises(RunError, match='weights = "24bit": a run that computes in fp32'):
        is_needed(settings(weights="24bit"), halves=False)
    with pytest.raises(ValueError, match="keeps no gradients, micro_batch sums them"):
        settings(clip_from="last_step", micro_batch=2)


@pytest.mark.parametrize("unread", [None, 3])
def test_rows_that_were_read_are_added_once(unread: int | None, monkeypatch: Any) -> None:
    monkeypatch.setattr("tsugiki.train.leaf.ROWS_AT_ONCE", 7)
    torch.manual_seed(0)
    table = torch.nn.Parameter(torch.randn(9, 4))
    ids = torch.randint(0, 9, (40,))
    slopes = torch.randn(1, 40, 4)
    of_head = torch.randn(9, 4)
    torch.nn.functional.embedding(ids[None], table, padding_idx=unread).backward(slopes)
    gradient = of_head.clone()
    add_rows(gradient, ids, slopes, unread)
    assert table.grad is not None
    assert torch.allclose(gradient, of_head + table.grad, atol=1e-5)


def test_a_tied_embedding_is_moved_as_autograd_would(monkeypatch: pytest.MonkeyPatch) -> None:
    _, one = trained("gpt2", settings())
    monkeypatch.setattr(FullWeights, "reads_rows", lambda self: None)
    _, other = trained("gpt2", settings())
    assert one.history.loss == pytest.approx(other.history.loss, rel=2e-2)
    assert one.history.norm == pytest.approx(other.history.norm, rel=2e-2)
