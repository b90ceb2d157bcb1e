"""A causal language model and its tokenizer from a folder, the Hub or the package; safetensors only.

Precision, the same for every method compared: products in bf16 where the device has it, `LoRA` over a base stored in
bf16 with fp32 adapters, full fine-tuning on fp32 master weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsugiki.config import Method, ModelChoice, Precision
from tsugiki.errors import ModelError, RunError

BUILTIN = Path(__file__).parent.parent / "presets" / "models" / "tsugiki-mame"
WANTED_FILES = [
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
]


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What is computed and stored in what. `compute` is the dtype of products, `base` and `trained` are storage."""

    compute: str
    base: str
    trained: str

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.compute == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BaseSource:
    """A model that was found, not loaded: sha256 of its weights and of config and tokenizer, the device and precision it will run in."""

    folder: Path
    checksum: str
    settings_checksum: str
    device: torch.device
    numerics: Numerics


@dataclass(kw_only=True)
class Base:
    """A loaded model with its tokenizer."""

    model: Any
    tokenizer: Any
    source: BaseSource

    @property
    def device(self) -> torch.device:
        return self.source.device

    @property
    def numerics(self) -> Numerics:
        return self.source.numerics

    @property
    def max_positions(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)


def pick_device() -> torch.device:
    """`TSUGIKI_DEVICE` if given, else CUDA if there, else the CPU."""
    wanted = os.environ.get("TSUGIKI_DEVICE")
    if wanted and wanted.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"TSUGIKI_DEVICE={wanted}: no CUDA device is visible here")
    try:
        return torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise RunError(f"TSUGIKI_DEVICE={wanted}: no such device. Use cpu, cuda or cuda:1") from None


def pick_numerics(method: Method, precision: Precision, device: torch.device) -> Numerics:
    """bf16 products where the device is fast at them. Full fine-tuning keeps fp32 master weights."""
    if precision == "auto":
        precision = "bf16" if _has_bf16(device) else "fp32"
    elif precision == "bf16" and not _has_bf16(device):
        raise RunError(f'train.precision = "bf16": {device} has no fast bf16 products. Use "auto" or "fp32"')
    frozen_bf16 = precision == "bf16" and method == "lora"
    return Numerics(compute=precision, base="bf16" if frozen_bf16 else "fp32", trained="fp32")


def why_fp32(precision: Precision, numerics: Numerics, device: torch.device) -> str | None:
    """What to tell the user of a GPU that `auto` computes in fp32 on; None where there is nothing to say."""
    if device.type != "cuda" or precision != "auto" or numerics.compute != "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return f"{name} has no fast bf16 products: this run computes in fp32, with the plain step (the captured one needs bf16). It is right, and slower"


def _has_bf16(device: torch.device) -> bool:
    """Whether `auto` computes in bf16 there. `TSUGIKI_CPU_BF16` (1 or 0) decides for a CPU: the same code runs on any, slower without
    such instructions, so that one machine can repeat what another computed in."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = os.environ.get("TSUGIKI_CPU_BF16", "")
    if wanted not in ("", "0", "1"):
        raise RunError(f"TSUGIKI_CPU_BF16={wanted}: must be 1 (bf16), 0 (fp32), or not set (what this CPU is fast at)")
    if wanted:
        return wanted == "1"
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def resolve(choice: ModelChoice) -> Path:
    """The local folder of a model: the built-in one, a folder, or a snapshot of a Hub repository (downloaded if needed)."""
    if choice.path == "builtin":
        return BUILTIN
    folder = Path(choice.path)
    if folder.exists():
        if not (folder / "config.json").exists():
            raise ModelError(f"model {folder}: no config.json there: not a model folder in the Hugging Face format")
        return folder
    if choice.path.startswith((".", "/", "~")) or choice.path.count("/") != 1:
        raise ModelError(f'model "{choice.path}": no such folder, and not a Hub id (owner/name). The model inside the package is called "builtin"')
    return _snapshot(choice)


def _snapshot(choice: ModelChoice) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(choice.path, revision=choice.revision, allow_patterns=WANTED_FILES))
    except GatedRepoError:
        where = "Accept its terms on its page on the Hub, make a token at https://huggingface.co/settings/tokens (read access is enough)"
        raise ModelError(f"model {choice.path}: gated. {where}, and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        token = "HF_TOKEN is set, but does not reach it" if os.environ.get("HF_TOKEN") else "if it is private, set HF_TOKEN"
        raise ModelError(f"model {choice.path}: no such repository on the Hub ({token}){_by_way_of()}") from None
    except LocalEntryNotFoundError:
        offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True") else "the Hub cannot be reached"
        raise ModelError(f"model {choice.path}: not in the cache, and {offline}{_by_way_of()}. Run once with a network, or give a folder") from None
    except (HfHubHTTPError, OSError) as broken:
        raise ModelError(f"model {choice.path}: the Hub answered: {str(broken).splitlines()[0]}{_by_way_of()}") from None


def _by_way_of() -> str:
    """Which of the user's settings a request to the Hub goes by: what to look at when it fails."""
    names = [name for name in ("HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY") if os.environ.get(name)]
    return f" (by way of {', '.join(f'{name}={os.environ[name]}' for name in names)})" if names else ""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, all of them readable. Raises `ModelError` naming the broken one."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.exists() else (p.name for p in folder.glob("*.safetensors"))
        names = sorted(set(listed))
    except (ValueError, KeyError) as broken:
        raise ModelError(f"model {index}: damaged or cut short ({broken!r}). Download again") from None
    if not names:
        others = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "none"
        raise ModelError(f"model {folder}: no safetensors (other weights: {others}). tsugiki reads nothing else; convert with transformers: save_pretrained")
    for name in names:
        if not (folder / name).exists():
            raise ModelError(f"model {folder}: {name} is missing, though the index names it. Download again")
        try:
            with safe_open(folder / name, "pt"):
                continue
        except SafetensorError as broken:
            raise ModelError(f"model {folder / name}: damaged or cut short ({broken}). Download again") from None
    return [folder / name for name in names]


