"""MLflow: one run of its for each of ours, nested in one for the study."""

from __future__ import annotations

import os
import time
from importlib import import_module

# A server that is gone stops nobody: read when mlflow is imported.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from tsugiki.runs.reading import RunRecord
from tsugiki.trackers.mlflow_runs import run_of
from tsugiki.trackers.tracker import Numbers, Settings, Tracker

EVERY_S, MOST = 5.0, 900  # it takes at most a thousand numbers at once


class MLflow(Tracker):
    """Writes to `MLFLOW_TRACKING_URI` (default: the file OUT/mlflow.db), experiment
    `MLFLOW_EXPERIMENT_NAME` (default: tsugiki)."""

    def __init__(self) -> None:
        super().__init__()
        self.address = os.environ.get("MLFLOW_TRACKING_URI")
        for needed in () if self.address else ("sqlalchemy", "alembic"):
            import_module(needed)

    def open(self, record: RunRecord, after: int | None) -> _Run:
        return _Run(*run_of(record, self.address))


class _Run:
    def __init__(self, client: MlflowClient, run: str, new: bool):
        self.client, self.run, self.new = client, run, new
        self.waiting, self.sent = list[Metric](), time.monotonic()

    def begin(self, settings: Settings) -> None:
        if self.new:  # what was written once cannot be changed
            params = [Param(name, str(value)) for name, value in settings.items()]
            self.client.log_batch(self.run, params=params)
        self.client.update_run(self.run, status="RUNNING")

    def numbers(self, values: Numbers, step: int, *, at_once: bool = False) -> None:
        now = int(time.time() * 1000)
        self.waiting += [Metric(name, value, now, step) for name, value in values.items()]
        if at_once or time.monotonic() - self.sent > EVERY_S or len(self.waiting) > MOST:
            self.client.log_batch(self.run, metrics=self.waiting)
            self.waiting, self.sent = [], time.monotonic()

    def end(self, status: str, reason: str, settings: Settings, values: Numbers) -> None:
        self.numbers({}, 0, at_once=True)
        self.client.set_tag(self.run, "tsugiki.status", f"{status}: {reason}" if reason else status)
        ended = {"failed": "FAILED", "stopped": "KILLED"}.get(status, "FINISHED")
        self.client.set_terminated(self.run, ended)
