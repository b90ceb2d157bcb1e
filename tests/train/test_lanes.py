"""Many adapters over one frozen base: each lane trains as the same run alone, and touches no
other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests import build
from tests.parity.test_training import CPU, FP32, config, rows
from tsugiki.config.run import LoraConfig, TrainConfig
from tsugiki.data.packing import PackableRows, PackedBatch, largest_of, plan_shapes, shape_for
from tsugiki.fast.attention import PACKED, attending
from tsugiki.fast.fused_linears import can_fuse, fused
from tsugiki.model.lora import adapter_of, attach_lanes
from tsugiki.score.decode import generate_all, generate_lanes
from tsugiki.score.predict import generate_ids
from tsugiki.train.engine import FitResult, fit
from tsugiki.train.lane import Lane, OneVector
from tsugiki.train.packed_forward import PackedForward
from tsugiki.train.step import EagerStep, StepResult

Asked = tuple[LoraConfig, TrainConfig]
KINDS = ["llama", "gpt2"]
LANES: list[Asked] = [
    (LoraConfig(targets="q+v", rank=2), config(epochs=18, learning_rate=3e-3)),
    (
        LoraConfig(targets="all-linear", rank=4, alpha=8),
        config(epochs=18, learning_rate=1e-2, schedule="cosine", warmup=0.1, seed=7),
    ),
    (
        LoraConfig(targets="o+k", rank=3, dropout=0.2),
        config(epochs=18, learning_rate=5e-3, clip=0.1, weight_decay=0.1),
    ),
    (
        LoraConfig(targets="v", rank=1, alpha=2),
        config(epochs=18, learning_rate=1e-3, batch=3, micro_batch=1, seed=1),
    ),
]


def lanes_of(model: torch.nn.Module, asked: Sequence[Asked], num_rows: int = 10) -> list[Lane]:
    lanes = []
    for grafted, (lora, train) in zip(
        attach_lanes(model, [(lora, train.seed) for lora, train in asked]), asked, strict=True
    ):
        watched = tuple(name for name in grafted.parameters if name.endswith(".B"))
        lanes.append(
            Lane(
                f"{lora.targets} r{lora.rank} {train.learning_rate:g} {train.seed}",
                grafted.parameters,
                train,
                num_rows,
                moves=OneVector(grafted),
                watched=watched,
            )
        )
    return lanes


def together(
    kind: str,
    asked: Sequence[Asked],
    folders: Sequence[Path] | None = None,
    wrap: Callable = lambda step: step,
) -> tuple[list[Lane], list[FitResult]]:
    model = build.MODELS[kind]()
    lanes = lanes_of(model, asked)
    step = wrap(EagerStep(model, rows(), 3, CPU, FP32))
    return lanes, fit(
        step,
        lanes,
        CPU,
        folders=folders or [None] * len(lanes),
        checkpoint_every_s=0.0 if folders else 60.0,
    )


def assert_same_run(
    lane: Lane, result: FitResult, alone: Lane, expected: FitResult, rel: float = 1e-5
) -> None:
    assert result.history.learning_rate == expected.history.learning_rate
    assert result.history.step_tokens == expected.history.step_tokens
    assert (result.failure is None) == (expected.failure is None)
    assert result.history.loss == pytest.approx(expected.history.loss, rel=rel)
    for name, parameter in alone.parameters.items():
        assert torch.allclose(lane.parameters[name], parameter, rtol=1e-3, atol=20 * rel), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_lane_trains_as_the_same_run_alone(kind: str) -> None:
    """Different ranks, targets, scales, dropout, rates, schedules, orders and batches; more than
    fifty steps."""
    lanes, results = together(kind, LANES)
    assert all(len(result.history.loss) >= 50 for result in results)
    for asked, lane, result in zip(LANES, lanes, results, strict=True):
        [alone], [expected] = together(kind, [asked])
        assert lane.parameters.keys() == alone.parameters.keys()
        assert_same_run(lane, result, alone, expected)


@st.composite
def mixes(draw: st.DrawFn) -> list[Asked]:
    one = st.tuples(
        st.builds(
            LoraConfig,
            targets=st.sampled_from(["q+v", "q+k+v+o", "all-linear", "o"]),
            rank=st.integers(1, 5),
            alpha=st.sampled_from([None, 4.0]),
            dropout=st.sampled_from([0.0, 0.0, 0.3]),
        ),
        st.builds(
            config,
            epochs=st.sampled_from([0.5, 1, 2, 3.4]),
            learning_rate=st.sampled_from([1e-4, 1e-3, 3e-3]),
            batch=st.integers(1, 5),
            seed=st.integers(0, 3),
            schedule=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
        ),
    )
    return draw(st.lists(one, min_size=2, max_size=5))


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
@given(mix=mixes(), kind=st.sampled_from(KINDS))
def test_any_mix_of_lanes_trains_as_each_alone(mix: list[Asked], kind: str) -> None:
    """Rates, orders and stop decisions bit for bit. Large scales and rates let Adam blow rounding
    up: losses to 1e-4 here."""
    lanes, results = together(kind, mix)
    for asked, lane, result in zip(mix, lanes, results, strict=True):
        [alone], [expected] = together(kind, [asked])
        assert_same_run(lane, result, alone, expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lane_does_not_notice_what_the_others_do(kind: str) -> None:
    """At fixed shapes bit for bit. A neighbour that diverges leaves: the batch is another shape
    then, and rounding differs."""
    mine = (LoraConfig(targets="all-linear", rank=4, dropout=0.1), config(epochs=5))
    losses, adapters, failures = [], [], []
    for rate in (1e-3, 3e-2, 1e20):
        lanes, results = together(
            kind,
            [
                (LoraConfig(targets="all-linear", rank=4), config(epochs=5, learning_rate=rate)),
                mine,
            ],
        )
        losses.append(results[1].history.loss)
        adapters.append(
            {name: parameter.detach().clone() for name, parameter in lanes[1].parameters.items()}
        )
        failures.append(results[0].failure)
    assert failures[:2] == [None, None]
    assert losses[0] == losses[1]
    assert all(torch.equal(parameter, adapters[1][name]) for name, parameter in adapters[0].items())
    assert "training diverged" in (failures[2] or "")
    assert losses[2][:3] == losses[0][:3]
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


def packed_together(kind: str, asked: Sequence[Asked]) -> tuple[list[Lane], list[list[float]]]:
    """What the captured step does, without the capture: one packed batch of equal stretches,
    products fused and grouped by lane."""
    model = build.MODELS[kind]()
    lanes = lanes_of(model, asked)
    packable = PackableRows.of(rows())
    parts = [
        [[numbers] for numbers in map(lane.order.rows_of, range(lane.steps))] for lane in lanes
    ]
    wanted = [
        largest_of([packable.exact_shape(part) for [part] in now])
        for now in zip_longest(*parts, fillvalue=[[]])
    ]
    shapes = plan_shapes(wanted, most=2, lanes=len(lanes))
    losses: list[list[float]] = [[] for _ in lanes]
    with ExitStack() as rewired:
        rewired.enter_context(attending(model, PACKED))
        compute_copy = rewired.enter_context(fused(model)) if can_fuse(model) else None
        forward = PackedForward(model, lanes, FP32, CPU, compute_copy)
        while any(not lane.done for lane in lanes):
            numbers = [[] if lane.done else lane.rows() for lane in lanes]
            exact = [packable.exact_shape(part) for part in numbers]
            shape = shapes[shape_for(largest_of(exact), shapes, min(one.tokens for one in exact))]
            buffer = torch.zeros(shape.size, dtype=torch.long)
            for stretch, part, lane in zip(
                buffer.view(len(lanes), -1), numbers, lanes, strict=True
            ):
                packable.pack(
                    part,
                    shape,
                    stretch.numpy(),
                    num_targets=max(1, int(packable.num_targets[part].sum())),
                    step=lane.step,
                )
            found = forward(PackedBatch(shape=shape, buffer=buffer)).tolist()
            for place, lane in enumerate(lanes):
                lane.set_rate(idle=lane.done)
                lane.move()
                if not lane.done:
                    losses[place].append(found[place])
                    lane.count()
            lanes[0].moves.bank.gradient.zero_()
            if compute_copy:
                compute_copy.refresh()
    return lanes, losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_packed_lanes_equal_the_reference(kind: str, dropout: float) -> None:
    """Lanes of other lengths, orders and batches: idle documents fill the shorter ones up, ended
    lanes rest."""
    asked = [
        (LoraConfig(targets="q+v", rank=2, dropout=dropout), config(epochs=3)),
        (LoraConfig(targets="all-linear", rank=4, alpha=8), config(epochs=2, seed=7, batch=5)),
        (LoraConfig(targets="q+k+v+o", rank=3), config(epochs=3, learning_rate=1e-3)),
    ]
    packed, losses = packed_together(kind, asked)
    lanes, results = together(kind, asked)
    for one, other, loss, result in zip(packed, lanes, losses, results, strict=True):
        assert loss == pytest.approx(result.history.loss, rel=1e-5)
        for name, parameter in other.parameters.items():
            assert torch.allclose(one.parameters[name], parameter, rtol=1e-3, atol=2e-4), name


def test_what_a_lane_does_not_adapt_stays_zero() -> None:
    """Smaller ranks and unnamed places are zeros in the bank; gradients there are exactly zero."""
    lanes, _ = packed_together(
        "llama",
        [
            (LoraConfig(targets="v", rank=1), config()),
            (LoraConfig(targets="all-linear", rank=4), config()),
        ],
    )
    bank = lanes[0].moves.bank
    own = torch.zeros_like(bank.flat[0], dtype=torch.bool)
    for part in lanes[0].moves.views(own).values():
        part.fill_(True)
    assert own.any()
    assert not bank.flat[0][~own].any()
    moments = lanes[0].adamw.optimizer.state[lanes[0].moved[0]]
    assert not moments["exp_avg"][~own].any()


class StopAt:
    """A step that behaves as if the process were killed in step number `at` of the group, after
    some lanes' checkpoints were written."""

    def __init__(self, inner: EagerStep, at: int):
        self.inner, self.at, self.count = inner, at, 0

    def __call__(self, lanes: Sequence[Lane]) -> list[StepResult]:
        self.count += 1
        if self.count == self.at:
            raise KeyboardInterrupt
        return self.inner(lanes)


