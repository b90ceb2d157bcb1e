"""AdamW over halves: equal to PyTorch's by bits; moments of few bits stay near those in fp32."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tsugiki.config.run import Moments, Weights
from tsugiki.fast.adamw import (
    FIRST,
    SECOND,
    State,
    StepNumbers,
    _decoded,
    _encoded,
    add_moments,
    joined,
    make_state,
    moments_of,
    random_bits,
    split,
    squares,
    update,
)

CPU = torch.device("cpu")
# Halfway between two bf16 (odd and even), the largest fp32, the smallest, subnormal, infinite.
CORNERS = [1.00390625, 1.01171875, 3.4028235e38, 1.1754944e-38, 1e-45, -1e-45, float("inf"), -0.0]


def state_of(
    weight: torch.Tensor,
    *,
    halves: bool = True,
    weights: Weights = "fp32",
    moments: Moments = "fp32",
    number: int = 0,
) -> State:
    state = make_state(weight.clone(), number, halves=halves, weights=weights)
    add_moments(state, moments)
    return state


def test_two_halves_are_the_whole() -> None:
    torch.manual_seed(0)
    spread = torch.randn(100_000) * torch.exp(10 * torch.randn(100_000))
    whole = torch.cat([spread, torch.tensor(CORNERS), -torch.tensor(CORNERS)])
    half, rest = split(whole)
    assert (half.dtype, rest.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(joined(half, rest).view(torch.int32), whole.view(torch.int32))
    ties = (whole.view(torch.int32) & 0xFFFF) == 0x8000
    assert torch.equal(half[~ties], whole[~ties].bfloat16())
    short, rest = split(spread, "24bit")
    assert rest.dtype == torch.int8
    assert ((joined(short, rest) - spread).abs() <= spread.abs() * 2**-15).all()


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_thousand_steps_equal_pytorch_by_bits(halves: bool, weight_decay: float) -> None:
    torch.manual_seed(1)
    start = torch.randn(5003) * 0.02
    parameter = torch.nn.Parameter(start.clone())
    theirs = torch.optim.AdamW([parameter], weight_decay=weight_decay, fused=True)
    state, numbers = state_of(start, halves=halves), StepNumbers(CPU, 0)
    clipped = 0
    for step in range(1, 1001):
        gradient = (torch.randn(5003) * 10 ** (2 * torch.randn(()) - 2)).bfloat16()
        rate = 1e-3 * (1 - step / 1100)
        parameter.grad = gradient.float()
        norm = torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        theirs.param_groups[0]["lr"] = rate
        theirs.step()
        numbers.set(step, rate, weight_decay)
        assert numbers.clip(squares(gradient), 1.0) == norm
        clipped += bool(norm > 1)
        update(state, gradient, numbers)
    assert 100 < clipped < 900
    whole = joined(state.weight, state.rest) if state.rest is not None else state.weight
    assert torch.equal(whole, parameter.detach())
    assert torch.equal(state.first, theirs.state[parameter]["exp_avg"])
    assert torch.equal(state.second, theirs.state[parameter]["exp_avg_sq"])


def test_a_step_that_does_not_count_moves_nothing() -> None:
    state, numbers = state_of(torch.randn(300), moments="8bit"), StepNumbers(CPU, 0)
    before = [state.weight.clone(), state.first.clone(), state.second.clone()]
    numbers.set(1, 1e-2, 0.0, live=False)
    sums = torch.ones(1)
    update(state, torch.ones(300), numbers, sums)
    assert all(map(torch.equal, before, [state.weight, state.first, state.second]))
    assert sums.item() == pytest.approx(300)


def roots(moments: Moments, steps: int = 2000) -> torch.Tensor:
    """√v as it is kept over √v in fp32, where gradients differ by orders of magnitude."""
    torch.manual_seed(2)
    size = 20_000
    state, numbers = state_of(torch.randn(size) * 0.02, moments=moments), StepNumbers(CPU, 3)
    scale, second = 1e-3 * 10 ** (0.5 * torch.randn(size)), torch.zeros(size)
    for step in range(1, steps + 1):
        gradient = (torch.randn(size) * scale).bfloat16()
        numbers.set(step, 1e-5, 0.0)
        update(state, gradient, numbers)
        second.mul_(0.999).addcmul_(gradient.float(), gradient.float(), value=0.001)
    return (moments_of(state, slice(0, size))[1] / second).sqrt()


@pytest.mark.parametrize(("moments", "spread"), [("bf16", 0.05), ("8bit", 0.25)])
def test_second_moments_of_few_bits_keep_moving(moments: Moments, spread: float) -> None:
    ratio = roots(moments)
    low, high = ratio.quantile(torch.tensor([0.05, 0.95])).tolist()
    assert ratio.mean().item() == pytest.approx(1, abs=0.03)
    assert 1 - spread < low < high < 1 + spread


def test_rounded_to_nearest_they_freeze() -> None:
    """Why they are rounded by chance."""
    second = torch.full((1000,), 1.0).bfloat16()
    for _ in range(3000):
        second = (0.999 * second.float() + 0.001 * 0.25).bfloat16()
    assert second.mean().item() > 0.99  # fp32 comes to 0.29


@pytest.mark.parametrize("kind", [FIRST, SECOND])
def test_codes_of_8_bits(kind: tuple[int, int, int, int]) -> None:
    torch.manual_seed(3)
    values = torch.randn(1000) * 10 ** torch.randn(1000)
    values = values if kind is FIRST else values.square()
    values[300:560] = 0
    zeros = torch.zeros(1000, dtype=torch.int64)
    largest = torch.full((1000,), 2**16 - 1)
    below, above = (
        _decoded(*_encoded(values, random, kind), kind)  # type: ignore[misc]
        for random in (zeros, largest)
    )
    shown = values.abs() > values.abs().max() * 1e-4
    assert ((below - values).abs()[shown] < values.abs()[shown] / 8).all()
    assert (below.abs() <= values.abs())[shown].all()
    assert (above.abs() >= below.abs()).all()
    assert not below[values == 0].any()
    if kind is SECOND:
        assert (below[values > 0] > 0).all()
    codes = _encoded(below, zeros, kind)
    assert torch.equal(_decoded(*codes, kind), below)
    assert torch.equal(_decoded(*_encoded(below, largest, kind), kind), below)


def test_rounding_by_chance_is_right_on_average() -> None:
    value = torch.full((200_000,), 1.06)
    random = random_bits(0, 1, 0, slice(0, 200_000), CPU)
    for kind in (FIRST, SECOND):
        kept = _decoded(*_encoded(value, random & 0xFFFF, kind), kind)
        assert set(kept.tolist()) == {1.0, 1.125}
        assert kept.mean().item() == pytest.approx(1.06, abs=1e-3)
    state, numbers = state_of(value, weights="24bit"), StepNumbers(CPU, 1)
    assert state.rest is not None
    before = joined(state.weight, state.rest).double()
    numbers.set(1, 1e-6, 0.0)
    update(state, torch.ones(200_000), numbers)
    moved = (joined(state.weight, state.rest).double() - before).mean().item()
    assert moved == pytest.approx(-1e-6, abs=1e-7)


def test_random_bits_depend_on_step_weight_and_element_alone() -> None:
    where = slice(0, 10_000)
    drawn = random_bits(7, 3, 1, where, CPU)
    again = random_bits(7, 3, 1, slice(4000, 10_000), CPU)
    assert torch.equal(drawn[4000:], again)
    others = [random_bits(*key, where, CPU) for key in ((8, 3, 1), (7, 4, 1), (7, 3, 2))]
    for numbers in (drawn, *others):
        for part in (numbers & 0xFFFF, numbers >> 16):
            assert (part / 2**16).mean().item() == pytest.approx(0.5, abs=0.02)
    assert all((drawn == other).float().mean() < 0.01 for other in others)


CODE = """
import torch
from tsugiki.fast import adamw, adamw_kernels
from tsugiki.fast.adamw import *

