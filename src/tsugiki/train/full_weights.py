"""The base's own weights, moved by our AdamW: full fine-tuning wherever matmuls are in bf16, or
moments are kept in fewer bits.

The model's parameters become the bf16 halves (`fast/adamw`): matmuls read them as they are, and
gradients come in bf16 and are read by the update where they lie. Linear layers over one input
share one stretch of memory, so that the fast step reads them as one matmul.

A backward pass hands its gradients over in one of four ways:

    whole       all are kept, then their norm, then the updates
    by layer    kept nowhere: a first backward pass sums their squares, a second one updates
    last step   kept nowhere: clipped by the norm of the step before
    summed      in fp32, over several backward passes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tsugiki.config.run import TrainConfig
from tsugiki.errors import RunError
from tsugiki.fast.adamw import TILE, StepNumbers, add_moments, make_state, squares, update
from tsugiki.model.adapter_bank import NO_ADAPTERS, AdapterBank, NoAdapters
from tsugiki.train.leaf import Leaf, stretches, when_all_have
from tsugiki.train.tensor_file import TensorFile, put_tensor

MOMENTS = {"exp_avg": "first", "exp_avg_sq": "second"}


def is_needed(config: TrainConfig, *, halves: bool) -> bool:
    """Whether weights are kept otherwise than PyTorch's AdamW moves them: in fp32, with fp32
    moments and all gradients. Raises `RunError` for 24 bits of a weight that is not in halves."""
    if config.weights != "fp32" and not halves:
        raise RunError(
            f'train.weights = "{config.weights}": a run that computes in fp32 reads whole weights. '
            "Remove it"
        )
    return halves or config.moments != "fp32" or config.clip_from != "exact"


class FullWeights:
    """The weights of a model and AdamW's state of them.

    `by_layer` and `summed` say how a backward pass hands its gradients over; the step that is made
    of them sets both before the first.
    """

    bank: AdapterBank | NoAdapters = NO_ADAPTERS
    number = 0
    keeps_gradients = False

    def __init__(self, model: nn.Module, config: TrainConfig, *, halves: bool):
        named = dict(model.named_parameters())
        self.model, self.config, self.halves = model, config, halves
        self.device = next(iter(named.values())).device
        self.parameters = named
        self.numbers = StepNumbers(self.device, config.seed)
        self.last_norm = torch.zeros((), device=self.device)
        self.norm = torch.zeros((), device=self.device)
        self.step = 0
        self.by_layer, self.summed = config.clip_from == "last_step", False
        self.leaves = [
            self._leaf(number, names) for number, names in enumerate(stretches(model, named))
        ]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # of the fp32 weights, before anything lies among them
        for leaf in self.leaves:
            add_moments(leaf.state, config.moments)

    def _leaf(self, number: int, names: list[str]) -> Leaf:
        config, parts = self.config, [self.parameters[name] for name in names]
        flat = torch.cat([part.detach().reshape(-1) for part in parts])
        state = make_state(flat, number, halves=self.halves, weights=config.weights)
        shape = parts[0].shape
        rows = sum(len(part) for part in parts) if shape else 1
        whole = parts[0]
        start = 0
        for part in parts:
            part.data = state.weight[start : start + part.numel()].view(part.shape)
            part.requires_grad_(True)
            start += part.numel()
        if len(parts) > 1:
            whole = nn.Parameter(state.weight.view(rows, *shape[1:]))
        leaf = Leaf(names=names, parts=parts, whole=whole, state=state)
        if config.clip_from == "last_step":
            leaf.sums = flat.new_zeros(-(-len(flat) // TILE))
        return leaf

    def reads_rows(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """ids [1, n] → their rows of an embedding that is the output layer, too: [1, n, d]. Its
        gradient is added to those rows alone; autograd would make two more of all. None where the
        model has no such one."""
        embed: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        tied = [leaf for leaf in self.leaves if leaf.whole is embed.weight is head.weight]
        if type(embed) is not nn.Embedding or embed.max_norm is not None or not tied:
            return None
        [leaf] = tied
        leaf.unread = embed.padding_idx

        def read(ids: torch.Tensor) -> torch.Tensor:
            rows = embed(ids).detach().requires_grad_()
            leaf.rows = (ids.view(-1), rows)
            return rows

        return read

    # ---- what a lane asks ----------------------------------------------------------------------

    @property
    def moved(self) -> list[nn.Parameter]:
        return [leaf.whole for leaf in self.leaves]

    def joined(self) -> dict[str, nn.Parameter]:
        """Parameters that stand for several, by the name of the first."""
        return {leaf.names[0]: leaf.whole for leaf in self.leaves if len(leaf.names) > 1}

    def set_rate(self, rate: float, *, live: bool = True) -> None:
        """Tells the coming updates the learning rate."""
        self.numbers.set(self.step + 1, rate, self.config.weight_decay, live=live)

    def count(self) -> None:
        """The step was made."""
        self.step += 1

    def moments(self, key: str) -> dict[str, torch.Tensor]:
        """As they are kept, by parameter name; of 8-bit ones the codes."""
        return self._by_name(lambda leaf: getattr(leaf.state, MOMENTS[key]))

    def gradients(self) -> list[torch.Tensor]:
        """What backward passes add to: only where they are summed."""
        return [leaf.summed for leaf in self.leaves if leaf.summed is not None]

    def free_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.take_gradient()
            leaf.summed = leaf.rows = None
            leaf.squares.clear()

    def _by_name(self, of: Callable[[Leaf], torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: of(leaf)[where].view(part.shape)
            for leaf in self.leaves
            for name, part, where in leaf.slices()
        }

    # ---- a step --------------------------------------------------------------------------------

    @property
    def looks_first(self) -> bool:
        """Whether the norm that the first step is clipped by must be taken by a look at it."""
        return self.config.clip_from == "last_step" and self.step == 0

    @property
    def moves_in_backward(self) -> bool:
        """Whether `backward` has made the updates when it returns."""
        return self.by_layer and not self.summed

    def sum_gradients(self) -> None:
        """Steps of several backward passes follow: their gradients are summed in fp32."""
        self.summed = True
        for leaf in self.leaves:
            if leaf.summed is None:
                leaf.summed = torch.zeros(leaf.size, device=self.device)

    def backward(self, loss: torch.Tensor) -> None:
        """The backward pass of a loss; where nothing is kept, with the updates."""
        if self.summed:
            loss.backward()
            for leaf in self.leaves:
                if (gradient := leaf.take_gradient()) is not None:
                    assert leaf.summed is not None, "made before"
                    leaf.summed += gradient
        elif not self.by_layer:
            loss.backward()
        elif self.config.clip_from == "last_step":
            self.numbers.set_clip(self.last_norm, self.config.clip)
            self._hand_over(loss, self._update_and_sum, again=False)
            sums = [leaf.sums for leaf in self.leaves if leaf.sums is not None]
            self.norm = torch.cat(sums).sum().sqrt()
            self.last_norm.copy_(self.norm)
        else:
            self._hand_over(loss, self._sum, again=True)
            self._clip()
            self._hand_over(loss, self._update, again=False)

    def move(self) -> torch.Tensor:
        """Clips and moves, unless `backward` did. Returns the norm of the gradients before
        clipping."""
        if self.moves_in_backward:
            return self.norm
        gradients: list[torch.Tensor | None] = []
        for leaf in self.leaves:
            gradients.append(leaf.summed if self.summed else leaf.take_gradient())
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            self._sum(leaf, gradient)
        self._clip()
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            self._update(leaf, gradient)
        return self.norm

    def clear(self) -> None:
        """Forgets the gradients of the step."""
        for gradient in self.gradients():
            gradient.zero_()

    def _clip(self) -> None:
        sums = torch.cat([part for leaf in self.leaves for part in leaf.squares])
        for leaf in self.leaves:
            leaf.squares.clear()
        self.norm = self.numbers.clip(sums, self.config.clip)
        self.last_norm.copy_(self.norm)

    def _sum(self, leaf: Leaf, gradient: torch.Tensor | None) -> None:
        if gradient is not None:
            leaf.squares.append(squares(gradient))

    def _update(self, leaf: Leaf, gradient: torch.Tensor | None) -> None:
        if gradient is not None:
            update(leaf.state, gradient, self.numbers)

    def _update_and_sum(self, leaf: Leaf, gradient: torch.Tensor | None) -> None:
        if gradient is not None:
            update(leaf.state, gradient, self.numbers, leaf.sums)

    def _hand_over(
        self, loss: torch.Tensor, to: Callable[[Leaf, torch.Tensor | None], None], *, again: bool
    ) -> None:
        """A backward pass that gives each leaf's gradient away as soon as it is there; `again`:
        another one follows."""
        handles = []
        for leaf in self.leaves:
            # Joined layers have a gradient as one in the fast step, each its own in the eager one.
            rows = [] if leaf.rows is None else [leaf.rows[1]]
            groups: list[Sequence[torch.Tensor]] = [[*leaf.parts, *rows]]
            if len(leaf.parts) > 1:
                groups.append([leaf.whole])
            for awaited in groups:
                handles += when_all_have(awaited, leaf, to)
        try:
            torch.autograd.backward(loss, retain_graph=again)
        finally:
            for handle in handles:
                handle.remove()
        for leaf in self.leaves:  # those of which a part has none
            to(leaf, leaf.take_gradient())

    # ---- what is kept --------------------------------------------------------------------------

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """The weights, by the names that `load_state` and `put_back` read."""
        tensors = {f"param/{name}": part.detach() for name, part in self.parameters.items()}
        if self.halves:
            rests = self._by_name(lambda leaf: _there(leaf.state.rest))
            tensors |= {f"rest/{name}": rest for name, rest in rests.items()}
        return tensors

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Weights, moments and counters."""
        tensors = self.own_tensors()
        for key in MOMENTS:
            tensors |= {f"adam/{key}/{name}": value for name, value in self.moments(key).items()}
        for leaf in self.leaves:
            if leaf.state.exponents is not None:
                tensors[f"adam/exponents/{leaf.names[0]}"] = leaf.state.exponents
        tensors["adam/norm"] = self.last_norm
        tensors["adam/step"] = torch.tensor(float(self.step))
        return tensors

    @torch.no_grad()
    def put(self, tensors: TensorFile | Mapping[str, torch.Tensor], names: Iterable[str]) -> None:
        """Puts back those of `state_tensors` that are named. Raises `RunError` for weights that
        are kept otherwise."""
        targets = self.state_tensors()
        for name in names:
            target = targets[name]
            if isinstance(tensors, TensorFile) and tensors.entries[name].dtype != target.dtype:
                raise RunError(f"{tensors.path}: {name} is not kept in {target.dtype} there")
            if name != "adam/step":
                put_tensor(tensors, name, target)


def _there(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None, "weights in halves have a rest"
    return tensor


@torch.no_grad()
def put_weights(model: nn.Module, tensors: Mapping[str, torch.Tensor], *, whole: bool) -> None:
    """Puts kept weights on a model in fp32: as bf16 halves, as training and scoring read them, or
    `whole`. (Those of runs before halves are fp32, and stay.)"""
    from tsugiki.fast.adamw import joined

    for name, parameter in model.named_parameters():
        kept = tensors[f"param/{name}"]
        if f"rest/{name}" in tensors and whole:
            kept = joined(kept, tensors[f"rest/{name}"])
        parameter.data = kept.to(parameter.device)
