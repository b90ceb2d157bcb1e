"""A causal language model and its tokenizer from a folder, the Hub or the package; safetensors
only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsugiki.config.run import Method, ModelChoice, Precision
from tsugiki.errors import ModelError, RunError, first_line, how_to_install
from tsugiki.model.folder import (
    check_settings,
    checksum_of,
    is_encoder,
    is_quantised,
    resolve,
    settings_checksum,
    stop_ids_of,
    weight_files,
)
from tsugiki.model.layouts import LAYOUTS
from tsugiki.model.look import look_at
from tsugiki.model.nf4 import Nf4Linear, load_library, stored_bytes
from tsugiki.model.numerics import Numerics, pick_device, pick_numerics
from tsugiki.model.quantise import quantise_layers
from tsugiki.toml import Given
from tsugiki.words import Message

OLD_BUFFERS = tuple(name for layout in LAYOUTS for name in layout.old_buffers)


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
    positions = int(
        getattr(config, "max_position_embeddings", 0) or getattr(config, "max_seq_len", 0) or 2**31
    )
    # RoBERTa counts them from the padding id + 1.
    begun = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta") else 0
    return positions - begun


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises `ModelError` in one line, whatever transformers
    raises."""
    from transformers import AutoTokenizer

    check_settings(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("一", add_special_tokens=False)
    except Exception as broken:  # transformers raises many kinds for a bad folder
        values = {"folder": folder, "reason": first_line(broken)}
        said = Message("error.no_tokenizer", **values)
        if list(folder.glob("*.model")):
            install = how_to_install("sentencepiece", "protobuf")
            said = Message("error.no_tokenizer_sentencepiece", install=install, **values)
        raise ModelError(said) from broken
    return tokenizer


def find_base(
    choice: ModelChoice, method: Method, precision: Precision, device: torch.device | None = None
) -> BaseSource:
    """Finds (and downloads) a model without loading it. Raises `ModelError` for one that is absent
    or damaged."""
    device = device or pick_device()
    folder = resolve(choice)
    config = check_settings(folder)
    check_base(choice, folder)
    return BaseSource(
        folder=folder,
        checksum=checksum_of(weight_files(folder, config)),
        settings_checksum=settings_checksum(folder),
        device=device,
        numerics=pick_numerics(method, precision, device, choice.base),
    )


def check_base(choice: ModelChoice, folder: Path) -> None:
    """Raises `ModelError` where a base is asked for that cannot be had here."""
    if choice.base is not None:
        load_library()
    elif is_quantised(folder):
        raise ModelError(
            f"model {folder}: its weights are kept in 4 bits. Adapters can be trained over them: "
            'write base = "nf4" where the model is named'
        )


def load_base(
    source: BaseSource,
    read: Callable[[Path, torch.dtype], Any] | None = None,
    look: Callable[[Any, Any, str, AbstractContextManager[Any]], object] = look_at,
) -> Base:
    """Loads model and tokenizer, ready to train: dropout of the base off, weights in their storage
    dtype, looked at (`model/look`). `read` and `look`: how, where it is no causal language model.

    Raises:
        ModelError: it is not the causal language model that its folder says it is, or its
            tokenizer cannot be read.
    """
    tokenizer, numerics = load_tokenizer(source.folder), source.numerics
    fp32 = "fp32" in (numerics.base, numerics.compute)
    dtype = torch.float32 if fp32 else torch.bfloat16
    model = (read or read_model)(source.folder, dtype)
    try:
        if numerics.base == "nf4":
            put_4bit(model, source.folder, source.device, dtype)
        model = model.to(source.device)
        look(
            model,
            tokenizer,
            str(source.folder),
            nullcontext() if fp32 else numerics.autocast(source.device),
        )
    except torch.OutOfMemoryError:
        needed = stored_bytes(model) / 2**30
        kept = {"kept": source.numerics.base, "device": source.device}
        raise RunError(
            Message("error.weights_room", folder=source.folder, gib=needed, **kept)
        ) from None
    return Base(model=model, tokenizer=tokenizer, source=source)


def put_4bit(model: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Puts 4 bits in the place of a model's linear layers, on `device`, for matmuls in `dtype`.
    Raises `ModelError` where its layout is unknown, too."""
    try:
        quantise_layers(model, device, dtype)
    except ModelError as said:
        raise ModelError(f"model {folder}: {said}") from None
    # What the library marked it by: its layers are gone.
    for name in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "_weight_conversions"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # the library keeps the checkpoint's
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def read_model(folder: Path, dtype: torch.dtype, *, only_names: bool = False) -> Any:
    """The model of a folder, every tensor of it from its files; with `only_names` the weights are
    not read: a model on the meta device.

    Raises:
        ModelError: a tensor is missing, left over, or of another size (named; tied ones excepted);
            or whatever transformers raised, in one line.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    given = check_settings(folder)
    if is_encoder(given):
        raise ModelError(
            f"model {folder}: is an encoder ({given['model_type']}), no causal language model. "
            'A study\'s row of it is kind = "encoder" with model = "…", a run of it method = '
            '"encoder"'
        )
    weight_files(folder, given)
    coded = is_quantised(folder)
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if coded and only_names:
                return _of_sizes(config)
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
                device_map="meta" if only_names else "cpu" if coded else None,
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
    refuse_other_tensors(folder, report)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"model {folder}: has an encoder and a decoder; only causal language models can be "
            "tuned"
        )
    no_dropout(model)
    model.config.use_cache = False
    return model


def _of_sizes(config: Any) -> Any:
    """The model that 4-bit weights are of, without them: on the meta device."""
    from transformers import AutoModelForCausalLM

    del config.quantization_config
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


@contextmanager
def quiet() -> Iterator[None]:
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


def refuse_other_tensors(folder: Path, report: Given) -> None:
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
    """Parameters of the model, tied ones counted once, those in 4 bits as well."""
    coded = (
        2 * module.codes.numel() for module in model.modules() if isinstance(module, Nf4Linear)
    )
    return sum(parameter.numel() for parameter in model.parameters()) + sum(coded)
