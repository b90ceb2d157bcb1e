"""`tsugiki check` alone: what this machine is to tsugiki, in lines that can be pasted into an
issue. No name of a user, no password, no token."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import torch

from tsugiki import __version__
from tsugiki.data.sources import cache_dir
from tsugiki.errors import RunError, without_secrets
from tsugiki.fast.cuda_graphs import missing_tools
from tsugiki.model.numerics import pick_device, pick_numerics
from tsugiki.network import offline

GIB = 2**30
CORE = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy")
EXTRAS = {  # what a feature needs: the package that is looked for
    "Parquet and Arrow files": "pyarrow",
    "SentencePiece models": "sentencepiece",
    "a base in 4 bits": "bitsandbytes",
    "search by TPE": "optuna",
    "tsugiki try": "starlette",
    "figures as PDF": "cairosvg",
    "TensorBoard": "tensorboard",
    "Weights & Biases": "wandb",
    "MLflow": "mlflow",
}
VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HTTPS_PROXY", "HTTP_PROXY", "CUDA_VISIBLE_DEVICES")


def machine_lines(out: Path) -> Iterator[str]:
    """Versions, device, precision, fast paths, memory, extras, caches, network."""
    yield f"tsugiki {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield ", ".join(f"{name} {_version(name) or 'missing'}" for name in CORE)
    yield from _device()
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(_existing(out))
    yield (
        f"memory: {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free; disk for "
        f"runs: {disk.free / GIB:.0f} GiB free"
    )
    there = [name for name, package in EXTRAS.items() if _version(package)]
    lacking = [f"{name} ({package})" for name, package in EXTRAS.items() if not _version(package)]
    yield f"extras: {', '.join(there) or 'none'}"
    if lacking:
        yield f"  not installed: {', '.join(lacking)}: pip install PACKAGE"
    yield from _caches()
    named = offline()
    yield f"network: {f'not used, since {named} is set' if named else 'used for what is missing'}"
    set_ones = [name for name in sorted(os.environ) if name.startswith("TSUGIKI_")]
    shown = [f"{name}={_shown(os.environ[name])}" for name in (*set_ones, *VARIABLES)
             if os.environ.get(name)]  # fmt: skip
    if shown:
        yield f"environment: {', '.join(shown)}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device() -> Iterator[str]:
    try:
        device = pick_device()
        numerics = pick_numerics("lora", "auto", device)
    except RunError as broken:
        yield f"device: {broken}"
        return
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            kind = torch.cuda.get_device_capability(index)
            yield (
                f"device cuda:{index}: {torch.cuda.get_device_name(index)}, "
                f"{free / GIB:.1f} of {total / GIB:.1f} GiB free, compute capability "
                f"{kind[0]}.{kind[1]}, CUDA {torch.version.cuda}"
            )
    else:
        yield f"device: {device}, {torch.get_num_threads()} threads; no CUDA device is visible"
    yield f'precision: "auto" computes in {numerics.compute} here'
    if device.type != "cuda":
        why = "they need a CUDA device"
    elif numerics.compute != "bf16":
        why = "they need fast bf16 matmuls"
    else:
        why = missing_tools() or ""
    yield f"fast paths (CUDA graphs, lanes, fused kernels): {f'off: {why}' if why else 'on'}"


def _caches() -> Iterator[str]:
    from huggingface_hub import constants

    for name, folder in (("tsugiki", cache_dir()), ("Hub", Path(constants.HF_HUB_CACHE))):
        if not folder.exists():
            yield f"cache of {name}: {_shown(str(folder))} (empty)"
            continue
        sizes = [path.lstat().st_size for path in folder.rglob("*") if path.is_file()
                 and not path.is_symlink()]  # fmt: skip
        yield f"cache of {name}: {_shown(str(folder))}, {sum(sizes) / GIB:.1f} GiB"


def _shown(text: str) -> str:
    """Without secrets, and with ~ for the user's folder."""
    return without_secrets(text).replace(str(Path.home()), "~")


def _existing(folder: Path) -> Path:
    """The folder, or the next one above it that is there."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())