def checksum_of(files: list[Path]) -> str:
    """sha256 over the weight files, in the order of their names; computed once for unchanged files in a process."""
    return _checksum(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@cache
def _checksum(files: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in files:
        with open(name, "rb") as file:
            while chunk := file.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as broken:  # transformers raises many kinds for a bad folder
        hint = ' A spiece.model needs: pip install "tsugiki[sentencepiece]".' if list(folder.glob("*.model")) else ""
        raise ModelError(f"model {folder}: its tokenizer cannot be loaded: {str(broken).splitlines()[0]}.{hint}") from broken


def find_base(choice: ModelChoice, method: Method, precision: Precision, device: torch.device | None = None) -> BaseSource:
    """Finds (and downloads) a model without loading it. Raises `ModelError` for one that is absent or damaged."""
    device = device or pick_device()
    folder = resolve(choice)
    settings = sorted(path for pattern in ("config.json", "tokenizer*", "*.model", "vocab*", "merges.txt") for path in folder.glob(pattern))
    return BaseSource(
        folder=folder,
        checksum=checksum_of(weight_files(folder)),
        settings_checksum=checksum_of(settings),
        device=device,
        numerics=pick_numerics(method, precision, device),
    )


def load_base(source: BaseSource) -> Base:
    """Loads model and tokenizer, ready to train: dropout of the base off, weights in their storage dtype.

    Raises:
        ModelError: it is not a causal language model, or its tokenizer cannot be read.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = torch.bfloat16 if source.numerics.base == "bf16" else torch.float32
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source.folder, dtype=dtype, use_safetensors=True, attn_implementation="sdpa")
    except (OSError, ValueError, KeyError, RuntimeError) as broken:
        raise ModelError(f"model {source.folder}: cannot be loaded as a causal language model: {str(broken).splitlines()[0]}") from broken
    no_dropout(model)
    _refuse_scaled_logits(model.config)
    model.config.use_cache = False
    return Base(model=model.to(source.device), tokenizer=load_tokenizer(source.folder), source=source)


def _refuse_scaled_logits(config: Any) -> None:
    """The loss reads the output layer itself; what a model does to its logits afterwards would be missed in training."""
    for name, neutral in (("final_logit_softcapping", None), ("logits_scaling", 1.0), ("logit_scale", 1.0)):
        value = getattr(config, name, neutral)
        if value not in (neutral, None):
            raise ModelError(f"{type(config).__name__}: {name} = {value} is not implemented: training and generation would use different logits")


def no_dropout(model: nn.Module) -> None:
    """The base's own dropout draws from a global generator, so a resumed run would differ; the comparison uses none."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def backbone_and_head(model: Any) -> tuple[Callable[..., Any], nn.Module]:
    """(everything up to the last hidden states, the output layer): lets the loss skip logits that have no target."""
    return partial(model.base_model, use_cache=False), model.get_output_embeddings()


def num_parameters(model: nn.Module) -> int:
    """Parameters of the model, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
