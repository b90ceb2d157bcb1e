"""Many adapters in one captured step on a CUDA device: against the plain step, against each lane
alone, resumed, undisturbed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests import build
from tests.parity.test_training import config, rows
from tests.train.test_lanes import LANES, Asked, StopAt, lanes_of
from tsugiki.config.run import LoraConfig
from tsugiki.model.loading import no_dropout
from tsugiki.model.numerics import pick_numerics
from tsugiki.score.decode import generate_lanes
from tsugiki.score.predict import generate_ids
from tsugiki.train.cuda_graph_step import CudaGraphStep
from tsugiki.train.engine import FitResult, fit
from tsugiki.train.lane import DoesNotFit, Lane
from tsugiki.train.open_step import open_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]
CUDA = torch.device("cuda")
# Less for bf16 noise to grow in.
SLOW = [
    (lora, train.model_copy(update={"learning_rate": train.learning_rate / 5}))
    for lora, train in LANES
]
FUSED: list[Asked] = [
    (lora.model_copy(update={"dropout": 0.0}), train.model_copy(update={"micro_batch": None}))
    for lora, train in SLOW
]
VARIANTS: list[Asked] = [
    (LoraConfig(targets="all-linear", rank=8, rslora=True), SLOW[0][1]),
    (
        LoraConfig(targets="all-linear", rank=4, loraplus=16),
        SLOW[0][1].model_copy(update={"learning_rate": 1e-4, "weight_decay": 0.1}),
    ),
    (LoraConfig(targets="q+v", rank=2), SLOW[0][1]),
]


def course(
    kind: str,
    asked: Sequence[Asked],
    step: str,
    folders: Sequence[Path] | None = None,
    killed_at: int | None = None,
) -> tuple[list[Lane], list[FitResult]]:
    numerics = pick_numerics("lora", "auto", CUDA)
    model = build.MODELS[kind]().to(CUDA, torch.bfloat16)
    no_dropout(model)
    lanes = lanes_of(
        model, [(lora, train.model_copy(update={"step": step})) for lora, train in asked]
    )
    with open_step(model, lanes, rows(), pad_id=3, device=CUDA, numerics=numerics) as opened:
        assert isinstance(opened, CudaGraphStep) == (step == "cuda_graph")
        stepping = StopAt(opened, killed_at) if killed_at else opened
        results = fit(
            stepping,
            lanes,
            CUDA,
            folders=folders or [None] * len(lanes),
            checkpoint_every_s=0.0 if folders else 60.0,
        )
    return lanes, results


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("asked", [FUSED, SLOW, VARIANTS], ids=["fused", "dropout", "variants"])
def test_captured_lanes_train_as_plain_ones_and_as_each_alone(
    kind: str, asked: list[Asked]
) -> None:
    _, plain = course(kind, asked, "eager")
    _, captured = course(kind, asked, "cuda_graph")
    for one, other in zip(captured, plain, strict=True):
        assert one.history.loss == pytest.approx(other.history.loss, rel=2e-2)
    for lane, result in zip(asked, captured, strict=True):
        _, [alone] = course(kind, [lane], "cuda_graph")
        assert result.history.loss == pytest.approx(alone.history.loss, rel=2e-2)
        assert result.history.learning_rate == alone.history.learning_rate


def test_a_captured_group_resumed_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    whole, straight = course("llama", FUSED, "cuda_graph")
    folders = [tmp_path / str(number) for number in range(len(FUSED))]
    with pytest.raises(KeyboardInterrupt):
        course("llama", FUSED, "cuda_graph", folders, killed_at=21)
    lanes, resumed = course("llama", FUSED, "cuda_graph", folders)
    for lane, result, other, expected in zip(lanes, resumed, whole, straight, strict=True):
        assert 0 < result.resumed_from < 21
        assert result.history.loss == expected.history.loss
        assert all(
            torch.equal(parameter, lane.parameters[name])
            for name, parameter in other.parameters.items()
        )


def test_a_captured_lane_does_not_notice_what_the_others_do() -> None:
    mine = (LoraConfig(targets="all-linear", rank=4), config(epochs=5))
    seen = []
    for rate in (1e-3, 3e-2, 1e20):
        lanes, results = course(
            "llama",
            [
                (LoraConfig(targets="q+v", rank=2), config(epochs=5, learning_rate=rate, seed=3)),
                mine,
            ],
            "cuda_graph",
        )
        seen.append(
            (
                results[1].history.loss,
                {
                    name: parameter.detach().clone()
                    for name, parameter in lanes[1].parameters.items()
                },
            )
        )
        assert (results[0].failure is None) == (rate < 1)
    for losses, adapters in seen[1:]:
        assert losses == seen[0][0]
        assert all(torch.equal(parameter, seen[0][1][name]) for name, parameter in adapters.items())


def test_lanes_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: CudaGraphStep, wanted: dict, fewest: dict) -> list:
        raise torch.OutOfMemoryError("as if")

    monkeypatch.setattr(CudaGraphStep, "_capture_all", full)
    with pytest.raises(DoesNotFit, match="4 lanes do not fit"):
        course("llama", FUSED, "cuda_graph")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_captured_answers_of_all_lanes_equal_the_plain_ones(kind: str) -> None:
    numerics = pick_numerics("lora", "auto", CUDA)
    model = build.MODELS[kind](seed=5).to(CUDA, torch.bfloat16)
    lanes = lanes_of(
        model, [(lora, train.model_copy(update={"learning_rate": 0.05})) for lora, train in FUSED]
    )
    with open_step(model, lanes, rows(), pad_id=3, device=CUDA, numerics=numerics) as opened:
        fit(opened, lanes, CUDA, folders=[None] * len(lanes))
    prompts = [
        tuple(5 + (7 * n + 3 * place) % 300 for place in range(1 + n % 9)) for n in range(40)
    ]
    together = generate_lanes(
        model, prompts, lanes=4, max_new_tokens=8, batch=16, stops=(), numerics=numerics
    )
    assert together == generate_lanes(
        model, prompts, lanes=4, max_new_tokens=8, batch=16, stops=(), numerics=numerics
    )
    assert len({str(answers) for answers in together}) > 1
    bank = lanes[0].moves.bank
    for number, answers in enumerate(together):
        with numerics.autocast(CUDA), bank.only(number):
            plain = generate_ids(model, prompts, max_new_tokens=8, stops=(), pad_id=3)
        assert sum(one == other for one, other in zip(plain, answers, strict=True)) >= 32
