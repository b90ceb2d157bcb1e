"""Which device, and what is computed and stored in what there.

Precision, the same for every method compared: matmuls in bf16 where the device has it, `LoRA`
over a base stored in bf16 (or 4 bits, `model/nf4`) with fp32 adapters, full fine-tuning on fp32
master weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tsugiki.config.run import BaseKind, Method, Precision
from tsugiki.errors import RunError
from tsugiki.words import Message

# What PyTorch calls these types.
TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# What the base's weights are stored in: those that are tuned themselves keep fp32 masters.
STORED: Mapping[tuple[Method, Precision], str] = {
    ("lora", "bf16"): "bf16",
    ("lora", "fp32"): "fp32",
    ("base", "bf16"): "bf16",
    ("base", "fp32"): "fp32",
    ("full", "bf16"): "fp32",
    ("full", "fp32"): "fp32",
    ("encoder", "bf16"): "fp32",
    ("encoder", "fp32"): "fp32",
}


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What is computed and stored in what. `compute` is the dtype of matmuls, `base` (with "nf4",
    of the layers' weights) and `trained` are storage."""

    compute: str
    base: str
    trained: str

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.compute == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


def pick_device() -> torch.device:
    """`TSUGIKI_DEVICE` if given, else CUDA if there, else the CPU. A card that is named becomes
    the current one: events, pinned copies and kernels go to the current card, not to the one a
    tensor lies on."""
    wanted = os.environ.get("TSUGIKI_DEVICE")
    if wanted and wanted.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"TSUGIKI_DEVICE={wanted}: no CUDA device is visible here")
    try:
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise RunError(f"TSUGIKI_DEVICE={wanted}: no such device. Use cpu, cuda or cuda:1")
    if device.type == "cuda" and device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise RunError(
                f"TSUGIKI_DEVICE={wanted}: {torch.cuda.device_count()} CUDA devices are visible "
                "here, counted from 0"
            )
        torch.cuda.set_device(device)
    return device


def pick_numerics(
    method: Method, precision: Precision, device: torch.device, base: BaseKind | None = None
) -> Numerics:
    """bf16 matmuls where the device is fast at them."""
    if precision == "auto":
        precision = "bf16" if _has_bf16(device) else "fp32"
    elif precision == "bf16" and not _has_bf16(device):
        raise RunError(
            f'train.precision = "bf16": {device} has no fast bf16 matmuls. Use "auto" or "fp32"'
        )
    return numerics_of(method, precision, base)


def numerics_of(method: Method, precision: Precision, base: BaseKind | None = None) -> Numerics:
    """What matmuls in fp32 or bf16 mean for a method. Full fine-tuning keeps fp32 master weights;
    `base` is what a frozen base is kept in instead."""
    trained = "fp32 (bf16 + int16)" if (method, precision) == ("full", "bf16") else "fp32"
    return Numerics(compute=precision, base=base or STORED[method, precision], trained=trained)


def why_fp32(precision: Precision, numerics: Numerics, device: torch.device) -> str | None:
    """What to tell the user of a GPU that `auto` computes in fp32 on; None where there is nothing
    to say."""
    if device.type != "cuda" or precision != "auto" or numerics.compute != "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return Message("note.fp32", device=name)


def _has_bf16(device: torch.device) -> bool:
    """Whether `auto` computes in bf16 there. `TSUGIKI_CPU_BF16` (1 or 0) decides for a CPU: the
    same code runs on any, slower without such instructions, so that one machine can repeat what
    another computed in."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = os.environ.get("TSUGIKI_CPU_BF16", "")
    if wanted not in ("", "0", "1"):
        raise RunError(
            f"TSUGIKI_CPU_BF16={wanted}: must be 1 (bf16), 0 (fp32), or not set (what this CPU is "
            "fast at)"
        )
    if wanted:
        return wanted == "1"
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
