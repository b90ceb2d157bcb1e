"""The last layer of a packed step: behind its attention only the tokens that targets are predicted from go on.

Nothing reads the others' states any more, so that their MLP (two thirds of a layer's products) and its way back would be
computed for nothing: of 24 layers that is 3 % of a step, of 8 layers 8 %. The layer is run as written, not compiled: what is
left of it is little, and compiling it once more takes seconds.

    layers 1 … n-1    all tokens, compiled
    layer n           norm, attention: all tokens · residual, norm, MLP: the tokens `sources`
    final norm, head  the tokens `sources`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tsugiki.model.capture import repeated_layers

_LLAMA = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp", "norm")
# Layers that compute h + attention(norm(h)), then h + mlp(norm(h)): their parts, and the norm behind the last one.
_PARTS = {
    "LlamaDecoderLayer": _LLAMA,
    "MistralDecoderLayer": _LLAMA,
    "Qwen2DecoderLayer": _LLAMA,
    "Qwen3DecoderLayer": _LLAMA,
    "GPT2Block": ("ln_1", "attn", "ln_2", "mlp", "ln_f"),
}


class LastLayer:
    """Runs the last layer for the tokens `sources` [m] wherever those are set, as written elsewhere."""

    def __init__(self, model: Any, layer: nn.Module):
        first, attention, second, mlp, norm = _PARTS[type(layer).__name__]
        self.layer = layer
        self.written: Callable[..., torch.Tensor] = layer.forward
        self.first, self.attention, self.second, self.mlp = (getattr(layer, name) for name in (first, attention, second, mlp))
        self.norm: nn.Module = getattr(model.base_model, norm)
        self.sources: torch.Tensor | None = None
        self.states: torch.Tensor | None = None

    def __call__(self, hidden_states: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        """[1, n, d] → [1, n, d], which nothing reads where `sources` are set: the result is in `states` [1, m, d] then."""
        if self.sources is None:
            return self.written(hidden_states, *others, **named)
        wanted = {name: named[name] for name in ("position_embeddings", "cu_seq", "longest") if name in named}
        mixed, _ = self.attention(self.first(hidden_states), attention_mask=None, **wanted)
        picked = (hidden_states + mixed).index_select(1, self.sources)
        self.states = picked + self.mlp(self.second(picked))
        return hidden_states.detach()

    def last_states(self, backbone: Callable[..., Any], sources: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """The last hidden states [m, d] of the tokens `sources`."""
        self.sources = sources
        try:
            backbone(**inputs)
            states, self.states = self.states, None
        finally:
            self.sources = None
        assert states is not None, "the last layer was not called"
        out: torch.Tensor = self.norm(states)[0]
        return out


@contextmanager
def last_layer_cut(model: Any) -> Iterator[LastLayer | None]:
    """Within it the model's last layer can leave tokens out; None where it is of a kind that this does not know."""
    layer = repeated_layers(model)[-1]
    if type(layer).__name__ not in _PARTS:
        yield None
        return
    last = LastLayer(model, layer)
    layer.forward = last  # type: ignore[assignment, method-assign]
    try:
        yield last
    finally:
        del layer.forward
