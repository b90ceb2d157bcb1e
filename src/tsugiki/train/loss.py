"""Cross-entropy over the answer, summed; logits are computed only where there is a target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tsugiki.data.batch import IGNORED, Batch
from tsugiki.data.packing import PackedBatch


def summed_losses(
    backbone: Callable[..., Any], head: nn.Module, batch: Batch, rows: Sequence[int]
) -> torch.Tensor:
    """Sum over target tokens of -log p(token | everything before it), in fp32, for each stretch of
    rows: [k].

    Args:
        backbone: input_ids [b, t], attention_mask [b, t] → last hidden states [b, t, d]
        head: [n, d] → logits [n, v]
        batch: `labels` [b, t] name the targets; position t is predicted from position t - 1
        rows: how many rows each of the k lanes has, one lane after another

    The caller divides by the number of target tokens of a lane's whole optimiser step: a step
    accumulated from micro-batches then equals one big batch, whatever the lengths
    (transformers#34191 tells what else happens).
    """
    hidden = backbone(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask
    ).last_hidden_state
    targets = batch.labels[:, 1:]
    wanted = targets != IGNORED
    losses = F.cross_entropy(
        head(hidden[:, :-1][wanted]).float(), targets[wanted], reduction="none"
    )
    # Counted where the labels lie; on a GPU the indexing above has waited for it anyway.
    counts = [int(part.sum()) for part in wanted.split(list(rows))]
    return torch.stack([part.sum() for part in losses.split(counts)])


def packed_losses(
    backbone: Callable[..., Any],
    embed: Callable[[torch.Tensor], torch.Tensor],
    head: nn.Module,
    batch: PackedBatch,
) -> torch.Tensor:
    """The same sums for packed rows; no size depends on the data, so that it can be captured.

    Args:
        backbone: inputs_embeds [1, n, d], position_ids [1, n], cu_seq, longest → last hidden
            states [1, n, d]
        embed: ids [1, n] → [1, n, d]. Called here, because transformers looks for padding in ids,
            which waits for the device
        head: [m, d] → logits [m, v]
    """
    embedded = embed(batch.input_ids[None])
    if not embedded.requires_grad:
        # a frozen base: the lowest layer then runs the same compiled code as all others
        embedded.requires_grad_()
    out = backbone(
        inputs_embeds=embedded,
        position_ids=batch.positions[None],
        cu_seq=batch.cu_seq.to(torch.int32),
        longest=batch.shape.longest,
    )
    logits = head(out.last_hidden_state[0].index_select(0, batch.sources))
    losses = F.cross_entropy(logits.float(), batch.targets, reduction="none", ignore_index=IGNORED)
    return losses.view(batch.shape.lanes, -1).sum(1)
