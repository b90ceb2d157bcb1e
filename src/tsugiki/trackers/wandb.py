"""Weights & Biases: one run of its for each of ours, grouped by study."""

from __future__ import annotations

import os

import wandb

from tsugiki.errors import ConfigError
from tsugiki.runs.reading import RunRecord
from tsugiki.trackers.tracker import Numbers, Settings, Tracker, key_of

# What was not sent a minute after a run's end lies in the folder, for wandb sync.
PATIENCE = {"init_timeout": 30, "finish_timeout": 60, "finish_timeout_raises": True}


class WandB(Tracker):
    """Sends runs to Weights & Biases, or keeps them under OUT/wandb (`WANDB_MODE=offline`).

    Args:
        project: its name there (default: `WANDB_PROJECT`, else tsugiki).
    """

    def __init__(self, project: str | None = None):
        super().__init__()
        self.project = project or os.environ.get("WANDB_PROJECT", "tsugiki")
        online = os.environ.get("WANDB_MODE", "online") == "online"
        if online and not wandb.login(
            prompt=False, verify=False
        ):  # it would ask for one in the middle of the night
            raise ConfigError("wandb: no API key. Run: wandb login; or set WANDB_MODE=offline")

    def open(self, record: RunRecord, after: int | None) -> _Run:
        run = wandb.init(
            project=self.project,
            group=record.outcome.study,
            name=record.folder.name,
            id=key_of(record),
            dir=record.folder.parents[1].resolve(),
            resume="allow",
            reinit="create_new",  # lanes are open side by side
            settings=wandb.Settings(silent=True, console="off", **PATIENCE),
        )
        return _Run(run)


class _Run:
    def __init__(self, run: wandb.Run):
        self.run = run
        run.define_metric("*", step_metric="step")

    def begin(self, settings: Settings) -> None:
        self.run.config.update(dict(settings), allow_val_change=True)

    def numbers(self, values: Numbers, step: int) -> None:
        self.run.log({**values, "step": step})

    def end(self, status: str, reason: str, settings: Settings, values: Numbers) -> None:
        self.run.summary.update({**values, "status": status, "reason": reason})
        self.run.finish(exit_code=1 if status in ("failed", "stopped") else 0)
