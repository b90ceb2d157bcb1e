"""The trackers by name, as `--track` and `listeners` take them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from tsugiki.errors import ConfigError, did_you_mean, first_line, how_to_install
from tsugiki.words import Message

# Name: (module, class).
TRACKERS = {
    "tensorboard": ("tsugiki.trackers.tensorboard", "TensorBoard"),
    "wandb": ("tsugiki.trackers.wandb", "WandB"),
    "mlflow": ("tsugiki.trackers.mlflow", "MLflow"),
}
PACKAGES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow-skinny", "sqlalchemy", "alembic"),
}


def listener_of(given: object) -> object:
    """The tracker of that name; what is no name is a listener already.

    Raises:
        ConfigError: there is no such tracker, its package is not installed, or it cannot be used as
            it is set up: said before anything runs.
    """
    if not isinstance(given, str):
        return given
    if given not in TRACKERS:
        hint = did_you_mean(given, TRACKERS)
        raise ConfigError(Message("error.no_tracker", name=given, hint=hint))
    module, name = TRACKERS[given]
    try:
        return getattr(import_module(module), name)()
    except ImportError as missing:
        said = {"reason": first_line(missing), "install": how_to_install(*PACKAGES[given])}
        raise ConfigError(Message("error.tracker_missing", name=given, **said)) from None


def listeners_of(given: Sequence[object]) -> list[object]:
    """Listeners, trackers by name among them."""
    return [listener_of(each) for each in given]
