"""How wide a model is, from its settings alone: the recipe's rates follow it. No torch here."""

from __future__ import annotations

from pathlib import Path

from tsugiki.config.run import ModelChoice
from tsugiki.errors import ModelError
from tsugiki.model.folder import local_folder, read_settings, snapshot

WIDTHS = ("hidden_size", "n_embd")


def width_of(choice: ModelChoice) -> int:
    """The size of a model's hidden states, from its settings alone: of a repository of the Hub no
    more than config.json is fetched.

    Raises:
        ModelError: the settings cannot be read, or name no size.
    """
    return _width_in(local_folder(choice) or snapshot(choice, files=["config.json"]), choice)


def known_width(choice: ModelChoice) -> int | None:
    """The same, where it takes no fetching; None where it does, or where it cannot be told."""
    try:
        folder = local_folder(choice)
        if folder is None:
            from huggingface_hub import try_to_load_from_cache

            there = try_to_load_from_cache(choice.path, "config.json", revision=choice.revision)
            folder = Path(there).parent if isinstance(there, str) else None
        return None if folder is None else _width_in(folder, choice)
    except (ModelError, ValueError):
        return None


def _width_in(folder: Path, choice: ModelChoice) -> int:
    given = read_settings(folder)
    width = next((given[name] for name in WIDTHS if given.get(name) is not None), None)
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ModelError(
            f"model {choice.path}: its settings name no size of hidden states "
            f"({' or '.join(WIDTHS)}), which the default learning rate follows. Name "
            "train.learning_rate"
        )
    return width
