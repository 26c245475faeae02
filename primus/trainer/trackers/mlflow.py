"""MLflow: one run for all attempts, in the run's directory unless MLFLOW_TRACKING_URI is set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from primus.trainer.trackers import TrackedRun

_TAG = "primus.run"
# Of each kind of rows a value that every row has.
_ALWAYS = {"train": "learning-rate", "valid": "loss"}


class MLflow:
    """A row that is there already is not logged again: the store would keep both."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._logged = {kind: self._last(f"{kind}/{name}") for kind, name in _ALWAYS.items()}

    def _last(self, name: str) -> int:
        history = self._client.get_metric_history(self._run_id, name)
        return max((int(metric.step) for metric in history), default=-1)

    def log(self, kind: str, values: Mapping[str, float], iteration: int, time: float) -> None:
        """As `Tracker.log`."""
        from mlflow.entities import Metric

        if iteration <= self._logged[kind]:
            return
        milliseconds = int(1000 * time)
        metrics = [Metric(f"{kind}/{n}", v, milliseconds, iteration) for n, v in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)
        self._logged[kind] = iteration

    def close(self, *, finished: bool) -> None:
        """As `Tracker.close`."""
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")


def open_tracker(run: TrackedRun) -> MLflow:
    """The run that carries experiment and key in a tag; made where there is none."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A database would need more packages, and be one file that a network file system may damage.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    place = os.environ.get("MLFLOW_TRACKING_URI") or (run.directory / "mlflow").absolute().as_uri()
    client = MlflowClient(tracking_uri=place)
    name, own = run.settings.mlflow_experiment_name, f"{run.experiment}/{run.key}"
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment is not None else client.create_experiment(name)
    found = client.search_runs([number], filter_string=f"tags.`{_TAG}` = '{own}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        shown = run.settings.mlflow_run_name or f"{run.experiment}-{run.key}"
        run_id = client.create_run(number, run_name=shown, tags={_TAG: own}).info.run_id
        for key, value in sorted(run.values.items()):
            client.log_param(run_id, key, str(value)[:500])
    return MLflow(client, run_id)
