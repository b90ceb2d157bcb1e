"""`tsugiki check` alone: what this machine is to tsugiki, in lines that can be pasted into an
issue. No name of a user, no password, no token."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator
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
from tsugiki.words import Message, joined

GIB = 2**30
CORE = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy")
EXTRAS = {  # what a feature is called under [machine]: the package that is looked for
    "tables": "pyarrow",
    "sentencepiece": "sentencepiece",
    "nf4": "bitsandbytes",
    "tpe": "optuna",
    "try": "starlette",
    "pdf": "cairosvg",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
}
VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HTTPS_PROXY", "HTTP_PROXY", "CUDA_VISIBLE_DEVICES")


def machine_lines(out: Path) -> Iterator[str]:
    """Versions, device, precision, fast paths, memory, extras, caches, network."""
    yield f"tsugiki {__version__}, Python {platform.python_version()}, {platform.platform()}"
    missing = Message("machine.missing")
    versions = [(name, _version(name) or missing) for name in CORE]
    yield _listed(Message("memory.item", name=name, size=version) for name, version in versions)
    yield from _device()
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(_existing(out))
    sizes = {"free": memory.available / GIB, "total": memory.total / GIB, "disk": disk.free / GIB}
    yield Message("machine.memory", **sizes)
    yield from _extras()
    yield from _caches()
    named = offline()
    yield Message("machine.no_network", name=named) if named else Message("machine.network")
    set_ones = [name for name in sorted(os.environ) if name.startswith("TSUGIKI_")]
    shown = [f"{name}={_shown(os.environ[name])}" for name in (*set_ones, *VARIABLES)
             if os.environ.get(name)]  # fmt: skip
    if shown:
        yield Message("machine.environment", variables=", ".join(shown))


def _extras() -> Iterator[str]:
    there, lacking = list[str](), list[str]()
    for key, package in EXTRAS.items():
        name = Message(f"machine.{key}")
        if _version(package):
            there.append(name)
        else:
            lacking.append(Message("machine.extra", name=name, package=package))
    yield Message("machine.extras", names=_listed(there or [Message("machine.none")]))
    if lacking:
        yield Message("machine.not_installed", names=_listed(lacking))


def _listed(parts: Iterable[str]) -> str:
    return joined("list.comma", parts)


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
        yield Message("machine.no_device", reason=broken.message)
        return
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            kind = torch.cuda.get_device_capability(index)
            yield Message(
                "machine.cuda",
                device=f"cuda:{index}",
                name=torch.cuda.get_device_name(index),
                free=free / GIB,
                total=total / GIB,
                capability=f"{kind[0]}.{kind[1]}",
                version=torch.version.cuda,
            )
    else:
        yield Message("machine.cpu", device=device, threads=torch.get_num_threads())
    yield Message("machine.precision", compute=numerics.compute)
    why: str | None
    if device.type != "cuda":
        why = Message("machine.why_cuda")
    elif numerics.compute != "bf16":
        why = Message("machine.why_bf16")
    else:
        why = missing_tools()
    yield Message("machine.not_fast", why=why) if why else Message("machine.fast")


def _caches() -> Iterator[str]:
    from huggingface_hub import constants

    for name, folder in (("tsugiki", cache_dir()), ("Hub", Path(constants.HF_HUB_CACHE))):
        if not folder.exists():
            yield Message("machine.empty_cache", name=name, folder=_shown(str(folder)))
            continue
        sizes = [path.lstat().st_size for path in folder.rglob("*") if path.is_file()
                 and not path.is_symlink()]  # fmt: skip
        values = {"folder": _shown(str(folder)), "gib": sum(sizes) / GIB}
        yield Message("machine.cache", name=name, **values)


def _shown(text: str) -> str:
    """Without secrets, and with ~ for the user's folder."""
    return without_secrets(text).replace(str(Path.home()), "~")


def _existing(folder: Path) -> Path:
    """The folder, or the next one above it that is there."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())
