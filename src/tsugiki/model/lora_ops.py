"""Pure tensor functions of LoRA: the low-rank update and its counter-based dropout. The reference for any faster path."""

from __future__ import annotations

import torch

_MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # odd 64-bit constants of splitmix64


def low_rank_update(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """scale · B A x.

    Args:
        x: [..., d_in]
        a: [r, d_in]
        b: [d_out, r]

    Returns:
        [..., d_out], in the dtype of the products (autocast decides).

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3; the paper's figure 1.
    """
    return torch.nn.functional.linear(torch.nn.functional.linear(x, a), b) * scale


def _mix(z: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64 with wrap-around (Steele, Lea, Flood 2014)."""
    z = (z ^ _logical_shift(z, 30)) * _MULTIPLIERS[1]
    z = (z ^ _logical_shift(z, 27)) * _MULTIPLIERS[2]
    return z ^ _logical_shift(z, 31)


def _logical_shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def dropout_mask(seed: int, step: int, layer: int, rows: torch.Tensor, length: int, width: int, share: float) -> torch.Tensor:
    """Keep-mask [b, t, width], scaled by 1 / (1 - share).

    A value depends on (seed, step, layer, row number, position, feature) alone: not on the batch a row stands in,
    nor on padding, nor on any generator's state. So a resumed run and a run among others draw the same masks.
    """
    key = torch.tensor([seed * 1_000_003 + step, layer], dtype=torch.int64, device=rows.device)
    start = _mix(_mix(key[:1] * _MULTIPLIERS[0]) + key[1:])
    by_row = _mix(start + rows.to(torch.int64) * _MULTIPLIERS[0])
    by_position = _mix(by_row[:, None] + torch.arange(length, device=rows.device) * _MULTIPLIERS[0])
    bits = _mix(by_position[:, :, None] + torch.arange(width, device=rows.device) * _MULTIPLIERS[0])
    uniform = _logical_shift(bits, 40).to(torch.float32) / 2**24
    return (uniform >= share).to(torch.float32) / (1.0 - share)
