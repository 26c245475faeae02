"""Checks of the nodes before a training starts: nothing here changes what the training makes."""

from __future__ import annotations

from primus.config.schema.keys import Keys, key


class Preflight(Keys):
    """Keys of the checks of the nodes."""

    enabled: bool | None = key(
        None,
        doc="Check the nodes before every start of a training; null: where it takes several.",
        option="train",
    )
    exclude: bool = key(
        False,
        doc="On SLURM: give the job back to the queue without the nodes that are broken; "
        "otherwise the training fails and names them.",
        option="train",
    )
    max_excluded: int = key(
        4, doc="Most nodes that one job does without in the end.", option="train", ge=1
    )
    gemm_fraction: float = key(
        0.8,
        doc="A device whose GEMMs reach less than this share of peak_tflops, or of the median of "
        "all devices where that is null, is broken; below halfway to 1 it is slow.",
        option="train",
        gt=0,
        lt=1,
    )
    bandwidth_fraction: float = key(
        0.5,
        doc="The same for collectives, against the median of all nodes.",
        option="train",
        gt=0,
        lt=1,
    )
    min_bandwidth_inside: float | None = key(
        None,
        doc="Bus bandwidth of an all-reduce over one node's ranks, GB/s; null: not asked.",
        option="train",
        gt=0,
    )
    min_bandwidth_between: float | None = key(
        None,
        doc="Bus bandwidth of an all-reduce over two nodes' ranks, GB/s; null: not asked.",
        option="train",
        gt=0,
    )
    min_disk_mb: float | None = key(
        None,
        doc="What each node must write into the run's directory, MB/s; null: not asked.",
        option="train",
        gt=0,
    )
    seconds: float = key(
        300.0,
        doc="Time limit of all checks; what has not answered by then is broken.",
        option="train",
        ge=10,
    )
