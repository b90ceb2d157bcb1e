"""The Triton kernels of `adamw`. Only imported where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def squares(gradient, out, size, SIZE: tl.constexpr):
    """A program sums the squares of SIZE elements."""
    start = tl.program_id(0).to(tl.int64) * SIZE
    total = tl.zeros((1024,), tl.float32)
    for step in tl.static_range(SIZE // 1024):
        at = start + step * 1024 + tl.arange(0, 1024)
        values = tl.load(gradient + at, mask=at < size, other=0.0).to(tl.float32)
        total += values * values
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _float(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _bits(value):
    return value.to(tl.int32, bitcast=True)


@triton.jit
def _bf16(upper):
    """The upper 16 bits of an fp32 number."""
    return upper.to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _decoded(codes, exponents, SIGNED: tl.constexpr):
    """codes [rows, BLOCK] int32, exponents [rows] int32 → fp32."""
    SPAN: tl.constexpr = 15 if SIGNED else 31
    base = ((exponents - SPAN) * 8)[:, None]
    if SIGNED:
        size = codes & 127
        value = _float((base + size) << 20)
        value = tl.where((codes >> 7) == 1, -value, value)
        return tl.where(size == 0, 0.0, value)
    else:
        return tl.where(codes == 0, 0.0, _float((base + codes) << 20))


@triton.jit
def _encoded(values, random, SIGNED: tl.constexpr):
    """fp32 [rows, BLOCK] → (codes, exponents [rows]) int32."""
    SPAN: tl.constexpr = 15 if SIGNED else 31
    bits = _bits(values) & 0x7FFFFFFF
    exponents = tl.minimum(tl.maximum(tl.max(bits, 1) >> 23, SPAN), 254)
    rounded = (bits + (random & 0xFFFFF).to(tl.int32)) >> 20
    codes = rounded - ((exponents - SPAN) * 8)[:, None]
    if SIGNED:
        codes = tl.where(bits == 0, 0, tl.minimum(tl.maximum(codes, 0), 127))
        codes = codes | tl.where(values < 0, 128, 0)
    else:
        codes = tl.where(bits == 0, 0, tl.minimum(tl.maximum(codes, 1), 255))
    return codes, exponents


@triton.jit
def _store_moments(
    first,
    second,
    exponents,
    m,
    v,
    chance,
    chance_too,
    at,
    inside,
    block,
    blocks,
    MOMENTS: tl.constexpr,
):
    if MOMENTS == 32:
        tl.store(first + at, m, mask=inside)
        tl.store(second + at, v, mask=inside)
    elif MOMENTS == 16:
        bits = _bits(m)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(first + at, _bf16(nearest), mask=inside)
        tl.store(second + at, _bf16((_bits(v) + (chance & 0xFFFF).to(tl.int32)) >> 16), mask=inside)
    else:
        codes, top = _encoded(m, chance_too, True)
        tl.store(first + at, codes.to(tl.uint8), mask=inside)
        tl.store(exponents + block, top.to(tl.uint8), mask=block < blocks)
        codes, top = _encoded(v, chance, False)
        tl.store(second + at, codes.to(tl.uint8), mask=inside)
        tl.store(exponents + blocks + block, top.to(tl.uint8), mask=block < blocks)


@triton.jit
def _store_weight(weight, rest, whole, chance_too, at, inside, REST: tl.constexpr):
    if REST == 0:
        tl.store(weight + at, whole, mask=inside)
    else:
        bits = _bits(whole)
        if REST == 8:
            bits = (bits + (chance_too >> 24).to(tl.int32)) & -256
        upper = (bits + 0x8000) >> 16
        lower = bits - (upper << 16)
        tl.store(weight + at, _bf16(upper), mask=inside)
        if REST == 8:
            tl.store(rest + at, (lower >> 8).to(tl.int8), mask=inside)
        else:
            tl.store(rest + at, lower.to(tl.int16), mask=inside)


@triton.jit
def _loaded_weight(weight, rest, at, inside, REST: tl.constexpr):
    raw = tl.load(weight + at, mask=inside)
    if REST == 0:
        return raw
    else:
        lower = tl.load(rest + at, mask=inside).to(tl.int32)
        if REST == 8:
            lower = lower << 8
        return _float((raw.to(tl.int16, bitcast=True).to(tl.int32) << 16) + lower)


@triton.jit(do_not_specialize=["seed", "number"])
def update(
    weight, rest, gradient, first, second, exponents, numbers, sums, size, seed, number,
    REST: tl.constexpr, MOMENTS: tl.constexpr, SUMS: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program moves TILE elements: what is kept becomes fp32, AdamW, what is kept again."""
    ROWS: tl.constexpr = TILE // BLOCK
    program = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    at = program * TILE + tile
    inside = at < size
    slope = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    if SUMS:
        tl.store(sums + program, tl.sum(tl.sum(slope * slope, 1), 0))
    if tl.load(numbers) == 0:
        return
    decay, size_of_step = tl.load(numbers + 2), tl.load(numbers + 3)
    root, coef = tl.load(numbers + 4), tl.load(numbers + 6)

    whole = _loaded_weight(weight, rest, at, inside, REST)
    m = tl.load(first + at, mask=inside)
    v = tl.load(second + at, mask=inside)
    block = program * ROWS + tl.arange(0, ROWS)
    blocks = tl.cdiv(size, BLOCK)
    if MOMENTS == 8:
        exponents_of_m = tl.load(exponents + block, mask=block < blocks).to(tl.int32)
        exponents_of_v = tl.load(exponents + blocks + block, mask=block < blocks).to(tl.int32)
        m = _decoded(m.to(tl.int32), exponents_of_m, True)
        v = _decoded(v.to(tl.int32), exponents_of_v, False)
    else:
        m, v = m.to(tl.float32), v.to(tl.float32)

    slope = slope * coef
    m = m + (1 - 0.9) * (slope - m)
    v = 0.999 * v + (1 - 0.999) * slope * slope
    whole = whole * decay - size_of_step * m / (tl.sqrt_rn(v) / root + 1e-8)

    chance, chance_too = at.to(tl.uint32), at.to(tl.uint32)
    if MOMENTS != 32 or REST == 8:
        step = tl.load(numbers + 5).to(tl.int64)
        mixed = (step + number.to(tl.int64) * 0x9E3779B9).to(tl.uint32)
        chance = _mix(chance ^ _mix(_mix(mixed) ^ seed.to(tl.uint32)))
        chance_too = _mix(chance ^ 0x68BC21EB)
    m, v = tl.where(inside, m, 0.0), tl.where(inside, v, 0.0)
    _store_moments(
        first, second, exponents, m, v, chance, chance_too, at, inside, block, blocks, MOMENTS
    )
    _store_weight(weight, rest, whole, chance_too, at, inside, REST)
