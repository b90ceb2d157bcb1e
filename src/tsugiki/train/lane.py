"""A `Lane` is one job: parameters to move, where its rows come from, and the optimiser's schedule.

LoRA is one lane over a frozen base; full fine-tuning is one lane that holds the base's own
parameters. The engine sees no difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tsugiki.config.run import TrainConfig
from tsugiki.data.batch import Order, num_steps
from tsugiki.errors import RunError
from tsugiki.model.adapter_bank import NO_ADAPTERS, AdapterBank, NoAdapters
from tsugiki.model.lora import LaneAdapter
from tsugiki.train.full_weights import FullWeights
from tsugiki.train.tensor_file import TensorFile, put_tensor
from tsugiki.words import Message

MOMENTS = ("exp_avg", "exp_avg_sq")
SAMPLE = 65_536  # numbers that are looked at for updates that rounding loses
Tensors = TensorFile | Mapping[str, torch.Tensor]


class DidNotLearn(RunError):
    """The run diverged, or a trained matrix never moved: its result would be worth nothing."""


class DoesNotFit(RunError):
    """The device's memory does not hold these lanes together; fewer may fit."""


def rate_share(config: TrainConfig, step: int, steps: int) -> float:
    """Share of the learning rate at `step` (from 0) of `steps`: linear warm-up, then the
    schedule.

    constant: 1 · linear: down to 0 · cosine: half a period down to 0 · wsd: 1, then linear to 0
    over the last `decay`.
    """
    warm = round(config.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    rest, done_after_warmup = max(1, steps - warm), step - warm
    if config.schedule == "linear":
        return (rest - done_after_warmup) / rest
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done_after_warmup / rest))
    if config.schedule == "wsd":
        tail = max(1, round(config.decay_share * steps))
        return min(1.0, (steps - step) / tail)
    return 1.0


def shared_steps(
    first: TrainConfig, first_steps: int, second: TrainConfig, second_steps: int
) -> int:
    """How many first steps two runs have in common that differ in their epochs alone: as long as
    their rates are the same.

    All steps of the shorter under a constant rate without warm-up; those before its decay under
    wsd; none under linear and cosine.
    """
    shorter = min(first_steps, second_steps)
    same = (
        rate_share(first, step, first_steps) == rate_share(second, step, second_steps)
        for step in range(shorter)
    )
    return next((step for step, equal in enumerate(same) if not equal), shorter)