torch.manual_seed(0)
for size in (1000, 2304):
    gradient = torch.randn(size).bfloat16()
    out = torch.empty(-(-size // adamw.SQUARES))
    adamw_kernels.squares[(len(out),)](gradient, out, size, SIZE=adamw.SQUARES)
    assert torch.allclose(out.sum(), squares(gradient).sum(), rtol=1e-6)
    for halves, weights in ((True, "fp32"), (True, "24bit"), (False, "fp32")):
        for moments in ("fp32", "bf16", "8bit"):
            pair = []
            for _ in range(2):
                torch.manual_seed(1)
                weight = torch.randn(size) * 0.02
                state = make_state(weight, 5, halves=halves, weights=weights)
                add_moments(state, moments)
                pair.append(state)
            twin, state = pair
            for step in range(1, 6):
                gradient = (torch.randn(size) * 10 ** torch.randn(size)).bfloat16()
                numbers = StepNumbers(torch.device("cpu"), 3)
                numbers.clip(squares(gradient), 1.0)
                numbers.set(step, 1e-3, 0.1)
                sums = torch.empty(-(-size // adamw.TILE))
                update(twin, gradient, numbers)
                adamw.launch(state, gradient, numbers, sums)
                assert torch.allclose(sums.sum(), squares(gradient).sum(), rtol=1e-6)
            for name in ("first", "second", "exponents") if moments != "fp32" else ():
                one, other = getattr(state, name), getattr(twin, name)
                same = 1.0 if one is None else (one == other).float().mean().item()
                assert same > 0.98, (name, moments, same)
            wholes = [s.weight if s.rest is None else joined(s.weight, s.rest) for s in pair]
            assert torch.allclose(*wholes, rtol=1e-3, atol=1e-6), (weights, moments)
            for one, other in zip(*(moments_of(s, slice(0, size)) for s in pair), strict=True):
                near = torch.isclose(one, other, rtol=1e-4, atol=1e-12).float().mean()
                assert near > 0.98, (moments, near)
"""


@pytest.mark.skipif(
    find_spec("triton") is None,
    reason="Triton is not installed: it comes with PyTorch's CUDA builds",
)
def test_the_kernels_equal_their_twins() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={"TRITON_INTERPRET": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter cannot count loops with this NumPy (3.6 with 2.4)")
    assert done.returncode == 0, done.stderr
