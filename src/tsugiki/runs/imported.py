"""What is to be known of an adapter that was trained elsewhere, before it is put on its base."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tsugiki.config.run import RunConfig
from tsugiki.errors import ModelError
from tsugiki.model.folder import BUILTIN_NAME, resolve
from tsugiki.model.read_adapter import adapter_folder, read_adapter
from tsugiki.runs.events import Events
from tsugiki.runs.store import COPIED
from tsugiki.words import Message


def adapter_checksum(config: RunConfig) -> str:
    """sha256 of the adapter's files; nothing for a run that trains."""
    if not config.adapter:
        return ""
    total = hashlib.sha256()
    folder = adapter_folder(Path(config.adapter))
    for name in COPIED:
        path = folder / name
        try:
            total.update(path.read_bytes())
        except OSError as broken:
            raise ModelError(
                f"adapter {path}: cannot be read: {broken.strerror}. Name a folder that peft wrote "
                "(safetensors)"
            ) from None
    return total.hexdigest()


def other_base(config: RunConfig) -> str | None:
    """What to tell of an adapter that names another base than the one it is put on; None where
    there is nothing to say."""
    if not config.adapter:
        return None
    named = read_adapter(Path(config.adapter))[0].get("base_model_name_or_path")
    names = {Path(config.model.path).name, config.model.label}
    if config.model.path == BUILTIN_NAME:
        names.add(resolve(config.model).name)  # as an exported adapter names it
    if not named or Path(str(named)).name in names:
        return None
    names_of = {"adapter": config.adapter, "named": named, "model": config.model.path}
    return Message("note.other_base", **names_of)


def note_other_base(config: RunConfig, events: Events) -> None:
    """Tells what `other_base` has to say."""
    if (said := other_base(config)) is not None:
        events.note(said)
