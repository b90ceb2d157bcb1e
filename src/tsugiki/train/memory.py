"""Foretells what a device holds: how many lanes, and whether full fine-tuning fits at all, before
anything is made.

Foretold, not measured: the step that is then captured says whether it fits, and if not, fewer
lanes are taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import psutil
import torch

from tsugiki.config.run import LoraConfig, TrainConfig
from tsugiki.data.prompts import Tokens
from tsugiki.errors import RunError
from tsugiki.fast.adamw import BLOCK
from tsugiki.model.layouts import find_target_slices, in_features
from tsugiki.model.loading import Numerics, num_parameters

ADAPTER_BYTES = 4 + 4 + 8 + 2 + 2  # fp32 value, gradient, two moments; bf16 copy, its gradient
USABLE = 0.88  # of the device's memory; the rest is for the libraries' workspaces and for fragments
WHOLE_GRADIENT_BYTES = 2  # bf16; by layer there is one of the largest weight
MOST_LANES = 96  # beyond, a step only gets longer: matmuls are bound by arithmetic long before


def lanes_that_fit(
    model: Any,
    device: torch.device,
    adapters: Sequence[LoraConfig],
    micro_batch: int,
    rows: Sequence[Tokens],
) -> int:
    """How many lanes of these adapters can train together on a device, with so many rows of each in
    a backward pass; 1 on a CPU, where lanes save no arithmetic."""
    if device.type != "cuda":
        return 1
    own = USABLE * room(device)[1] - num_parameters(model) * next(model.parameters()).element_size()
    # Beside other processes (--jobs) less is there; alone the first bound holds, so that a resumed
    # study makes the same groups.
    there = (
        torch.cuda.mem_get_info(device)[0]
        + torch.cuda.memory_reserved(device)
        - torch.cuda.memory_allocated(device)
    )
    free = min(own, 0.95 * there)
    each = lane_bytes(model, adapters, micro_batch, rows)
    return max(1, min(MOST_LANES, len(adapters), int(free // each)))


def lane_bytes(
    model: Any, adapters: Sequence[LoraConfig], micro_batch: int, rows: Sequence[Tokens]
) -> int:
    """What one more lane of these takes: its adapters with their optimiser, and what its rows
    leave behind for the backward pass."""
    rank = max(adapter.rank for adapter in adapters)
    targets = {adapter.targets for adapter in adapters}
    parts = {
        (part.path, part.target): part
        for names in targets
        for part in find_target_slices(model, names)
    }
    parameters = sum(
        rank * (in_features(model.get_submodule(part.path)) + part.width) for part in parts.values()
    )
    tokens = _upper_sum([len(row) for row in rows], micro_batch)
    answers = _upper_sum([len(row.target_ids) for row in rows], micro_batch)
    logits = answers * model.config.vocab_size * (2 + 4 + 4 + 2)  # bf16, fp32, their gradients
    return int(parameters * ADAPTER_BYTES + tokens * token_bytes(model.config) + logits)


def token_bytes(config: Any) -> int:
    """What one token leaves behind in bf16 for the backward pass: eight vectors of the model's
    width a layer (norms' inputs and outputs, q, k, v, attention, residuals) and three of the
    MLP's."""
    width = config.hidden_size
    mlp = (
        getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    )
    return int(2 * config.num_hidden_layers * (8 * width + 3 * mlp))


def _upper_sum(lengths: Sequence[int], count: int) -> float:
    """What the sum of `count` random ones of these hardly ever exceeds: the mean and four standard
    deviations."""
    mean = sum(lengths) / len(lengths)
    variance = sum((length - mean) ** 2 for length in lengths) / len(lengths)
    return min(count * max(lengths), count * mean + 4 * math.sqrt(count * variance))


def room(device: torch.device) -> tuple[int, int]:
    """(bytes this process can have, bytes there are) on a device; of the machine's memory for a
    CPU."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        card = torch.cuda.current_device() if device.index is None else device.index
        total = int(total * torch.cuda.get_per_process_memory_fraction(card))
        return min(free + torch.cuda.memory_reserved(device), total), total
    memory = psutil.virtual_memory()
    return memory.available + psutil.Process().memory_info().rss, memory.total


def left(device: torch.device) -> int:
    """Bytes that this process can have beside what it holds on a device."""
    free, _ = room(device)
    return free - torch.cuda.memory_allocated(device) if device.type == "cuda" else free


class NoRoom(RunError):
    """What is trained in full does not fit on this device, whatever the rows are."""


def full_bytes(train: TrainConfig, compute: str) -> float:
    """What full fine-tuning keeps of a parameter: its value, two moments, and its gradient unless
    it is used by layer (which bf16 matmuls can, from one backward pass a step)."""
    moments = {"fp32": 8.0, "bf16": 4.0, "8bit": 2 + 2 / BLOCK}[train.moments]
    if compute == "fp32":
        return 4 + moments + 4
    weight = 4 if train.weights == "fp32" else 3
    summed = train.micro_batch not in (None, train.batch)
    return weight + moments + (4 if summed else 0)


def refuse_no_room(
    parameters: int, train: TrainConfig, numerics: Numerics, device: torch.device
) -> None:
    """Raises `NoRoom` where full fine-tuning cannot fit, whatever the rows are: so many
    parameters with what is kept of them alone."""
    each, (free, _) = full_bytes(train, numerics.compute), room(device)
    if parameters * each <= free:
        return
    smaller = [
        (moments, train.model_copy(update={"moments": moments, "micro_batch": None}))
        for moments in ("fp32", "bf16", "8bit")
    ]
    fitting = [
        f'moments = "{moments}" under [train] ({_gib(parameters * size)} GiB{other})'
        for moments, changed in smaller
        if parameters * (size := full_bytes(changed, numerics.compute)) < 0.95 * free
        for other in (", without micro_batch" if train.micro_batch else "",)
    ]
    instead = f"Write {fitting[0]}, or take" if fitting else "Take"
    raise NoRoom(
        f"full fine-tuning needs {_gib(parameters * each)} GiB on {device} ({parameters / 1e6:,.0f}"
        f" M parameters with what AdamW keeps, {each:.3g} bytes each), {_gib(free)} free. Shorter "
        f"or fewer rows do not help. {instead} LoRA, a smaller model, or more memory"
    )


def what_helps(
    fixed: int,
    kind: str,
    instead: str,
    train: TrainConfig,
    device: torch.device,
    *,
    cut: bool = True,
) -> str:
    """What to do when one run alone did not fit: rows can be made fewer, what the weights take (so
    many bytes, for what `kind` says) cannot; `instead` is what takes less. `cut`: whether smaller
    backward passes take less."""
    free, total = room(device)
    taken = total - free
    others = (
        f"; other programs hold {_gib(taken)} GiB of it: let nothing else use the device (--jobs 1)"
        if taken > total / 10
        else ""
    )
    said = f"{kind} take {_gib(fixed)} of {_gib(total)} GiB on {device}{others}"
    if fixed > 0.9 * free:
        return f"{said}. Fewer rows do not help: take {instead}"
    rows = train.micro_batch or train.batch
    smaller = f"train.micro_batch (now {rows} rows a backward pass) or " if rows > 1 and cut else ""
    return (
        f"{said}; the rest was not enough for the rows. Lower {smaller}train.max_length (now "
        f"{train.max_length:,})"
    )


def _gib(amount: float) -> str:
    return f"{amount / 2**30:.1f}" if amount < 10 * 2**30 else f"{amount / 2**30:.0f}"
