"""AdamW over weights in two halves and moments of few bits: one fused kernel a weight on CUDA, its
twin (decode, PyTorch's AdamW, encode) elsewhere.

    weight   bf16, nearest to the fp32 weight: what matmuls read
    rest     int16: the fp32 weight's bits less those of the bf16 one. Nothing is lost
             int8: its upper half, stochastically rounded: 24 bits a weight

    moments  fp32 · bf16 (the second rounded stochastically) · 8 bits: small floats that share the
             exponent of the largest in their block of 256, both rounded stochastically

A second moment changes by 0.1 % a step: rounded to nearest it never leaves its value. Random bits
are a function of (seed, step, weight, element), so that a resumed run draws the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tsugiki.config.run import Moments, Weights

Code = tuple[int, int, int, int]
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # PyTorch's
BLOCK = 256  # of 8-bit moments: what shares an exponent
STRETCH = 2**20  # elements that the twin has in fp32 at a time
# Of 8-bit moments: bits of the mantissa that are left out, codes an exponent, the largest code,
# exponents below the largest. A sign takes one bit; squares span twice as many exponents.
FIRST, SECOND = (20, 8, 127, 15), (20, 8, 255, 31)
# Where the numbers of a step lie in `StepNumbers.values`.
LIVE, RATE, DECAY, SIZE, ROOT, COUNT, COEF = range(7)
_MASK = 0xFFFFFFFF


@dataclass
class State:
    """One weight as it is kept; flat, P elements each.

    `weight` is fp32 as a whole (then there is no `rest`) or the bf16 half. `first` and `second` are
    the moments; `exponents` [2, ceil(P / 256)] those of 8-bit ones.
    """

    weight: torch.Tensor
    rest: torch.Tensor | None
    first: torch.Tensor
    second: torch.Tensor
    exponents: torch.Tensor | None
    number: int

    @property
    def kind(self) -> Moments:
        if self.exponents is not None:
            return "8bit"
        return "fp32" if self.first.dtype == torch.float32 else "bf16"


class StepNumbers:
    """What a step's updates read, on their device, so that a captured update reads it too.

    `values` fp32: whether the step counts (a CUDA graph is warmed up on weights that must not
    move), learning rate, 1 - rate · decay, rate / (1 - β1^t), sqrt(1 - β2^t), t, clipping.
    """

    def __init__(self, device: torch.device, seed: int):
        self.seed = seed & 0x7FFFFFFF
        self.values = torch.zeros(7, device=device)
        self.values[COEF] = 1.0
        self.exact = (0.0, 0.0)  # rate and weight decay, as PyTorch's AdamW is given them

    def set(self, step: int, rate: float, weight_decay: float, *, live: bool = True) -> None:
        """The numbers of step `step` (from 1); clipping is left as it is."""
        self.exact = (rate, weight_decay)
        size, root = rate / (1 - BETA1**step), (1 - BETA2**step) ** 0.5
        numbers = [float(live), rate, 1 - rate * weight_decay, size, root, float(step)]
        self.values[:COEF].copy_(torch.tensor(numbers), non_blocking=True)

    def clip(self, squares: torch.Tensor, clip: float) -> torch.Tensor:
        """The norm from the sums of squares, set to be clipped at `clip` as PyTorch clips."""
        norm = squares.sum().sqrt()
        self.set_clip(norm, clip)
        return norm

    def set_clip(self, norm: torch.Tensor, clip: float) -> None:
        torch.clamp(clip / (norm + 1e-6), max=1.0, out=self.values[COEF])


def make_state(weight: torch.Tensor, number: int, *, halves: bool, weights: Weights) -> State:
    """State of a flat fp32 weight [P], without moments; `halves` cuts the weight in two."""
    rest = None
    if halves:
        weight, rest = split(weight, weights)
    none = weight.new_empty(0)
    return State(weight, rest, none, none, None, number)


def add_moments(state: State, moments: Moments) -> None:
    """Moments of zero."""
    size, device = state.weight.numel(), state.weight.device
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "8bit": torch.uint8}[moments]
    state.first, state.second = (torch.zeros(size, dtype=dtype, device=device) for _ in range(2))
    if moments == "8bit":
        state.exponents = torch.zeros(2, -(-size // BLOCK), dtype=torch.uint8, device=device)


# ---- weights ------------------------------------------------------------------------------------


def split(whole: torch.Tensor, weights: Weights = "fp32") -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 → (bf16 half, rest), any shape; a tie between two bf16 goes away from zero. Both lie in
    one piece of memory: large pieces are rounded up."""
    bits = whole.contiguous().view(torch.int32)
    upper = (bits + 0x8000) >> 16
    lower = bits - (upper << 16)
    kind = torch.int16 if weights == "fp32" else torch.int8
    if weights == "24bit":
        lower = ((lower + 0x80) >> 8).clamp(max=127)
    size = whole.numel()
    memory = torch.empty(size * (2 + kind.itemsize), dtype=torch.uint8, device=whole.device)
    half, rest = memory[: 2 * size].view(torch.int16), memory[2 * size :].view(kind)
    half.copy_(upper.view(-1))
    rest.copy_(lower.view(-1))
    return half.view(torch.bfloat16).view(whole.shape), rest.view(whole.shape)


