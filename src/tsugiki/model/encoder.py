"""An encoder from a folder or the Hub, with a fresh head that scores answers; safetensors only.

    <s> text </s></s> text </s>   → state of the first token → dense, tanh → one logit a class
    <s> question </s></s> choice </s>  (each choice)         → dense, tanh → one logit

Both make one row of logits for each row of a task: of one input with a class for each answer, or
of as many inputs as there are answers, with one logit each.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsugiki.errors import ModelError, first_line
from tsugiki.model.folder import (
    ENCODERS,
    check_settings,
    is_encoder,
    is_quantised,
    weight_files,
)
from tsugiki.model.loading import no_dropout, quiet, refuse_other_tensors
from tsugiki.model.look import naming, padding_counts, probe_ids, refuse_not_finite

WITH_POOLER = ("bert", "roberta", "xlm-roberta")  # whose models can be built without


class AnswerHead(nn.Module):
    """State of the first token [b, d] → [b, outputs]: RoBERTa's classification head (Liu et al.
    2019), drawn from a seed."""

    def __init__(self, width: int, outputs: int, spread: float, seed: int):
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        self.dense, self.out = nn.Linear(width, width), nn.Linear(width, outputs)
        with torch.no_grad():
            for layer in (self.dense, self.out):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=drawn) * spread)
                layer.bias.zero_()

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(torch.tanh(self.dense(state)))
        return out


class Encoder(nn.Module):
    """An encoder and, once `start_head` made it, its head."""

    def __init__(self, backbone: Any):
        super().__init__()
        self.backbone, self.config = backbone, backbone.config
        self.head: AnswerHead | None = None

    def start_head(self, outputs: int, seed: int) -> None:
        """A head of so many logits an input, in fp32 beside the weights."""
        spread = float(getattr(self.config, "initializer_range", 0.02))
        made = AnswerHead(int(self.config.hidden_size), outputs, spread, seed)
        self.head = made.to(next(self.backbone.parameters()).device)

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.backbone.get_input_embeddings()
        return embeddings

    def states(
        self, ids: torch.Tensor, mask: torch.Tensor | None = None, types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Last hidden states [b, t, d] of ids [b, t]; `types`: which text of a pair a token is of,
        read by those that were pre-trained with it."""
        mask = torch.ones_like(ids) if mask is None else mask
        has_types = getattr(self.config, "type_vocab_size", 0) > 1 and types is not None
        segments = {"token_type_ids": types} if has_types else {}
        states: torch.Tensor = self.backbone(
            input_ids=ids, attention_mask=mask, **segments
        ).last_hidden_state
        return states

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Logits [rows, most] in fp32 of inputs [b, t]; `index` says which of all logits is each
        answer's, and one beyond them where a row has no such answer: that is -inf. (No size depends
        on what lies on the device: nothing waits for it.)"""
        assert self.head is not None, "start_head makes it"
        logits = self.head(self.states(ids, mask, types)[:, 0]).float().flatten()
        return torch.cat([logits, logits.new_full((1,), -torch.inf)])[index]


def read_encoder(folder: Path, dtype: torch.dtype, *, only_names: bool = False) -> Encoder:
    """The encoder of a folder without its dropout and without what it was pre-trained by; with
    `only_names` the weights are not read: a model on the meta device.

    Raises:
        ModelError: it is no encoder, is kept in fewer bits, or a tensor is missing or of another
            size (named); or whatever transformers raised, in one line.
    """
    from transformers import AutoModel

    given = check_settings(folder)
    if not is_encoder(given):
        raise ModelError(
            f"model {folder}: is no encoder ({given.get('model_type')}); read as such are "
            f'{", ".join(ENCODERS)}. A causal language model is tuned by kind = "lora" or '
            '"full", as one of models'
        )
    if is_quantised(folder):
        raise ModelError(f"model {folder}: an encoder in 4 bits cannot be tuned. Give its original")
    weight_files(folder, given)
    bare = {"add_pooling_layer": False} if given["model_type"] in WITH_POOLER else {}
    with quiet():
        try:
            loaded: Any = AutoModel.from_pretrained(
                folder,
                trust_remote_code=False,
                dtype=dtype,
                use_safetensors=True,
                attn_implementation="eager" if given["model_type"] == "deberta-v2" else "sdpa",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                device_map="meta" if only_names else None,
                **bare,
            )
        except Exception as broken:  # libraries raise what they like
            raise ModelError(
                f"model {folder}: cannot be loaded as an encoder: {first_line(broken)}"
            ) from broken
    model, report = loaded
    # What is left over is the head that it was pre-trained by.
    refuse_other_tensors(folder, {**report, "unexpected_keys": ()})
    no_dropout(model)
    return Encoder(model)


@torch.no_grad()
def look_at_encoder(
    model: Encoder, tokenizer: Any, name: str, computing: AbstractContextManager[Any]
) -> None:
    """Raises `ModelError` where an encoder computes no numbers, or other ones beside padding; see
    `model/look`."""
    with naming(name), computing:
        ids = probe_ids(model, tokenizer)
        refuse_not_finite(model.states(ids))
        padding_counts(model.states, ids)