class OwnParameters:
    """Parameters that are moved each by itself, in fp32: the base's own, in full fine-tuning that
    computes in fp32."""

    bank: AdapterBank | NoAdapters = NO_ADAPTERS
    number = 0
    keeps_gradients = False  # between steps: they are as large as the model

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.parameters = dict(parameters)
        self.moved = list(self.parameters.values())

    def parts(self, of: Callable[[nn.Parameter], torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `of` tells of each moved tensor, by parameter name."""
        return {name: of(parameter) for name, parameter in self.parameters.items()}

    def gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self.moved if parameter.grad is not None]

    def free_gradients(self) -> None:
        for parameter in self.moved:
            parameter.grad = None


class OneVector:
    """A lane's adapters, moved as one vector: its row of the bank. Gradients and moments are
    vectors too, and clipping and the optimiser take one kernel each instead of one for each
    matrix."""

    keeps_gradients = True

    def __init__(self, adapter: LaneAdapter):
        self.bank, self.number, self.config = adapter.bank, adapter.lane, adapter.config
        self.num_real = adapter.num_real or sum(p.numel() for p in adapter.parameters.values())
        self.parameters = dict(adapter.parameters)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.moved = [nn.Parameter(adapter.bank.flat[adapter.lane])]
        self.moved[0].grad = adapter.bank.gradient[adapter.lane]
        for name, part in self.views(self.moved[0].grad).items():
            self.parameters[name].grad = part  # autograd adds into the vector

    def views(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parts of a vector laid out like the lane's row of the bank, by parameter name."""
        start = self.moved[0].storage_offset() - vector.storage_offset()
        return {
            name: vector.as_strided(p.shape, p.stride(), p.storage_offset() - start)
            for name, p in self.parameters.items()
        }

    def parts(self, of: Callable[[nn.Parameter], torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `of` tells of the vector, cut into its parts, by parameter name."""
        return self.views(of(self.moved[0]))

    def rates(self) -> torch.Tensor | None:
        """Of every number of the vector, its rate as a multiple of the lane's: B's is its own
        under LoRA+. None where all are 1."""
        if self.config.loraplus == 1:
            return None
        rates = torch.ones_like(self.moved[0].detach())
        for name, part in self.views(rates).items():
            if name.endswith(".B"):
                part.fill_(self.config.loraplus)
        return rates

    def gradients(self) -> list[torch.Tensor]:
        """That of all lanes of the bank."""
        return [self.bank.gradient]

    def free_gradients(self) -> None:
        """They belong to the bank, and stay."""


class TorchAdamW:
    """PyTorch's fused AdamW over what a lane moves. A vector whose parts have rates of their own
    (LoRA+) is moved as one, and each part then as much further as its rate is larger: what one
    parameter group for each rate does."""

    moves_in_backward = looks_first = False

    def __init__(self, moves: OwnParameters | OneVector, config: TrainConfig):
        self.moves, self.config = moves, config
        self.optimizer = _adamw(moves.moved or [nn.Parameter(torch.zeros(0))], config)
        self.rates = moves.rates() if isinstance(moves, OneVector) else None
        self.before = None if self.rates is None else torch.empty_like(self.rates)

    def set_rate(self, rate: float, *, live: bool = True) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def backward(self, loss: torch.Tensor) -> None:
        """The backward pass of a loss: gradients are added to those that are there."""
        loss.backward()

    def move(self) -> torch.Tensor:
        """Clips and moves. Returns the norm of the gradients before clipping."""
        norm = nn.utils.clip_grad_norm_(self.moves.moved, self.config.clip)
        if self.rates is None or self.before is None:
            self.optimizer.step()
            return norm
        [moved] = (parameter.detach() for parameter in self.moves.moved)
        self.before.copy_(moved)
        self.optimizer.step()
        moved.sub_(self.before).mul_(self.rates).add_(self.before)
        return norm

    def clear(self) -> None:
        """Forgets the gradients of the step."""
        self.optimizer.zero_grad(set_to_none=not self.moves.keeps_gradients)

    def count(self) -> None:
        """Its step count is in its state."""

    def moments(self, key: str) -> dict[str, torch.Tensor]:
        return self.moves.parts(lambda moved: self.optimizer.state[moved][key])

    def own_tensors(self) -> dict[str, torch.Tensor]:
        given = self.moves.parameters.items()
        return {f"param/{name}": parameter.detach() for name, parameter in given}

    def state_tensors(self) -> dict[str, torch.Tensor]:
        tensors = self.own_tensors()
        for key in MOMENTS:
            tensors |= {f"adam/{key}/{name}": value for name, value in self.moments(key).items()}
        tensors["adam/step"] = self.optimizer.state[self.moves.moved[0]]["step"]
        return tensors

    def put(self, tensors: Tensors, names: Iterable[str]) -> None:
        """Puts back those of `state_tensors` that are named."""
        targets = self.state_tensors()
        for name in names:
            put_tensor(tensors, name, targets[name])
        if "adam/step" in names:
            for parameter in self.moves.moved[1:]:
                put_tensor(tensors, "adam/step", self.optimizer.state[parameter]["step"])


Moves = OwnParameters | OneVector | FullWeights


class Lane:
    """One job's parameters, optimiser, schedule, row order and counters.

    `moves` says what the optimiser moves: by default the parameters, each by itself.

    `watched` names the parameters that must be non-zero once training has begun (LoRA's B),
    `must_learn` those that must have received a gradient; `callback_steps` are the steps after
    which the engine calls back.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, nn.Parameter],
        config: TrainConfig,
        num_rows: int,
        *,
        moves: Moves | None = None,
        watched: tuple[str, ...] = (),
    ):
        self.name, self.config = name, config
        self.moves = moves or OwnParameters(parameters)
        self.parameters = dict(parameters)
        self.watched = watched
        self.must_learn = watched or tuple(
            name for name, p in self.parameters.items() if p.ndim == 2
        )
        self.order = Order(num_rows=num_rows, batch=config.batch, seed=config.seed)
        self.steps = num_steps(num_rows, config.batch, config.epochs)
        self.step = 0
        self.steps_with_lr = 0
        self.callback_steps: frozenset[int] = frozenset()
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.moved = self.moves.moved
        self.adamw = (
            self.moves if isinstance(self.moves, FullWeights) else TorchAdamW(self.moves, config)
        )
        self.move = self.adamw.move  # on the device alone, so that it can be captured
        self._before: torch.Tensor | None = None
        self._unchanged: torch.Tensor | None = None

    def moments(self, key: str) -> dict[str, torch.Tensor]:
        """AdamW's `exp_avg` or `exp_avg_sq` by parameter name."""
        return self.adamw.moments(key)

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
        """Clips, moves the parameters, clears the gradients. Returns the gradient norm before
        clipping. The rate was set before the backward pass, which may have moved them already."""
        norm = self.move()
        self.adamw.clear()
        self.count()
        return norm

    def set_rate(self, *, idle: bool = False, live: bool = True) -> None:
        """Tells the optimiser the learning rate of this step; an idle lane's is 0. A step that is
        not `live` is only looked at."""
        if self._looks_at_rounding and not idle:
            self._before = _sample(self.moved[0].detach()).clone()
        self.adamw.set_rate(0.0 if idle else self.learning_rate, live=live)

    def count(self) -> None:
        """The step was made."""
        if self._before is not None:
            self._unchanged, self._before = self._share_unchanged(self._before), None
        self.steps_with_lr += self.learning_rate > 0
        self.step += 1
        self.adamw.count()

    @property
    def _looks_at_rounding(self) -> bool:
        """Adapters, at the middle of all steps: where the rate is neither warming up nor near its
        end."""
        return self.step == self.steps // 2 and isinstance(self.moves, OneVector)

    @torch.no_grad()
    def _share_unchanged(self, before: torch.Tensor) -> torch.Tensor:
        """Of a sample of the numbers that have had a gradient, how many the step left as they
        were."""
        assert isinstance(self.adamw, TorchAdamW), "moves adapters"
        [moved] = self.moved
        due = _sample(self.adamw.optimizer.state[moved]["exp_avg"]) != 0
        same = (_sample(moved.detach()) == before) & due
        return same.sum() / due.sum().clamp(min=1)

    def lost_to_rounding(self) -> float | None:
        """Share of the trained numbers that a step in the middle did not change, though they had a
        gradient: their updates are smaller than what they are stored in can hold. None before that,
        and of a run that went on after it."""
        return None if self._unchanged is None else float(self._unchanged)

    def check_health(self) -> None:
        """Raises `DidNotLearn` naming what does not learn: a B that is still zero, or a matrix no
        gradient ever reached."""
        unmoved = [name for name in self.watched if not bool(self.parameters[name].detach().any())]
        moved = self.moments("exp_avg_sq")
        unmoved += [
            name for name in self.must_learn if name not in unmoved and not bool(moved[name].any())
        ]
        if unmoved:
            counts = {"unmoved": len(unmoved), "matrices": len(self.must_learn)}
            at = {"lane": self.name, "steps": self.steps_with_lr, "first": unmoved[0]}
            raise DidNotLearn(Message("error.unmoved", **counts, **at))

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and optimiser moments by name; with `step` and `steps_with_lr` all that a
        resumed run needs."""
        return self.adamw.state_tensors()

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """The parameters alone, by the names that `load_state` reads."""
        return self.adamw.own_tensors()

    @torch.no_grad()
    def load_state(self, tensors: Tensors, step: int, steps_with_lr: int) -> None:
        """Puts back what `state_tensors` gave. Raises `RunError` when a tensor is missing or of
        another shape."""
        own = self.own_tensors()
        for name, parameter in own.items():
            if _shape(tensors, name) != tuple(parameter.shape):
                raise RunError(
                    f"checkpoint of {self.name}: {name.partition('/')[2]} is missing or of "
                    "another shape: it belongs to another run"
                )
        if step and "adam/step" not in tensors:
            raise RunError(
                f"checkpoint of {self.name}: the optimiser's state is missing: it was written by "
                "another version. Delete its folder to train from the start"
            )
        self.adamw.put(tensors, [*(self.state_tensors() if step else own)])
        self.step, self.steps_with_lr = step, steps_with_lr
        if isinstance(self.adamw, FullWeights):
            self.adamw.step = step


def _sample(vector: torch.Tensor) -> torch.Tensor:
    """Every so many-th number of a vector, so that looking at it takes no memory."""
    return vector[:: max(1, len(vector) // SAMPLE)]


def _shape(tensors: Tensors, name: str) -> tuple[int, ...] | None:
    if isinstance(tensors, TensorFile):
        return tensors.shape(name)
    return tuple(tensors[name].shape) if name in tensors else None


def _adamw(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """PyTorch's fused AdamW with its state made beforehand; on CUDA its step count and rate live
    on the device, so that a CUDA-graph step reads them."""
    device = parameters[0].device
    cuda = device.type == "cuda"
    rate: Any = torch.tensor(config.learning_rate, device=device) if cuda else config.learning_rate
    optimizer = torch.optim.AdamW(
        parameters,
        lr=rate,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
        capturable=cuda,
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=device),
            **{key: torch.zeros_like(parameter.detach()) for key in MOMENTS},
        }
    return optimizer
