"""The engine against a hand-written loop with torch's AdamW, in HF's own loss; accumulation
against the big batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import build
from tsugiki.config.run import LoraConfig, TrainConfig
from tsugiki.data.batch import collate
from tsugiki.data.example import Example
from tsugiki.data.prompts import Tokens
from tsugiki.model.lora import attach, attach_lanes
from tsugiki.model.numerics import Numerics
from tsugiki.train.engine import fit
from tsugiki.train.lane import Lane, OneVector
from tsugiki.train.step import EagerStep

FP32 = Numerics(compute="fp32", base="fp32", trained="fp32")
CPU = torch.device("cpu")


def rows(count: int = 10) -> list[Tokens]:
    """Rows of different lengths; the answer is a function of the prompt."""
    made = []
    for number in range(count):
        prompt = tuple(10 + (number * 7 + place * 3) % 200 for place in range(4 + number % 5))
        made.append(
            Tokens(
                example=Example(id=str(number), fields={}, target=""),
                prompt_ids=prompt,
                target_ids=(20 + number % 3, *(30,) * (number % 2), 2),
            )
        )
    return made


def config(**changes: object) -> TrainConfig:
    return TrainConfig(
        **{"learning_rate": 1e-2, "epochs": 3, "batch": 4, "precision": "fp32", **changes}
    )


def lane_of(
    model: torch.nn.Module,
    train: TrainConfig,
    method: str,
    count: int,
    lora: LoraConfig | None = None,
) -> Lane:
    if method == "full":
        return Lane("FT", dict(model.named_parameters()), train, count)
    grafted = attach(model, lora or LoraConfig(targets="all-linear", rank=4), seed=train.seed)
    watched = tuple(name for name in grafted.parameters if name.endswith(".B"))
    return Lane("LoRA", grafted.parameters, train, count, moves=OneVector(grafted), watched=watched)


def train(kind: str, method: str, settings: TrainConfig) -> tuple[Lane, list[float]]:
    model, data = build.MODELS[kind](), rows()
    lane = lane_of(model, settings, method, len(data))
    result = fit(EagerStep(model, data, 3, CPU, FP32), [lane], CPU, folders=[None])[0]
    return lane, result.history.loss


def plain_losses(
    model: Any, data: list[Tokens], lane: Lane, optimizer: torch.optim.Optimizer, *, clip: float
) -> list[float]:
    """The losses of a loop as anybody writes it: a lane's rows, a linear schedule after a warm-up
    of a fifth of the steps, each parameter group around its own rate."""
    steps, expected = lane.steps, []
    warm, parameters = round(0.2 * steps), list(lane.parameters.values())
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        numbers = lane.order.rows_of(step)
        batch = collate([data[number] for number in numbers], numbers, 3)
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        share = (step + 1) / warm if step < warm else (steps - step) / (steps - warm)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        optimizer.step()
        expected.append(loss.item())
    return expected


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_engine_equals_a_plain_loop(kind: str, method: str) -> None:
    settings = config(schedule="linear", warmup=0.2, weight_decay=0.1, clip=0.5)
    lane, losses = train(kind, method, settings)

    model, data = build.MODELS[kind](), rows()
    from tsugiki.model.loading import no_dropout

    no_dropout(model)
    plain = lane_of(model, settings, method, len(data))
    optimizer = torch.optim.AdamW(list(plain.parameters.values()), lr=1e-2, weight_decay=0.1)
    expected = plain_losses(model, data, plain, optimizer, clip=0.5)
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, parameter in plain.parameters.items():
        torch.testing.assert_close(lane.parameters[name], parameter, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_accumulation_equals_the_big_batch(method: str) -> None:
    """With answers of different lengths a mean of means would differ; the sum over the number of
    target tokens does not."""
    big, big_losses = train("llama", method, config())
    small, small_losses = train("llama", method, config(micro_batch=1))
    assert small_losses == pytest.approx(big_losses, rel=1e-5)
    for name, parameter in big.parameters.items():
        torch.testing.assert_close(small.parameters[name], parameter, rtol=1e-3, atol=2e-5)


def test_loraplus_equals_a_parameter_group_for_each_rate() -> None:
    """A learns at the rate, B at sixteen times it; weight decay follows each group's rate, as in
    torch. Two lanes, one of them plain."""
    settings = config(schedule="linear", warmup=0.2, weight_decay=0.1, learning_rate=1e-3)
    wanted = LoraConfig(targets="all-linear", rank=4, loraplus=16)
    model, data = build.MODELS["llama"](), rows()
    plain = LoraConfig(targets="q+v", rank=2)
    lanes = [
        Lane(each.targets, attached.parameters, settings, len(data), moves=OneVector(attached))
        for each, attached in zip(
            (wanted, plain), attach_lanes(model, [(wanted, 0), (plain, 0)]), strict=True
        )
    ]
    results = fit(EagerStep(model, data, 3, CPU, FP32), lanes, CPU, folders=[None, None])

    for lora, lane, result in zip((wanted, plain), lanes, results, strict=True):
        model = build.MODELS["llama"]()
        alone = lane_of(model, settings, "lora", len(data), lora)
        sides = {
            side: [p for n, p in alone.parameters.items() if n.endswith(side)] for side in "AB"
        }
        ratios = {"A": 1.0, "B": lora.loraplus}
        optimizer = torch.optim.AdamW(
            [{"params": sides[side], "lr": 1e-3 * ratios[side]} for side in "AB"], weight_decay=0.1
        )
        expected = plain_losses(model, data, alone, optimizer, clip=1.0)
        assert result.history.loss == pytest.approx(expected, rel=1e-4)
        for name, parameter in alone.parameters.items():
            torch.testing.assert_close(lane.parameters[name], parameter, rtol=1e-3, atol=2e-5)
