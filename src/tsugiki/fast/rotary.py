"""Rotary embedding left to the attention over packed rows: its kernel turns queries and keys where
it reads them.

As written, a layer turns them in a pass of its own over memory, and turns their gradients back in
another. Within `rotation_left` the layer's own function hands both on as they are, with the angles
(`Unturned`); nothing but `packed_attention` can read such a pair, so that a layer that did
anything in between would fail, not compute something else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

# Model types whose layers turn whole heads by halves, and hand the result to the attention at once.
KINDS = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma")
_AS_WRITTEN: dict[str, Callable[..., Any]] = {}  # their functions, by the name of the model's code


class Unturned(NamedTuple):
    """Queries or keys [1, h, n, d] that are still to be turned by the angles `cos`, `sin` [1, n,
    d]."""

    states: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


def leave(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[Unturned, Unturned]:
    """Stands where a layer's `apply_rotary_pos_emb` stood."""
    assert unsqueeze_dim == 1, "heads before tokens"
    return Unturned(q, cos, sin), Unturned(k, cos, sin)


def turned(states: torch.Tensor | Unturned) -> torch.Tensor:
    """[1, h, n, d], turned where that was left. Source: Su et al. 2021, eq. 34, with halves for
    pairs as Llama has it."""
    if not isinstance(states, Unturned):
        return states
    x, cos, sin = states.states, states.cos[:, None], states.sin[:, None]
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


@contextmanager
def rotation_left(model: Any, left: bool = True) -> Iterator[None]:
    """Within it the layers of a model of `KINDS` leave the rotation to `packed_attention`; with
    `left` False they do it themselves again. Of the whole process: the function belongs to the
    model's code, not to the model."""
    if model.config.model_type not in KINDS:
        yield
        return
    code: Any = sys.modules[type(model).__module__]
    before = code.apply_rotary_pos_emb
    _AS_WRITTEN.setdefault(code.__name__, before)
    code.apply_rotary_pos_emb = leave if left else _AS_WRITTEN[code.__name__]
    try:
        yield
    finally:
        code.apply_rotary_pos_emb = before
