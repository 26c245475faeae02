"""What a SLURM cluster must know of the jobs: nothing here changes what a stage makes."""

from __future__ import annotations

from primus.config.schema.keys import Keys, key


class Slurm(Keys):
    """Keys for `--profile slurm`; names are those of sbatch."""

    account: str | None = key(None, doc="Account that pays; null: the user's default.")
    partition: str | None = key(None, doc="Partition of jobs; null: the cluster's default.")
    cpu_partition: str | None = key(
        None, doc="Partition of stages that need no GPU; null: that of the others."
    )
    qos: str | None = key(None, doc="Quality of service.")
    constraint: str | None = key(None, doc="Features that nodes must have.")
    reservation: str | None = key(None, doc="Reservation to run in.")
    exclude: str | None = key(None, doc="Nodes to leave out.")
    gres: str | None = key(
        "gpu", doc="Name of a node's GPUs as in --gres, such as gpu:h100; null: do not ask."
    )
    time: int = key(
        1440, doc="Minutes that a job of a stage with ranks may run; train goes on after it.", ge=1
    )
    cpu_time: int = key(240, doc="Minutes that a job without ranks may run.", ge=1)
    mem_mib: int | None = key(
        None, doc="Memory per node of stages with ranks; null: all of a GPU node's.", ge=1
    )
    cpu_mem_mib: int = key(16000, doc="Memory of stages without ranks, in MiB.", ge=1)
    warning_seconds: int = key(
        300,
        doc="How long before its time is over training is told to save and stop, besides what its "
        "longest save took.",
        option="train",
        ge=0,
    )
    extra: str = key("", doc="Further options for sbatch, as on its command line.")
