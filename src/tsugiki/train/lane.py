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
        watched: tuple[str, ...] = (),
        clock: Any = None,
    ):
        self.name, self.config, self.clock = name, config, clock
        self.parameters = dict(parameters)
        self.watched = watched
        self.must_learn = watched or tuple(name for name, p in self.parameters.items() if p.ndim == 2)
        self.order = Order(num_rows=num_rows, batch=config.batch, seed=config.seed)
        self.steps = max(1, math.ceil(config.epochs * self.order.steps_per_epoch))
        self.step = 0
        self.moving_steps = 0
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        kind = next(iter(self.parameters.values())).device.type
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()), lr=config.learning_rate, weight_decay=config.weight_decay, fused=kind in ("cpu", "cuda")
        )

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
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.clip)
        rate = self.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.moving_steps += rate > 0
        return norm

    def check_health(self) -> None:
        """Raises `DidNotLearn` naming what does not learn: a B that is still zero, or a matrix no gradient ever reached."""
        dead = [name for name in self.watched if not bool(self.parameters[name].detach().any())]
        for name in self.must_learn:
            state = self.optimizer.state.get(self.parameters[name])
            if name not in dead and (not state or not bool(state["exp_avg_sq"].any())):
                dead.append(name)
        if dead:
            raise DidNotLearn(
                f"{self.name}: after {self.moving_steps} steps {len(dead)} of {len(self.must_learn)} trained matrices have not moved, "
                f"the first is {dead[0]}. The run was stopped: its result would be the base model's"
            )

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and optimiser moments by name; with `step` and `moving_steps` all that a resumed run needs."""
        tensors = {f"param/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam/{key}/{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, torch.Tensor], step: int, moving_steps: int) -> None:
        """Puts back what `state_tensors` gave. Raises `RunError` when a tensor is missing or of another shape."""
        for name, parameter in self.parameters.items():
            kept = tensors.get(f"param/{name}")
            if kept is None or kept.shape != parameter.shape:
                raise RunError(f"checkpoint of {self.name}: {name} is missing or of another shape: it belongs to another run")
            parameter.copy_(kept)
            for key in ("step", "exp_avg", "exp_avg_sq") if step else ():
                self.optimizer.state[parameter][key] = tensors[f"adam/{key}/{name}"].to(parameter.device).clone()
        self.step, self.moving_steps = step, moving_steps
