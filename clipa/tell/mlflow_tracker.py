"""MLflow. The server and the experiment come from its own variables: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import os

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Plan
from clipa.tell.stream import Back, Told

_TAG = "clipa.run"


class Mlflow:
    """One run there for one run here. Its id is the server's, so it is found again by a tag."""

    def __init__(self, run: RunDir, plan: Plan, _told: int) -> None:
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "clipa"
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {_TAG: run.id, "clipa.group": plan.group, "clipa.kind": plan.kind, "clipa.recipe": plan.recipe}
            made = self._client.create_run(experiment, tags=tags, run_name=plan.name or run.id)
            self._id = made.info.run_id
            for key, value in (("recipe", plan.recipe), ("seed", plan.seed), ("steps", plan.steps)):
                self._client.log_param(self._id, key, value)

    def back(self, back: Back) -> None:
        """Nothing: what comes again is left out before it comes here."""

    def tell(self, told: Told) -> None:
        """Add the values of one step; the same once more changes nothing, since their moment is the event's."""
        when = round(told.t * 1000)
        self._client.log_batch(
            self._id, metrics=[Metric(name, value, when, told.step) for name, value in told.values.items()]
        )

    def flush(self) -> None:
        """Every call is a request of its own."""

    def close(self) -> None:
        """The process ends; whether the run does, its next attempt shows."""
        self._client.set_terminated(self._id, status="FINISHED")
