"""Muon for the matrices of the layers, AdamW for the rest.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". Matrices of
one shape are stacked and orthogonalised together: a small model's step would otherwise be a
thousand tiny products.
"""

from __future__ import annotations

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(stacked: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton–Schulz iteration on [m, rows, columns]: singular values are pushed towards 1."""
    a, b, c = COEFFICIENTS
    x = stacked.bfloat16()
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Momentum, orthogonalised; the step of a matrix is scaled by sqrt(max(1, rows / columns))."""

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ):
        self.base_lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        groups: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for parameter in parameters:
            groups.setdefault(parameter.shape, []).append(parameter)
        self.groups = list(groups.values())
        self.buffers = [
            torch.zeros(len(group), *group[0].shape, device=group[0].device)
            for group in self.groups
        ]

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One update at `share` of the base learning rate."""
        lr = self.base_lr * share
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradient = torch.stack([parameter.grad for parameter in group])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(buffer, self.momentum))
            rows, columns = group[0].shape
            scale = lr * max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(group, 1 - lr * self.weight_decay)
            torch._foreach_add_(group, list(update.unbind(0)), alpha=-scale)

    def state_dict(self) -> dict:
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict) -> None:
        for mine, kept in zip(self.buffers, state["buffers"], strict=True):
            mine.copy_(kept)


class Adam:
    """torch's AdamW with the same `step(share)` face."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, weight_decay: float = 0.0):
        self.base_lr = lr
        self.inner = torch.optim.AdamW(
            parameters,
            lr=lr,
            betas=(0.9, 0.95),
            weight_decay=weight_decay,
            fused=torch.cuda.is_available(),
        )

    def step(self, share: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = self.base_lr * share
        self.inner.step()

    def state_dict(self) -> dict:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.inner.load_state_dict(state)


def build_optimizers(model: torch.nn.Module, kind: str) -> list[Muon | Adam]:
    """`muon`: Muon on the layers' matrices, Adam on embeddings and norms; `adamw`: Adam on all."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in named if p.ndim != 2 or "embed" in n]
    if kind == "muon":
        return [Muon(matrices, lr=0.02), Adam(rest, lr=3e-3)]
    return [Adam(matrices, lr=3e-3, weight_decay=0.1), Adam(rest, lr=3e-3)]
