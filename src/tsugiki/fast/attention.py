"""Causal attention over packed documents, and the one place that knows how PyTorch's releases
differ in it.

tsugiki_packed   q, k, v [1, h, n, d] hold documents one after another; `cu_seq`
                 [documents + 1] says where each begins.
                 On CUDA in 16 bits: our kernel for short documents, else `varlen_attn` (flash
                 attention). Elsewhere their twin: SDPA document by document, so that no n × n mask
                 exists. With a `store`, keys and values are kept there: the reading of a prompt.
tsugiki_stored   q [rows, h, 1, d], one new token a row, over the keys and values in the `store`:
                 the writing of an answer.

Registered with transformers without mask functions, so that transformers builds no mask and never
waits for the device.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from tsugiki.errors import ModelError
from tsugiki.fast.fused_linears import fused_qkv_of
from tsugiki.fast.rotary import PendingRope, apply_pending_rope
from tsugiki.fast.short_document_attention import (
    joined_attention,
    short_document_attention,
    supports,
)

PACKED, STORED = "tsugiki_packed", "tsugiki_stored"
_NEUTRAL = {"softcap": None, "s_aux": None, "head_mask": None}
# torch 2.11's flash kernel takes fewer key heads as they are; from 2.12 on it must be asked for.
_GQA: Any = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)


class KeyValueStore:
    """Keys and values of `rows` rows of at most `longest` tokens, layer by layer; made at the
    first use of each layer.

    `token_rows`, `token_positions` [n] say where the tokens of the coming packed prompts belong.
    `lengths` [rows] are the tokens held by each row: the position of the coming one.
    """

    def __init__(self, rows: int, longest: int, device: torch.device):
        self.rows, self.longest, self.device = rows, longest, device
        self.token_rows = self.token_positions = torch.zeros(0, dtype=torch.long, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def layer(self, index: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(keys, values) [rows, longest, h_kv, d] of a layer; `like` [..., h_kv, d]."""
        if index not in self.layers:
            shape = (self.rows, self.longest, *like.shape[-2:])
            self.layers[index] = (like.new_zeros(shape), like.new_zeros(shape))
        return self.layers[index]

    def put_prompts(self, index: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Keeps keys and values [n, h_kv, d] of packed prompts."""
        keys, values = self.layer(index, k)
        keys[self.token_rows, self.token_positions] = k
        values[self.token_rows, self.token_positions] = v

    def keep_rows(self, wanted: torch.Tensor) -> None:
        """Moves the rows `wanted` to the front."""
        for keys, values in self.layers.values():
            for cached in (keys, values):
                cached[: len(wanted)] = cached[wanted]
        self.lengths[: len(wanted)] = self.lengths[wanted]


def packed_attention(
    module: nn.Module,
    query: torch.Tensor | PendingRope,
    key: torch.Tensor | PendingRope,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq: torch.Tensor,
    longest: int,
    store: KeyValueStore | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Each document attends causally to itself. Faces transformers' attention interface.

    Args:
        query: [1, h, n, d]; key, value: [1, h_kv, n, d]; query and key with angles where rotary
            embedding was deferred
        cu_seq: int32 [documents + 1], ascending from 0 to n; equal neighbours are empty documents
        longest: no document is longer
        sliding_window: a token sees so many, itself included (None: all before it)

    Returns:
        [1, n, h, d], None

    Raises:
        ModelError: the model asks for what is not implemented here (capped scores, attention
            sinks, dropout).
    """
    _refuse_others(module, attention_mask, dropout, others)
    whole = sliding_window is None or sliding_window >= longest
    short = value.is_cuda and whole and supports(value, longest)
    qkv = fused_qkv_of(module, rope_applied=not isinstance(query, PendingRope))
    # Only the kernel rotates what it reads, and what is stored has been rotated.
    if store is not None or not short:
        query, key, qkv = apply_pending_rope(query), apply_pending_rope(key), None
    cos = sin = None
    if isinstance(query, PendingRope):
        assert isinstance(key, PendingRope), "queries and keys are deferred together"
        cos, sin, query, key = query.cos.squeeze(0), query.sin.squeeze(0), query.states, key.states
    assert not isinstance(key, PendingRope), "queries and keys are deferred together"
    if qkv is not None:
        _, heads, _, width = query.shape
        flat, scale = qkv.view(-1, qkv.shape[-1]), scaling or width**-0.5
        return joined_attention(flat, heads, width, cos, sin, cu_seq, scale)[0][None], None
    # Angles in fp32 may have widened q and k. No `[0]`: its backward pass would clear and copy.
    q, k, v = (states.squeeze(0).transpose(0, 1).to(value.dtype) for states in (query, key, value))
    if store is not None:
        store.put_prompts(module.layer_idx, k, v)  # type: ignore[arg-type]
    if short:
        scale = scaling or q.shape[-1] ** -0.5
        return short_document_attention(q, k, v, cos, sin, cu_seq, scale)[0][None], None
    if v.is_cuda:
        left = -1 if whole or sliding_window is None else sliding_window - 1
        return _flash(q, k, v, cu_seq, longest, scaling, left)[None], None
    return by_document(q, k, v, cu_seq.tolist(), scaling, sliding_window)[None], None


def _flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seq: torch.Tensor,
    longest: int,
    scaling: float | None,
    left: int,
) -> torch.Tensor:
    """[n, h, d]; a token sees `left` tokens before it (-1: all)."""
    window = (left, 0)
    out = varlen_attn(
        q, k, v, cu_seq, cu_seq, longest, longest, scale=scaling, window_size=window, **_GQA
    )
    assert isinstance(out, torch.Tensor)
    return out


