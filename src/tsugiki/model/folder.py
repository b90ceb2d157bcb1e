"""What a model folder is, before any weight is read: which files there are, whether they are
whole, and what it says of itself.

Only what transformers itself would load counts, and only what is plain data: weights in
safetensors, settings in JSON, no code.

weights    model.safetensors, else what its index names                        `model_sha256`
settings   all that decides ids, prompts, or where an answer ends              `settings_sha256`
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tsugiki.config.run import ModelChoice
from tsugiki.errors import ModelError, first_line
from tsugiki.network import offline
from tsugiki.toml import Given
from tsugiki.words import Message

BUILTIN = Path(__file__).parent.parent / "presets" / "models" / "tsugiki-mame"
BUILTIN_NAME = "builtin"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Whatever of these is there decides ids, prompts or stopping: each names the run, and each is
# fetched from the Hub.
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
)
WANTED_FILES = ["*.safetensors", INDEX, *SETTINGS]
UNWANTED_FILES = ["consolidated*", "*/*.safetensors"]
LFS_POINTER = b"version https://git-lfs"


def resolve(choice: ModelChoice) -> Path:
    """The local folder of a model: the built-in one, a folder, or a snapshot of a Hub repository
    (downloaded if needed)."""
    return local_folder(choice) or snapshot(choice)


def local_folder(choice: ModelChoice) -> Path | None:
    """The built-in model's folder, or the one that is named; None for a repository of the Hub.

    Raises:
        ModelError: it is neither, or no model folder.
    """
    if choice.path == BUILTIN_NAME:
        return BUILTIN
    folder = Path(choice.path)
    if folder.exists():
        if not (folder / "config.json").exists():
            raise ModelError(Message("error.no_config", folder=folder))
        return folder
    if choice.path.startswith((".", "/", "~")) or choice.path.count("/") != 1:
        raise ModelError(Message("error.no_model_folder", path=choice.path))
    return None


def snapshot(choice: ModelChoice, files: Sequence[str] = WANTED_FILES) -> Path:
    """The local folder of a repository of the Hub, with these of its files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                choice.path,
                revision=choice.revision,
                allow_patterns=list(files),
                ignore_patterns=UNWANTED_FILES,
                local_files_only=offline() is not None,
            )
        )
    except GatedRepoError:
        raise ModelError(Message("error.gated", model=choice.path)) from None
    except RepositoryNotFoundError:
        token = "error.token_useless" if os.environ.get("HF_TOKEN") else "error.token_unset"
        said = {"token": Message(token), "way": _by_way_of()}
        raise ModelError(Message("error.no_repository", model=choice.path, **said)) from None
    except LocalEntryNotFoundError:
        named = offline()
        why = Message("error.hub_unreachable")
        if named:
            why = Message("error.offline_set", name=named)
        said = {"why": why, "way": _by_way_of()}
        raise ModelError(Message("error.not_cached", model=choice.path, **said)) from None
    except (HfHubHTTPError, OSError, ValueError) as broken:
        said = {"reason": first_line(broken), "way": _by_way_of()}
        raise ModelError(Message("error.hub_answered", model=choice.path, **said)) from None


def _by_way_of() -> str:
    """Which of the user's settings a request to the Hub goes by: what to look at when it fails."""
    names = [
        name
        for name in ("HF_ENDPOINT", "HTTPS_PROXY", "https_proxy", "ALL_PROXY")
        if os.environ.get(name)
    ]
    settings = ", ".join(f"{name}={os.environ[name]}" for name in names)
    return Message("error.by_way_of", settings=settings) if names else ""


def read_settings(folder: Path, name: str = "config.json") -> Given:
    """A JSON file of a model folder. Raises `ModelError` for one that is damaged, or holds
    something other than an object."""
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as broken:
        said = first_line(broken)
        raise ModelError(Message("error.damaged_model", path=path, reason=said)) from None
    if not isinstance(content, dict):
        raise ModelError(
            f"model {path}: must be a JSON object, is {type(content).__name__}. Download again"
        )
    return content


def check_settings(folder: Path) -> Given:
    """`config.json`, unless the folder is not what it seems.

    Raises:
        ModelError: the model or its tokenizer needs code of its own; it is an adapter, or has
            pictures or sounds to it; a file is damaged.
    """
    config = read_settings(folder)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"model {folder}: holds adapter_config.json: transformers would load another model, "
            "the one that this adapter names. "
            "Give the base's folder; an adapter is scored with: tsugiki import"
        )
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            _refuse_code(
                folder, name, read_settings(folder, name), known_type=str(config.get("model_type"))
            )
    _refuse_other_bits(folder, config)
    _refuse_odd_sizes(folder, config)
    parts = sorted(
        key
        for key in config
        if key.endswith("_config")
        and isinstance(config[key], dict)
        and key.split("_")[0] in ("vision", "audio", "speech")
    )
    if parts:
        raise ModelError(
            f"model {folder}: has {', '.join(parts)}: a model with pictures or sounds. Save its "
            "text part as a folder of its own, and give that"
        )
    return config


def is_quantised(folder: Path) -> bool:
    """Whether a model's weights are kept in 4 bits (nf4)."""
    return bool(read_settings(folder).get("quantization_config"))


