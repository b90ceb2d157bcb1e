"""A `Lane` is one job: parameters to move, where its rows come from, and the optimiser's course.

LoRA is one lane over a frozen base; full fine-tuning is one lane that holds the base's own parameters. The engine
sees no difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tsugiki.config import TrainConfig
from tsugiki.data.batch import Order
from tsugiki.errors import RunError

MOMENTS = ("exp_avg", "exp_avg_sq")


class DidNotLearn(RunError):
    """The run diverged, or a trained matrix never moved: its result would be worth nothing."""


def rate_share(config: TrainConfig, step: int, steps: int) -> float:
    """Share of the learning rate at `step` (from 0) of `steps`: linear warm-up, then the schedule's course.

    constant: 1 · linear: down to 0 · cosine: half a period down to 0 · wsd: 1, then linear to 0 over the last `decay`.
    """
    warm = round(config.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    rest, place = max(1, steps - warm), step - warm
    if config.schedule == "linear":
        return (rest - place) / rest
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * place / rest))
    if config.schedule == "wsd":
        tail = max(1, round(config.decay_share * steps))
        return min(1.0, (steps - step) / tail)
    return 1.0


class Lane:
    """One job's parameters, optimiser, schedule, row order and counters.

    `flat` is the one vector that all parameters are views of, if they are: gradients and moments are then vectors too,
    and clipping and the optimiser take one kernel each instead of one for each matrix.

    `watched` names the parameters that must be non-zero once training has begun (LoRA's B), `must_learn` those that
    must have received a gradient; `clock` is told (step, row numbers) before each forward pass, for dropout.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, nn.Parameter],
        config: TrainConfig,
        num_rows: int,
        *,
        flat: torch.Tensor | None = None,
        watched: tuple[str, ...] = (),
        clock: Any = None,
    ):
        self.name, self.config, self.clock, self.flat = name, config, clock, flat
        self.parameters = dict(parameters)
        self.watched = watched
        self.must_learn = watched or tuple(name for name, p in self.parameters.items() if p.ndim == 2)
        self.order = Order(num_rows=num_rows, batch=config.batch, seed=config.seed)
        self.steps = max(1, math.ceil(config.epochs * self.order.steps_per_epoch))
        self.step = 0
        self.moving_steps = 0
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.moved = list(self.parameters.values()) if flat is None else [nn.Parameter(flat)]
        if flat is not None:
            self.moved[0].grad = torch.zeros_like(flat)
            self._point_at_gradient()
        self.optimizer = _adamw(self.moved, config)

    def _point_at_gradient(self) -> None:
        """Lets autograd add into the flat gradient."""
        assert self.moved[0].grad is not None
        for name, part in self.views(self.moved[0].grad).items():
            self.parameters[name].grad = part

    def views(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """The stretches of a vector laid out like `flat`, by parameter name."""
        return {name: vector[p.storage_offset() : p.storage_offset() + p.numel()].view(p.shape) for name, p in self.parameters.items()}

    def moments(self, key: str) -> dict[str, torch.Tensor]:
        """AdamW's `exp_avg` or `exp_avg_sq` by parameter name."""
        if self.flat is not None:
            return self.views(self.optimizer.state[self.moved[0]][key])
        return {name: self.optimizer.state[parameter][key] for name, parameter in self.parameters.items()}

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    @property
    def num_trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def learning_rate(self) -> float:
        return self.config.learning_rate * rate_share(self.config, self.step, self.steps)

    def rows(self) -> list[int]:
        """Row numbers of the coming step."""
        return self.order.rows_of(self.step)

    def update(self) -> torch.Tensor:
        """Clips, moves the parameters, clears the gradients. Returns the gradient norm before clipping."""
        self.set_rate()
        norm = self.move()
        self.optimizer.zero_grad(set_to_none=self.flat is None)
        self.count()
        return norm

    def set_rate(self) -> None:
        """Tells the optimiser the learning rate of this step."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(self.learning_rate)
            else:
                group["lr"] = self.learning_rate

    def move(self) -> torch.Tensor:
        """Clips and moves: the part of `update` that runs on the device alone, so that it can be recorded."""
        norm = nn.utils.clip_grad_norm_(self.moved, self.config.clip)
        self.optimizer.step()
        return norm

    def count(self) -> None:
        """The step was made."""
        self.moving_steps += self.learning_rate > 0
        self.step += 1

    def check_health(self) -> None:
        """Raises `DidNotLearn` naming what does not learn: a B that is still zero, or a matrix no gradient ever reached."""
        dead = [name for name in self.watched if not bool(self.parameters[name].detach().any())]
        moved = self.moments("exp_avg_sq")
        dead += [name for name in self.must_learn if name not in dead and not bool(moved[name].any())]
        if dead:
            raise DidNotLearn(
                f"{self.name}: after {self.moving_steps} steps {len(dead)} of {len(self.must_learn)} trained matrices have not moved, "
                f"the first is {dead[0]}. The run was stopped: its result would be the base model's"
            )

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and optimiser moments by name; with `step` and `moving_steps` all that a resumed run needs."""
        tensors = {f"param/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for key in MOMENTS:
            tensors |= {f"adam/{key}/{name}": value for name, value in self.moments(key).items()}
        tensors["adam/step"] = self.optimizer.state[self.moved[0]]["step"]
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int, moving_steps: int) -> None:
        """Puts back what `state_tensors` gave. Raises `RunError` when a tensor is missing or of another shape."""
        for name, parameter in self.parameters.items():
            kept = tensors.get(f"param/{name}")
            if kept is None or kept.shape != parameter.shape:
                raise RunError(f"checkpoint of {self.name}: {name} is missing or of another shape: it belongs to another run")
            parameter.copy_(kept)
        if step and "adam/step" not in tensors:
            raise RunError(
                f"checkpoint of {self.name}: the optimiser's state is missing: it was written by another version. Delete its folder to train from the start"
            )
        if step:
            for key in MOMENTS:
                for name, moment in self.moments(key).items():
                    moment.copy_(tensors[f"adam/{key}/{name}"])
            for parameter in self.moved:
                self.optimizer.state[parameter]["step"].copy_(tensors["adam/step"])
        self.step, self.moving_steps = step, moving_steps


def _adamw(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """PyTorch's fused AdamW with its state made beforehand; on CUDA its step count and rate live on the device, so that a recorded step reads them."""
    device = parameters[0].device
    cuda = device.type == "cuda"
    rate: Any = torch.tensor(config.learning_rate, device=device) if cuda else config.learning_rate
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=config.weight_decay, fused=device.type in ("cpu", "cuda"), capturable=cuda)
    for parameter in parameters:
        optimizer.state[parameter] = {"step": torch.zeros((), device=device), **{key: torch.zeros_like(parameter.detach()) for key in MOMENTS}}
    return optimizer