def by_document(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    edges: list[int],
    scaling: float | None,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """[n, h, d] → [n, h, d]; the reference, and the CPU path."""
    outs = []
    for start, stop in pairwise(edges):
        if stop > start:
            query, key, value = (part[start:stop].transpose(0, 1)[None] for part in (q, k, v))
            mask = None
            if sliding_window is not None and sliding_window < stop - start:
                ones = torch.ones(stop - start, stop - start, dtype=torch.bool, device=q.device)
                mask = ones.tril() & ones.triu(1 - sliding_window)
            out = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=True,
            )
            outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def stored_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    store: KeyValueStore,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The new token of each row attends to what the store holds of that row, itself included.

    Args:
        query: [rows, h, 1, d]; key, value: [rows, h_kv, 1, d], put into the store at
            `store.lengths`; the rows may be fewer than the store's: its first ones

    Returns:
        [rows, 1, h, d], None
    """
    _refuse_others(module, attention_mask, dropout, others)
    rows, heads, _, width = query.shape
    index: Any = module.layer_idx
    keys, values = (kept[:rows] for kept in store.layer(index, key.transpose(1, 2)))
    lengths = store.lengths[:rows]
    everyone = torch.arange(rows, device=query.device)
    keys[everyone, lengths] = key[:, :, 0].to(keys.dtype)
    values[everyone, lengths] = value[:, :, 0]
    stored = torch.arange(store.longest, device=query.device)
    seen = stored <= lengths[:, None]
    if sliding_window is not None:
        seen &= stored > lengths[:, None] - sliding_window
    # Query heads that share a key head stand as that head's queries: no key is copied.
    grouped = query.to(values.dtype).reshape(rows, keys.shape[2], -1, width)
    mask = seen[:, None, None].expand(rows, 1, grouped.shape[2], -1)
    out = F.scaled_dot_product_attention(
        grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, scale=scaling
    )
    return out.reshape(rows, 1, heads, width), None


def _refuse_others(
    module: nn.Module,
    attention_mask: torch.Tensor | None,
    dropout: float,
    others: Mapping[str, object],
) -> None:
    """Raises `ModelError` for what the functions here do not do."""
    for name, neutral in _NEUTRAL.items():
        given = others.get(name, neutral)
        if given is not neutral:
            raise ModelError(
                f"{type(module).__name__}: attention with {name} = {given} is not implemented for "
                'packed rows. Set train.step = "eager"'
            )
    if attention_mask is not None or dropout:
        raise ModelError(
            f"{type(module).__name__}: packed rows take no mask and no attention dropout. Set "
            'train.step = "eager"'
        )


@contextmanager
def attending(model: Any, implementation: str) -> Iterator[None]:
    """Within it the model's attention is `PACKED` or `STORED`: call it with the arguments that
    needs."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = implementation
    try:
        yield
    finally:
        config._attn_implementation = before


def packed_states(
    model: Any,
    computing: AbstractContextManager[Any],
    ids: torch.Tensor,
    positions: torch.Tensor,
    edges: torch.Tensor,
) -> torch.Tensor:
    """Last hidden states [n, d] of packed rows: ids, positions [n]; `edges` [documents + 1] as
    `cu_seq`."""
    longest = int((edges[1:] - edges[:-1]).max())
    with attending(model, PACKED), computing:
        embedded = model.get_input_embeddings()(ids[None])
        out = model.base_model(
            inputs_embeds=embedded,
            position_ids=positions[None],
            use_cache=False,
            cu_seq=edges,
            longest=longest,
        )
    states: torch.Tensor = out.last_hidden_state[0]
    return states


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(STORED, stored_attention)