def _refuse_other_bits(folder: Path, config: Given) -> None:
    """Of quantised weights, bitsandbytes' nf4 is read."""
    if not config.get("quantization_config"):
        return
    given = config["quantization_config"]
    given = given if isinstance(given, dict) else {}
    kind = str(given.get("quant_method", "unknown"))
    if kind == "bitsandbytes":
        four = given.get("load_in_4bit")
        kind = f"{kind} {given.get('bnb_4bit_quant_type', 'fp4') if four else 'int8'}"
    if kind != "bitsandbytes nf4":
        raise ModelError(
            f"model {folder}: its weights are quantised ({kind}), of which only bitsandbytes nf4 "
            'is read. Give the model that it was made from; base = "nf4" keeps that in 4 bits'
        )


def _refuse_odd_sizes(folder: Path, config: Given) -> None:
    """Sizes that no model has: building its modules would never end."""
    for name, most in (
        ("num_hidden_layers", 2000),
        ("n_layer", 2000),
        ("num_layers", 2000),
        ("hidden_size", 2**20),
        ("n_embd", 2**20),
        ("vocab_size", 2**24),
    ):
        value = config.get(name)
        if value is not None and not (
            isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most
        ):
            raise ModelError(
                f"model {folder / 'config.json'}: {name} = {str(value)[:40]} must be a whole "
                f"number from 1 to {most:,}"
            )


def _refuse_code(folder: Path, name: str, content: Given, known_type: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    named = content.get("auto_map")
    if not named or (name == "config.json" and known_type in CONFIG_MAPPING_NAMES):
        return
    if name == "tokenizer_config.json" and "AutoTokenizer" not in named:
        return
    raise ModelError(Message("error.own_code", path=folder / name))


def weight_files(folder: Path, config: Given | None = None) -> list[Path]:
    """The safetensors files that transformers would load, all of them readable.

    Raises:
        ModelError: naming the file that is missing, broken, or outside of the folder.
    """
    if (config or {}).get("transformers_weights") is not None:
        raise ModelError(
            f"model {folder}: config.json names its weights by transformers_weights, which is not "
            f"read here. Call the file {SINGLE}"
        )
    if (folder / SINGLE).exists():
        names = [SINGLE]
    elif (folder / INDEX).exists():
        names = _names_of_index(folder)
    else:
        patterns = ("*.bin", "*.safetensors", "*.gguf")
        names_there = sorted(path.name for each in patterns for path in folder.glob(each))
        others = ", ".join(names_there) or Message("error.none")
        raise ModelError(Message("error.no_weights", folder=folder, name=SINGLE, others=others))
    for name in names:
        _check_weights(folder, name)
    return [folder / name for name in names]


def _names_of_index(folder: Path) -> list[str]:
    listed = read_settings(folder, INDEX).get("weight_map")
    if (
        not isinstance(listed, dict)
        or not listed
        or not all(isinstance(name, str) for name in listed.values())
    ):
        raise ModelError(
            f"model {folder / INDEX}: has no weight_map of tensor names and files. Download again"
        )
    names = sorted(set(listed.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"model {folder / INDEX}: names “{name}”, which is no safetensors file of its own "
                "folder"
            )
    return names


def _check_weights(folder: Path, name: str) -> None:
    from safetensors import SafetensorError, safe_open

    path = folder / name
    if not path.exists():
        raise ModelError(Message("error.weights_missing", folder=folder, name=name))
    try:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ModelError(Message("error.lfs_pointer", path=path))
        with safe_open(path, "pt"):
            return
    except (SafetensorError, OSError, RuntimeError, ValueError) as broken:
        said = first_line(broken)
        raise ModelError(Message("error.damaged_model", path=path, reason=said)) from None


def stop_ids_of(folder: Path) -> tuple[int, ...]:
    """Every id that ends an answer by the model's own settings: those of generation_config.json,
    else of config.json, as transformers has it."""
    for name in ("generation_config.json", "config.json"):
        given = (
            read_settings(folder, name).get("eos_token_id") if (folder / name).exists() else None
        )
        if given is not None:
            ids = given if isinstance(given, list) else [given]
            if not all(
                isinstance(token, int) and not isinstance(token, bool) and token >= 0
                for token in ids
            ):
                raise ModelError(
                    f"model {folder / name}: eos_token_id = {given!r} must be a token id or a list "
                    "of them"
                )
            return tuple(ids)
    return ()


def settings_files(folder: Path) -> list[Path]:
    """Files of a model folder that decide ids, prompts or where an answer ends, in the order of
    their names."""
    return sorted({path for pattern in SETTINGS for path in folder.glob(pattern) if path.is_file()})


def checksum_of(files: Sequence[Path]) -> str:
    """sha256 over the contents of files, one after another; computed once for unchanged files in a
    process."""
    return _checksum(
        tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    )


@cache
def _checksum(files: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for name, _, _ in files:
        with open(name, "rb") as file:
            while chunk := file.read(1 << 22):
                total.update(chunk)
    return total.hexdigest()


def settings_checksum(folder: Path) -> str:
    """sha256 over names and contents of `settings_files`: the same words in another file are
    another setting."""
    total = hashlib.sha256()
    for path in settings_files(folder):
        total.update(f"{path.relative_to(folder).as_posix()}\0{checksum_of([path])}\n".encode())
    return total.hexdigest()
