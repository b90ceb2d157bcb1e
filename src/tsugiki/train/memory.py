"""What fits on a device: lanes, full fine-tuning, a study's configurations, before anything is
made; and what to say where it does not.

Foretold by the ledger (`train/ledger`), not measured: the step that is then captured says whether
it fits, and if not, fewer lanes or smaller backward passes are taken.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch

from tsugiki.config.run import TrainConfig
from tsugiki.errors import RunError
from tsugiki.model.numerics import Numerics
from tsugiki.train.ledger import (
    MOMENT_BYTES,
    SUM_BYTES,
    WEIGHT_BYTES,
    Ledger,
    Load,
    lanes_that_fit,
)
from tsugiki.words import Message, joined

USABLE = 0.92  # of the device's memory: what is foretold is right within a tenth


def lanes_on_device(
    device: torch.device, ledger_of: Callable[[Load], Ledger], load: Load, most: int
) -> int:
    """How many lanes can train together on a device, with so much of each in a backward pass; 1 on
    a CPU, where lanes save no arithmetic."""
    if device.type != "cuda":
        return 1
    # Beside other processes (--jobs) less is there; alone the first bound holds, so that a resumed
    # study makes the same groups.
    there = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = min(USABLE * room(device)[1], 0.98 * there)
    return lanes_that_fit(ledger_of, load, free, most)


def in_words(ledger: Ledger) -> str:
    """`3.6 GiB (weights 2.5, activations 0.6, …)`, the largest first; what is nothing is left
    out."""
    items = sorted(ledger.items().items(), key=lambda item: -item[1])
    parts = [
        Message("memory.item", name=Message(f"memory.{name}"), size=_gib(size))
        for name, size in items
        if size >= 0.05 * 2**30
    ]
    total = _gib(ledger.total)
    if not parts:
        return Message("memory.total", gib=total)
    return Message("memory.total_of", gib=total, items=joined("list.comma", parts))


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
    moments = MOMENT_BYTES[train.moments]
    if compute == "fp32":
        return 4 + moments + 4
    summed = train.micro_batch not in (None, train.batch)
    return WEIGHT_BYTES[train.weights] + moments + (SUM_BYTES if summed else 0)


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
    line = "memory.moments_whole" if train.micro_batch else "memory.moments_line"
    fitting = [
        Message(line, moments=moments, gib=_gib(parameters * size))
        for moments, changed in smaller
        if parameters * (size := full_bytes(changed, numerics.compute)) < 0.95 * free
    ]
    instead = Message("memory.take")
    if fitting:
        instead = Message("memory.write_or_take", line=fitting[0])
    raise NoRoom(
        Message(
            "memory.full",
            needed=_gib(parameters * each),
            device=device,
            millions=parameters / 1e6,
            each=each,
            free=_gib(free),
            instead=instead,
        )
    )


ENCODER_BYTES = 4 + 8 + 4  # of a parameter: its value, moments and gradient in fp32


def refuse_no_room_for_encoder(parameters: int, device: torch.device) -> None:
    """Raises `NoRoom` where an encoder cannot be tuned, whatever the rows are."""
    needed, (free, _) = parameters * ENCODER_BYTES, room(device)
    if needed > free:
        raise NoRoom(
            f"tuning this encoder needs {_gib(needed)} GiB on {device} ({parameters / 1e6:,.0f} M "
            f"parameters with what AdamW keeps), {_gib(free)} free. Take a smaller one"
        )


def what_helps(
    ledger: Ledger, instead: str, train: TrainConfig, device: torch.device, *, cut: bool = True
) -> str:
    """What to do when one run alone did not fit: its largest consumer is named. Rows can be made
    fewer, what the weights take cannot: `instead` is what takes less of that. `cut`: whether
    smaller backward passes take less."""
    free, total = room(device)
    name, size = max(ledger.items().items(), key=lambda item: item[1])
    values = {"name": Message(f"memory.{name}"), "size": _gib(size), "total": _gib(total)}
    others = total - free
    if others > total / 10:
        taken = Message("memory.takes_others", device=device, others=_gib(others), **values)
    else:
        taken = Message("memory.takes", device=device, **values)
    if ledger.fixed > 0.9 * free:
        return Message("memory.fewer_rows", taken=taken, instead=instead)
    said = {"taken": taken, "held": in_words(ledger), "instead": instead}
    rows = train.micro_batch or train.batch
    if rows > 1 and cut:
        return Message("memory.lower_both", rows=rows, length=train.max_length, **said)
    return Message("memory.lower_length", length=train.max_length, **said)


def _gib(amount: float) -> str:
    return f"{amount / 2**30:.1f}" if amount < 10 * 2**30 else f"{amount / 2**30:.0f}"
