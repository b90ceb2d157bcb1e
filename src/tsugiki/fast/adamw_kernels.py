"""The Triton kernels of `adamw`. Only imported where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def squares(gradient, out, size, SIZE: tl.constexpr):
    """A program sums the squares of SIZE elements."""
    start = tl.program_id(0).to(tl.int64) * SIZE
    at = tl.arange(0, SIZE)
    inside = at < tl.minimum(size - start, SIZE).to(tl.int32)
    values = tl.load(gradient + start + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + tl.program_id(0), tl.sum(values * values, 0))


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
    size = codes & 127 if SIGNED else codes
    bits = (((exponents - SPAN) * 8)[:, None] + size) << 20
    if SIGNED:
        bits = bits | ((codes & 128) << 24)
    return tl.where(size == 0, 0.0, _float(bits))


@triton.jit
def _encoded(values, chance, SIGNED: tl.constexpr):
    """fp32 [rows, BLOCK], 16 random bits each → (codes, exponents [rows]) int32."""
    SPAN: tl.constexpr = 15 if SIGNED else 31
    raw = _bits(values)
    bits = raw & 0x7FFFFFFF if SIGNED else raw
    exponents = tl.minimum(tl.maximum(tl.max(bits, 1) >> 23, SPAN), 254)
    codes = ((bits + (chance << 4)) >> 20) - ((exponents - SPAN) * 8)[:, None]
    if SIGNED:
        codes = tl.minimum(tl.maximum(codes, 0), 127) | ((raw >> 24) & 128)
    else:
        codes = tl.minimum(tl.maximum(codes, 1), 255)
    return tl.where(bits == 0, 0, codes), exponents


@triton.jit
def _load_weight(weight, rest, at, inside, REST: tl.constexpr):
    raw = tl.load(weight + at, mask=inside, other=0.0)
    if REST == 0:
        return raw
    else:
        lower = tl.load(rest + at, mask=inside, other=0).to(tl.int32)
        if REST == 8:
            lower = lower << 8
        return _float((raw.to(tl.int16, bitcast=True).to(tl.int32) << 16) + lower)


@triton.jit
def _store_weight(weight, rest, whole, chance, at, inside, REST: tl.constexpr):
    if REST == 0:
        tl.store(weight + at, whole, mask=inside)
    else:
        bits = _bits(whole)
        if REST == 8:
            bits = (bits + (chance & 0xFF)) & -256
        upper = (bits + 0x8000) >> 16
        lower = bits - (upper << 16)
        tl.store(weight + at, _bf16(upper), mask=inside)
        if REST == 8:
            tl.store(rest + at, (lower >> 8).to(tl.int8), mask=inside)
        else:
            tl.store(rest + at, lower.to(tl.int16), mask=inside)


@triton.jit
def _load_moments(first, second, exponents, where, MOMENTS: tl.constexpr):
    at, inside, block, blocks = where
    m = tl.load(first + at, mask=inside, other=0)
    v = tl.load(second + at, mask=inside, other=0)
    if MOMENTS == 8:
        there = block < blocks
        of_m = tl.load(exponents + block, mask=there, other=15).to(tl.int32)
        of_v = tl.load(exponents + blocks + block, mask=there, other=31).to(tl.int32)
        return _decoded(m.to(tl.int32), of_m, True), _decoded(v.to(tl.int32), of_v, False)
    else:
        return m.to(tl.float32), v.to(tl.float32)


@triton.jit
def _store_moments(first, second, exponents, m, v, chance, where, MOMENTS: tl.constexpr):
    at, inside, block, blocks = where
    if MOMENTS == 32:
        tl.store(first + at, m, mask=inside)
        tl.store(second + at, v, mask=inside)
    elif MOMENTS == 16:
        bits = _bits(m)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(first + at, _bf16(nearest), mask=inside)
        tl.store(second + at, _bf16((_bits(v) + (chance & 0xFFFF)) >> 16), mask=inside)
    else:
        there = block < blocks
        codes, top = _encoded(m, (chance >> 16) & 0xFFFF, True)
        tl.store(first + at, codes.to(tl.uint8), mask=inside)
        tl.store(exponents + block, top.to(tl.uint8), mask=there)
        codes, top = _encoded(v, chance & 0xFFFF, False)
        tl.store(second + at, codes.to(tl.uint8), mask=inside)
        tl.store(exponents + blocks + block, top.to(tl.uint8), mask=there)


@triton.jit(do_not_specialize=["seed", "number"])
def update(
    weight, rest, gradient, first, second, exponents, numbers, sums, size, seed, number,
    REST: tl.constexpr, MOMENTS: tl.constexpr, SUMS: tl.constexpr,
    TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program moves TILE elements: what is kept becomes fp32, AdamW, what is kept again."""
    ROWS: tl.constexpr = TILE // BLOCK
    program = tl.program_id(0)
    start = program.to(tl.int64) * TILE
    at = tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = at < tl.minimum(size - start, TILE).to(tl.int32)
    slope = tl.load(gradient + start + at, mask=inside, other=0.0).to(tl.float32)
    if SUMS:
        tl.store(sums + program, tl.sum(tl.sum(slope * slope, 1), 0))
    if tl.load(numbers) == 0:
        return
    decay, size_of_step = tl.load(numbers + 2), tl.load(numbers + 3)
    root, coef = tl.load(numbers + 4), tl.load(numbers + 6)

    where = at, inside, program * ROWS + tl.arange(0, ROWS), tl.cdiv(size, BLOCK)
    first, second = first + start, second + start
    whole = _load_weight(weight + start, rest + start, at, inside, REST)
    m, v = _load_moments(first, second, exponents, where, MOMENTS)
    slope = slope * coef
    m = m + (1 - 0.9) * (slope - m)
    v = 0.999 * v + (1 - 0.999) * slope * slope
    whole = whole * decay - size_of_step * m / (tl.sqrt(v) / root + 1e-8)

    chance = at
    if MOMENTS != 32 or REST == 8:
        step = tl.load(numbers + 5).to(tl.int64)
        mixed = (step + number.to(tl.int64) * 0x9E3779B9).to(tl.uint32)
        key = _mix(_mix(mixed) ^ seed.to(tl.uint32))
        chance = _mix((start.to(tl.uint32) + at.to(tl.uint32)) ^ key).to(tl.int32, bitcast=True)
    _store_moments(first, second, exponents, m, v, chance, where, MOMENTS)
    _store_weight(weight + start, rest + start, whole, chance, at, inside, REST)
