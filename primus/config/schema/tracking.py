"""Where the figures of a run go besides its own directory. Names are Megatron's, or Primus'."""

from __future__ import annotations

from primus.config.schema.keys import Keys, key


class Tracking(Keys):
    """Keys of the trackers; none is identity: a tracker changes nothing of a run."""

    tensorboard: bool = key(True, doc="Write event files for TensorBoard.", option="train")
    tensorboard_dir: str | None = key(
        None,
        doc="Where TensorBoard's event files go, in <experiment>/<key> below; null: tensorboard/ "
        "in the run's directory.",
        option="train",
        min_length=1,
    )
    wandb_project: str | None = key(
        None,
        doc="Project of Weights & Biases to which the run is logged, offline unless WANDB_MODE "
        "says otherwise; null: it is not.",
        option="train",
        min_length=1,
    )
    wandb_entity: str | None = key(
        None, doc="User or team that has the project; null: your own.", option="train", min_length=1
    )
    wandb_exp_name: str | None = key(
        None,
        doc="Name of the run there; null: experiment and key.",
        option="train",
        min_length=1,
    )
    mlflow_experiment_name: str | None = key(
        None,
        doc="Experiment of MLflow to which the run is logged, in the run's directory unless "
        "MLFLOW_TRACKING_URI says otherwise; null: it is not.",
        option="train",
        min_length=1,
    )
    mlflow_run_name: str | None = key(
        None,
        doc="Name of the run there; null: experiment and key.",
        option="train",
        min_length=1,
    )
