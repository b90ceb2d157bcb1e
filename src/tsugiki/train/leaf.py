"""A stretch of memory that full fine-tuning moves as one, and how its gradient is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tsugiki.errors import ModelError
from tsugiki.fast.adamw import State
from tsugiki.model.layouts import groups_of


@dataclass
class Leaf:
    """A stretch of memory that is moved as one: a parameter, or those of linear layers over one
    input, one after another. `whole` is all of it as one parameter, for the fast step. `rows`: ids
    and what was read of it there, which has a gradient of its own (`FullWeights.reads_rows`)."""

    names: list[str]
    parts: list[nn.Parameter]
    whole: nn.Parameter
    state: State
    rows: tuple[torch.Tensor, torch.Tensor] | None = None
    unread: int | None = None
    sums: torch.Tensor | None = None
    summed: torch.Tensor | None = None
    squares: list[torch.Tensor] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.whole.numel()

    def slices(self) -> Iterator[tuple[str, nn.Parameter, slice]]:
        """Where each of its parameters lies in it."""
        start = 0
        for name, part in zip(self.names, self.parts, strict=True):
            yield name, part, slice(start, start + part.numel())
            start += part.numel()

    def take_gradient(self) -> torch.Tensor | None:
        """[P], handed over: the parameters have none afterwards."""
        if self.whole.grad is not None:
            gradient, self.whole.grad = self.whole.grad, None
            if self.rows is not None and self.rows[1].grad is not None:
                add_rows(gradient, self.rows[0], self.rows[1].grad, self.unread)
                self.rows[1].grad = None
            return gradient.reshape(-1)
        if all(part.grad is None for part in self.parts):
            return None
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parts]
        for part in self.parts:
            part.grad = None
        return (
            parts[0].reshape(-1) if len(parts) == 1 else torch.cat([p.reshape(-1) for p in parts])
        )


def when_all_have(
    awaited: Sequence[torch.Tensor], leaf: Leaf, to: Callable[[Leaf, torch.Tensor | None], None]
) -> list[Any]:
    """Hooks that give a leaf's gradient away once all of these have theirs."""
    left = len(awaited)

    def hook(_: torch.Tensor) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            to(leaf, leaf.take_gradient())

    return [tensor.register_post_accumulate_grad_hook(hook) for tensor in awaited]


ROWS_AT_ONCE = 2048


@torch.no_grad()
def add_rows(
    gradient: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor, unread: int | None
) -> None:
    """Adds the gradients [1, n, d] of rows that were read to those of their table [v, d], in
    place; `unread` is an id whose row has none. What one id was read as is summed first and then
    written, several times the same: no order of additions decides, as it would an atomic sum's."""
    rows = rows.view(len(ids), -1)
    values = gradient[ids]
    for start in range(0, len(ids), ROWS_AT_ONCE):
        part = ids[start : start + ROWS_AT_ONCE, None]
        same = part == ids
        if unread is not None:
            same &= part != unread
        values[start : start + ROWS_AT_ONCE] += same.to(rows.dtype) @ rows
    gradient[ids] = values


def stretches(model: nn.Module, named: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """Names of the parameters that lie in one stretch, in the model's order: weights (and biases)
    of linear layers over one input, and every other by itself."""
    first_of: dict[str, list[str]] = {}
    for paths in _joinable(model):
        for kind in ("weight", "bias"):
            names = [f"{path}.{kind}" for path in paths]
            if all(name in named for name in names):
                first_of |= dict.fromkeys(names, names)
    stretches = [first_of.get(name, [name]) for name in named]
    return list({stretch[0]: stretch for stretch in stretches}.values())


def _joinable(model: nn.Module) -> Iterator[Sequence[str]]:
    """Paths of linear layers over one input whose weights can lie in one stretch: all of them have
    a bias, or none."""
    try:
        groups = groups_of(model)
    except ModelError:  # a layout that is not known is tuned layer by layer
        return
    for paths in groups:
        modules: list[Any] = [model.get_submodule(path) for path in paths]
        linear = all(type(module) is nn.Linear for module in modules)
        if len(paths) > 1 and linear and len({module.bias is None for module in modules}) == 1:
            yield paths
