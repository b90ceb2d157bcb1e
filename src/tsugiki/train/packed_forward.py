"""Forward and backward over packed rows of all lanes: the work that a CUDA-graph step records, and
its twin on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tsugiki.data.packing import PackedBatch
from tsugiki.fast.fused_linears import ComputeCopy
from tsugiki.model.loading import backbone_and_head
from tsugiki.model.numerics import Numerics
from tsugiki.train.full_weights import FullWeights
from tsugiki.train.lane import Lane
from tsugiki.train.loss import packed_losses


class PackedForward:
    """Forward and backward of one packed micro-batch of all lanes; adds to their gradients, or
    hands them over (`train/full_weights`). Runs on any device, captured or not."""

    def __init__(
        self,
        model: Any,
        lanes: Sequence[Lane],
        numerics: Numerics,
        device: torch.device,
        compute_copy: ComputeCopy | None,
    ):
        self.model = model
        self.backbone, self.head = backbone_and_head(model)
        self.embed: Callable[..., torch.Tensor] = model.get_input_embeddings()
        self.lanes, self.numerics, self.device, self.compute_copy = (
            lanes,
            numerics,
            device,
            compute_copy,
        )
        self.bank, self.shares = lanes[0].moves.bank, (1,) * len(lanes)
        if isinstance(lanes[0].moves, FullWeights):
            self.embed = lanes[0].moves.reads_rows() or self.embed
            return  # gradients are handed over
        for lane in lanes:
            for parameter in lane.parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """The micro-batch's share of each lane's mean loss a target token in this step, [lanes] on
        the device."""
        steps, rows, positions = batch.step.unbind(), batch.rows[None], batch.positions[None]
        self.bank.set_batch(self.shares, rows, positions, steps)
        with self.numerics.autocast(self.device):
            losses = packed_losses(self.backbone, self.embed, self.head, batch) / batch.num_targets
            loss = losses.sum()
        if self.compute_copy is None:
            self.lanes[0].adamw.backward(loss)
        else:
            [gradient] = self.gradients()
            self.compute_copy.accumulate(
                torch.autograd.grad(loss, self.compute_copy.leaves), gradient
            )
        self.bank.clear_batch()
        return losses.detach()

    def gradients(self) -> list[torch.Tensor]:
        """What a backward pass adds to."""
        return self.lanes[0].moves.gradients()