@pytest.mark.parametrize("written", [0, 2])
def test_a_killed_group_goes_on_to_the_same_bits(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while training, or between the checkpoints of two lanes: all lanes resume from one
    moment."""
    asked = [
        (lora, train.model_copy(update={"epochs": 2 + number}))
        for number, (lora, train) in enumerate(LANES)
    ]
    whole, straight = together("llama", asked)
    folders = [tmp_path / str(number) for number in range(len(asked))]
    with monkeypatch.context() as patched:
        if written:
            from tsugiki.train import engine

            save, count = engine.save_checkpoint, 0

            def killed(*args: object, **named: object) -> Path:
                nonlocal count
                count += 1
                if count == 4 * 6 + written:
                    raise KeyboardInterrupt
                return save(*args, **named)

            patched.setattr(engine, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            together("llama", asked, folders, lambda step: StopAt(step, 9))
    lanes, resumed = together("llama", asked, folders)
    assert {result.resumed_from > 0 for result in resumed} == {True}
    for lane, result, other, expected in zip(lanes, resumed, whole, straight, strict=True):
        assert result.history.loss == expected.history.loss
        assert len(result.history.step_s) == lane.steps
        assert all(
            torch.equal(parameter, lane.parameters[name])
            for name, parameter in other.parameters.items()
        )


def test_one_lane_can_answer_alone() -> None:
    model = build.llama()
    lanes = lanes_of(model, LANES[:2])
    fit(EagerStep(model, rows(), 3, CPU, FP32), lanes, CPU, folders=[None, None])
    ids = torch.tensor([[5, 6, 7, 8]])
    for number in range(2):
        with lanes[0].moves.bank.only(number), torch.no_grad():
            answered = model(ids).logits
        alone = build.llama()
        [lane] = lanes_of(alone, [LANES[number]])
        lane.load_state(lanes[number].state_tensors(), 0, 0)
        torch.testing.assert_close(answered, alone(ids).logits, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        both = model(ids.repeat(2, 1)).logits
    torch.testing.assert_close(both[1:], answered, rtol=1e-5, atol=1e-6)
    assert adapter_of(model, 1).parameters.keys() == lanes[1].parameters.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rewired", [False, True])
@pytest.mark.parametrize("eos", [None, 77])
def test_all_lanes_answer_in_one_batch_as_each_alone(
    kind: str, rewired: bool, eos: int | None
) -> None:
    model = build.MODELS[kind](seed=5)
    asked = [
        (LoraConfig(targets="q+v", rank=2), config(seed=number, learning_rate=0.1))
        for number in range(3)
    ]
    asked.append((LoraConfig(targets="all-linear", rank=4, alpha=16), config(learning_rate=0.1)))
    lanes = lanes_of(model, asked)
    fit(EagerStep(model, rows(), 3, CPU, FP32), lanes, CPU, folders=[None] * 4)
    bank, stops = lanes[0].moves.bank, () if eos is None else (eos,)
    prompts = [
        tuple(5 + (7 * n + 3 * place) % 300 for place in range(2 + n % 9)) for n in range(13)
    ]
    alone = []
    for number in range(4):
        with bank.only(number):
            alone.append(generate_ids(model, prompts, max_new_tokens=6, stops=stops, pad_id=3))
    if eos is None:
        assert len({str(one) for one in alone}) > 1, "the lanes answer differently"
    with ExitStack() as stack:
        if rewired:
            stack.enter_context(attending(model, PACKED))
            stack.enter_context(fused(model))
            with bank.only(3):
                assert (
                    generate_all(
                        model, prompts, max_new_tokens=6, batch=8, stops=stops, numerics=FP32
                    )
                    == alone[3]
                )
        assert (
            generate_lanes(
                model, prompts, lanes=4, max_new_tokens=6, batch=5, stops=stops, numerics=FP32
            )
            == alone
        )
