"""Rotary embedding (RoPE) deferred to the attention over packed rows: its kernel rotates queries
and keys where it reads them.

As written, a layer rotates them in a pass of its own over memory, and their gradients back in
another. Within `deferred_rope` the layer's own function passes both through as they are, with the
angles (`PendingRope`); nothing but `packed_attention` can read such a pair, so that a layer that
did anything in between would fail, not compute something else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

# Model types whose layers rotate whole heads by halves, and give the result to the attention at
# once.
KINDS = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma")
_AS_WRITTEN: dict[str, Callable[..., Any]] = {}  # their functions, by the name of the model's code


class PendingRope(NamedTuple):
    """Queries or keys [1, h, n, d] that are still to be rotated by the angles `cos`, `sin` [1, n,
    d]."""

    states: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


def defer_rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[PendingRope, PendingRope]:
    """Stands where a layer's `apply_rotary_pos_emb` stood."""
    assert unsqueeze_dim == 1, "heads before tokens"
    return PendingRope(q, cos, sin), PendingRope(k, cos, sin)


def apply_pending_rope(states: torch.Tensor | PendingRope) -> torch.Tensor:
    """[1, h, n, d], rotated where that was deferred. Source: Su et al. 2021, eq. 34, with halves
    for pairs as Llama has it."""
    if not isinstance(states, PendingRope):
        return states
    x, cos, sin = states.states, states.cos[:, None], states.sin[:, None]
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


@contextmanager
def deferred_rope(model: Any, deferred: bool = True) -> Iterator[None]:
    """Within it the layers of a model of `KINDS` defer RoPE to `packed_attention`; with
    `deferred` False they apply it themselves again. Of the whole process: the function belongs to
    the model's code, not to the model."""
    if model.config.model_type not in KINDS:
        yield
        return
    code: Any = sys.modules[type(model).__module__]
    before = code.apply_rotary_pos_emb
    _AS_WRITTEN.setdefault(code.__name__, before)
    code.apply_rotary_pos_emb = defer_rope if deferred else _AS_WRITTEN[code.__name__]
    try:
        yield
    finally:
        code.apply_rotary_pos_emb = before
