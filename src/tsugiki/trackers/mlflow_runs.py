"""Runs of MLflow, whose ids a server gives: found again by a tag."""

from __future__ import annotations

import os

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tsugiki.runs.reading import RunRecord
from tsugiki.trackers.tracker import key_of, study_key

TAG = "tsugiki.key"


def run_of(record: RunRecord, address: str | None) -> tuple[MlflowClient, str, bool]:
    """Who writes, the id of the run there, and whether it is new; `address` is that of a server or
    a file (default: OUT/mlflow.db)."""
    root, study = record.folder.parents[1].resolve(), record.outcome.study
    client = MlflowClient(address or f"sqlite:///{root / 'mlflow.db'}")
    parent = find_or_make(client, study_key(record), study)[0] if study else None
    return (client, *find_or_make(client, key_of(record), record.folder.name, parent))


def find_or_make(
    client: MlflowClient, key: str, name: str, parent: str | None = None
) -> tuple[str, bool]:
    """The run with that key, and whether it is new. Workers may make a study's at once: the
    earliest stays."""
    experiment = _experiment(client)
    if known := _with_key(client, experiment, key):
        return known[0], False
    tags = {TAG: key, **({MLFLOW_PARENT_RUN_ID: parent} if parent else {})}
    made = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    first = _with_key(client, experiment, key)[0]
    if first != made:
        client.delete_run(made)
    elif parent is None:
        client.set_terminated(made)  # a study's own run holds its runs, and nothing else
    return first, first == made


def _with_key(client: MlflowClient, experiment: str, key: str) -> list[str]:
    order = ["attributes.start_time ASC", "attributes.run_id ASC"]
    runs = client.search_runs([experiment], f"tags.`{TAG}` = '{key}'", order_by=order)
    return [run.info.run_id for run in runs]


def _experiment(client: MlflowClient) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tsugiki")
    known = client.get_experiment_by_name(name)
    return str(known.experiment_id if known else client.create_experiment(name))
