"""A causal language model and its tokenizer from a folder, the Hub or the package; safetensors
only.

Precision, the same for every method compared: matmuls in bf16 where the device has it, `LoRA`
over a base stored in bf16 with fp32 adapters, full fine-tuning on fp32 master weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsugiki.config.run import Method, ModelChoice, Precision
from tsugiki.errors import ModelError, RunError, first_line
from tsugiki.model.folder import (
    check_settings,
    checksum_of,
    resolve,
    settings_checksum,
    stop_ids_of,
    weight_files,
)
from tsugiki.model.layouts import LAYOUTS
from tsugiki.model.look import look_at
from tsugiki.toml import Given

OLD_BUFFERS = tuple(name for layout in LAYOUTS for name in layout.old_buffers)


# What the base's weights are stored in: those that are tuned themselves keep fp32 masters.
STORED: Mapping[tuple[Method, Precision], str] = {
    ("lora", "bf16"): "bf16",
    ("lora", "fp32"): "fp32",
    ("base", "bf16"): "bf16",
    ("base", "fp32"): "fp32",
    ("full", "bf16"): "fp32",
    ("full", "fp32"): "fp32",
}


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What is computed and stored in what. `compute` is the dtype of matmuls, `base` and
    `trained` are storage."""

    compute: str
    base: str
    trained: str

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.compute == "fp32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BaseSource:
    """A model that was found, not loaded: sha256 of its weights and of config and tokenizer, the
    device and precision it will run in."""

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
    def stops(self) -> tuple[int, ...]:
        """The ids that the model's own settings end an answer at."""
        return stop_ids_of(self.source.folder)

    @property
    def vocab_rows(self) -> int:
        """Ids that the model has a row for: 0 to one less."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def num_parameters(self) -> int:
        """Parameters of the model as it is now, tied ones counted once."""
        return num_parameters(self.model)

    @property
    def max_positions(self) -> int:
        return max_positions_of(self.model.config)


def max_positions_of(config: Any) -> int:
    """Tokens that a model has positions for; 2^31 where it names no limit."""
    return int(
        getattr(config, "max_position_embeddings", 0) or getattr(config, "max_seq_len", 0) or 2**31
    )


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


def pick_numerics(method: Method, precision: Precision, device: torch.device) -> Numerics:
    """bf16 matmuls where the device is fast at them. Full fine-tuning keeps fp32 master
    weights."""
    if precision == "auto":
        precision = "bf16" if _has_bf16(device) else "fp32"
    elif precision == "bf16" and not _has_bf16(device):
        raise RunError(
            f'train.precision = "bf16": {device} has no fast bf16 matmuls. Use "auto" or "fp32"'
        )
    trained = "fp32 (bf16 + int16)" if (method, precision) == ("full", "bf16") else "fp32"
    return Numerics(compute=precision, base=STORED[method, precision], trained=trained)


def why_fp32(precision: Precision, numerics: Numerics, device: torch.device) -> str | None:
    """What to tell the user of a GPU that `auto` computes in fp32 on; None where there is nothing
    to say."""
    if device.type != "cuda" or precision != "auto" or numerics.compute != "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return (
        f"{name} has no fast bf16 matmuls: this run computes in fp32, with the eager step (CUDA "
        "graphs need bf16). Results are correct; training is slower"
    )


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


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises `ModelError` in one line, whatever transformers
    raises."""
    from transformers import AutoTokenizer

    check_settings(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("一", add_special_tokens=False)
    except Exception as broken:  # transformers raises many kinds for a bad folder
        hint = (
            ' A spiece.model needs: pip install "tsugiki[sentencepiece]".'
            if list(folder.glob("*.model"))
            else ""
        )
        raise ModelError(
            f"model {folder}: its tokenizer cannot be loaded: {first_line(broken)}.{hint}"
        ) from broken
    return tokenizer


def find_base(
    choice: ModelChoice, method: Method, precision: Precision, device: torch.device | None = None
) -> BaseSource:
    """Finds (and downloads) a model without loading it. Raises `ModelError` for one that is absent
    or damaged."""
    device = device or pick_device()
    folder = resolve(choice)
    config = check_settings(folder)
    return BaseSource(
        folder=folder,
        checksum=checksum_of(weight_files(folder, config)),
        settings_checksum=settings_checksum(folder),
        device=device,
        numerics=pick_numerics(method, precision, device),
    )


def load_base(source: BaseSource) -> Base:
    """Loads model and tokenizer, ready to train: dropout of the base off, weights in their storage
    dtype, looked at (`model/look`).

    Raises:
        ModelError: it is not the causal language model that its folder says it is, or its
            tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(source.folder)
    model = read_model(
        source.folder, torch.bfloat16 if source.numerics.base == "bf16" else torch.float32
    )
    try:
        model = model.to(source.device)
        look_at(
            model,
            tokenizer,
            str(source.folder),
            source.numerics.autocast(source.device)
            if source.numerics.base == "bf16"
            else nullcontext(),
        )
    except torch.OutOfMemoryError:
        needed = (
            sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
            / 2**30
        )
        raise RunError(
            f"model {source.folder}: its weights alone need {needed:.1f} GiB in "
            f"{source.numerics.base}, which {source.device} does not have free"
        ) from None
    return Base(model=model, tokenizer=tokenizer, source=source)


def read_model(folder: Path, dtype: torch.dtype, *, only_names: bool = False) -> Any:
    """The model of a folder, every tensor of it from its files; with `only_names` the weights are
    not read: a model on the meta device.

    Raises:
        ModelError: a tensor is missing, left over, or of another size (named; tied ones excepted);
            or whatever transformers raised, in one line.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    weight_files(folder, check_settings(folder))
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            kind = AutoModelForCausalLM._model_mapping[type(config)]
            attention = "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=False,
                dtype=dtype,
                use_safetensors=True,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                device_map="meta" if only_names else None,
            )
        # libraries raise what they like: a quantised base without its library, sizes that do not
        # divide
        except Exception as broken:
            said = (
                f"no model of this kind ({broken})"
                if isinstance(broken, KeyError)
                else first_line(broken)
            )
            raise ModelError(
                f"model {folder}: cannot be loaded as a causal language model: {said}"
            ) from broken
    model, report = loaded
    _refuse_other_tensors(folder, report)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"model {folder}: has an encoder and a decoder; only causal language models can be "
            "tuned"
        )
    no_dropout(model)
    model.config.use_cache = False
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it transformers neither draws bars nor prints reports: what matters of them becomes
    an error of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _refuse_other_tensors(folder: Path, report: Given) -> None:
    """Raises `ModelError` where the weights are not those of the model that `config.json`
    describes."""
    mismatched = {
        name: f"{name} is {list(there)}, must be {list(wanted)}"
        for name, there, wanted in report["mismatched_keys"]
    }
    missing = {name: name for name in report["missing_keys"]}
    extra = {name: name for name in report["unexpected_keys"] if not name.endswith(OLD_BUFFERS)}
    wrong = [
        (mismatched, "of another size than config.json says"),
        (missing, "missing"),
        (extra, "with no place in the model"),
    ]
    said = [
        f"{len(names)} tensors are {what} "
        f"({', '.join(names[name] for name in sorted(names)[:3])}{' …' if len(names) > 3 else ''})"
        for names, what in wrong
        if names
    ]
    if said or report.get("error_msgs"):
        raise ModelError(
            f"model {folder}: its weights are not those of its config.json: "
            f"{'; '.join(said) or first_line(ValueError(report['error_msgs']))}"
        )


def no_dropout(model: nn.Module) -> None:
    """The base's own dropout draws from a global generator, so a resumed run would differ; the
    comparison uses none."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def backbone_and_head(model: Any) -> tuple[Callable[..., Any], nn.Module]:
    """(everything up to the last hidden states, the output layer): lets the loss skip logits that
    have no target."""
    return partial(model.base_model, use_cache=False), model.get_output_embeddings()


def count_parameters(folder: Path) -> int:
    """Parameters of a model that is not loaded."""
    return num_parameters(read_model(folder, torch.float32, only_names=True))


def num_parameters(model: nn.Module) -> int:
    """Parameters of the model, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