def joined(half: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """(bf16 half, rest) → fp32, any shape."""
    lower = rest.to(torch.int32)
    if rest.dtype == torch.int8:
        lower = lower << 8
    bits = (half.contiguous().view(torch.int16).to(torch.int32) << 16) + lower
    return bits.view(torch.float32)


def _store(state: State, where: slice, whole: torch.Tensor, bits: torch.Tensor | None) -> None:
    if state.rest is None:
        return  # it was moved itself
    if state.rest.dtype == torch.int8:
        assert bits is not None, "24 bits are rounded by chance"
        raw = whole.view(torch.int32).to(torch.int64) + (bits & 0xFF)
        whole = (raw & ~0xFF).to(torch.int32).view(torch.float32)
        half = (whole.view(torch.int32) + 0x8000) >> 16
        rest = (whole.view(torch.int32) - (half << 16)) >> 8
        state.weight[where] = half.to(torch.int16).view(torch.bfloat16)
        state.rest[where] = rest.to(torch.int8)
        return
    state.weight[where], state.rest[where] = split(whole)


# ---- moments ------------------------------------------------------------------------------------


def _decoded(codes: torch.Tensor, exponents: torch.Tensor, kind: Code) -> torch.Tensor:
    drop, an_exponent, _, span = kind
    base = (exponents.to(torch.int32) - span) * an_exponent
    base = base.repeat_interleave(BLOCK)[: codes.numel()]
    codes = codes.to(torch.int32)
    if kind is FIRST:
        size, sign = codes & 127, codes >> 7
        value = ((base + size) << drop).view(torch.float32)
        return torch.where(size == 0, 0.0, torch.where(sign == 1, -value, value))
    return torch.where(codes == 0, 0.0, ((base + codes) << drop).view(torch.float32))


def _encoded(
    values: torch.Tensor, random: torch.Tensor, kind: Code
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, exponents) of fp32 values, with 16 random bits each; what is smaller than the
    smallest code becomes 0, a second moment the smallest code: 0 would be divided by."""
    drop, an_exponent, largest, span = kind
    bits = values.view(torch.int32) & 0x7FFFFFFF
    short = -len(values) % BLOCK
    in_blocks = torch.nn.functional.pad(bits, (0, short)).view(-1, BLOCK)
    exponents = (in_blocks.amax(1) >> 23).clamp(span, 254)
    base = ((exponents - span) * an_exponent).repeat_interleave(BLOCK)[: len(values)]
    rounded = (bits + (random << (drop - 16)).to(torch.int32)) >> drop
    codes = (rounded - base).clamp(0 if kind is FIRST else 1, largest)
    codes = torch.where(bits == 0, 0, codes)
    if kind is FIRST:
        codes = codes | ((values < 0).to(torch.int32) << 7)
    return codes.to(torch.uint8), exponents.to(torch.uint8)


def moments_of(state: State, where: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Both moments of a stretch in fp32; of 8-bit ones it starts at a block."""
    first, second = state.first[where], state.second[where]
    if state.exponents is None:
        return first.float(), second.float()
    blocks = state.exponents[:, where.start // BLOCK : -(-where.stop // BLOCK)]
    return _decoded(first, blocks[0], FIRST), _decoded(second, blocks[1], SECOND)


def _keep(
    state: State, where: slice, first: torch.Tensor, second: torch.Tensor, random: Any
) -> None:
    if state.kind == "bf16":
        state.first[where] = first.to(torch.bfloat16)
        lower = (random & 0xFFFF).to(torch.int32)
        rounded = (second.view(torch.int32) + lower) & ~0xFFFF
        state.second[where] = rounded.view(torch.float32).to(torch.bfloat16)
        return
    assert state.exponents is not None, "8 bits have exponents"
    blocks = slice(where.start // BLOCK, -(-where.stop // BLOCK))
    state.first[where], state.exponents[0, blocks] = _encoded(first, random >> 16, FIRST)
    state.second[where], state.exponents[1, blocks] = _encoded(second, random & 0xFFFF, SECOND)


# ---- random bits --------------------------------------------------------------------------------


def _mix(x: Any) -> Any:
    """32 bits → 32 bits, in int64. Source: C. Wellons, "Prospecting for hash functions"
    (lowbias32), public domain."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def random_bits(
    seed: int, step: int, number: int, where: slice, device: torch.device
) -> torch.Tensor:
    """32 random bits for each element of a stretch, in int64."""
    key = _mix((_mix((step + 0x9E3779B9 * number) & _MASK) ^ seed) & _MASK)
    bits: torch.Tensor = _mix(torch.arange(where.start, where.stop, device=device) ^ key)
    return bits


# ---- update -------------------------------------------------------------------------------------


def squares(gradient: torch.Tensor) -> torch.Tensor:
    """Sums of squares of a gradient in fp32, [m]: their sum is its squared norm."""
    flat = gradient.reshape(-1)
    if not flat.is_cuda:
        return torch.linalg.vector_norm(flat, dtype=torch.float32).square()[None]
    out = flat.new_empty(-(-len(flat) // SQUARES), dtype=torch.float32)
    _kernels().squares[(len(out),)](flat, out, len(flat), SIZE=SQUARES, num_warps=8)
    return out


SQUARES = 8192  # elements of a program of the kernel
TILE = 4 * BLOCK


def update(
    state: State, gradient: torch.Tensor, numbers: StepNumbers, sums: torch.Tensor | None = None
) -> None:
    """One step of a weight by its gradient [P], times the clipping of `numbers`; the squares of the
    gradient are summed into `sums` [ceil(P / 1024)] on the way, if given.

    Source: Loshchilov & Hutter 2019, as `torch.optim.AdamW` computes it: in fp32 moments and whole
    weights equal to it by bits on a CPU, to rounding on CUDA.
    """
    flat = gradient.reshape(-1)
    if not flat.is_cuda:
        if sums is not None:
            sums.zero_()
            sums[:1] = squares(flat)
        _update_by_pytorch(state, flat, numbers)
    else:
        launch(state, flat, numbers, sums)


def launch(
    state: State, flat: torch.Tensor, numbers: StepNumbers, sums: torch.Tensor | None
) -> None:
    """`update` by the kernel."""
    rest, exponents = state.rest, state.exponents
    _kernels().update[(-(-len(flat) // TILE),)](
        state.weight, state.weight if rest is None else rest, flat, state.first, state.second,
        state.first if exponents is None else exponents, numbers.values,
        flat if sums is None else sums, len(flat), numbers.seed, state.number,
        REST=0 if rest is None else 8 * rest.element_size(),
        MOMENTS={"fp32": 32, "bf16": 16, "8bit": 8}[state.kind],
        SUMS=sums is not None, TILE=TILE, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def _update_by_pytorch(state: State, gradient: torch.Tensor, numbers: StepNumbers) -> None:
    live, _, _, _, _, count, coef = numbers.values.tolist()
    if not live:
        return
    rate, decay = numbers.exact
    step, chance = torch.tensor(count), state.kind != "fp32" or _short(state)
    for start in range(0, len(gradient), STRETCH):
        where = slice(start, min(start + STRETCH, len(gradient)))
        whole = state.weight[where]
        if state.rest is not None:
            whole = joined(whole, state.rest[where])
        first, second = (
            (state.first[where], state.second[where])
            if state.kind == "fp32"
            else moments_of(state, where)
        )
        torch._fused_adamw_(
            [whole], [gradient[where].float() * coef], [first], [second], [], [step],
            lr=rate, beta1=BETA1, beta2=BETA2, weight_decay=decay, eps=EPS,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        random = None
        if chance:
            random = random_bits(numbers.seed, int(count), state.number, where, gradient.device)
        if state.kind != "fp32":
            _keep(state, where, first, second, random)
        _store(state, where, whole, random)


def _short(state: State) -> bool:
    return state.rest is not None and state.rest.dtype == torch.int8


@cache
def _kernels() -> Any:
    """The kernels; Triton comes with PyTorch's CUDA builds only."""
    from tsugiki.fast import adamw_kernels

    return adamw_kernels
