"""Cross-entropy over the answer, summed; logits are computed only where there is a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tsugiki.data.batch import IGNORED, Batch


def summed_loss(backbone: Callable[..., Any], head: nn.Module, batch: Batch) -> torch.Tensor:
    """Sum over target tokens of -log p(token | everything before it), in fp32.

    Args:
        backbone: input_ids [b, t], attention_mask [b, t] → last hidden states [b, t, d]
        head: [n, d] → logits [n, v]
        batch: `labels` [b, t] name the targets; position t is predicted from position t - 1

    The caller divides by the number of target tokens of the whole optimiser step: a step accumulated from
    micro-batches then equals one big batch, whatever the lengths (transformers#34191 tells what else happens).
    """
    hidden = backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    targets = batch.labels[:, 1:]
    wanted = targets != IGNORED
    logits = head(hidden[:, :-1][wanted])
    return F.cross_entropy(logits.float(), targets[wanted], reduction="sum")
