"""What each stage asks of a cluster, in Snakemake's names for resources."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from primus.config.schema.keys import Stage
from primus.config.schema.settings import Settings

# A text resource that is not asked for; Snakemake has no null.
NONE = ""
NAMES = ("nodes", "gres", "cpus_per_task", "mem_mb", "runtime", "sbatch")

# What `slurm.extra` must not hold, and the key or resource that says it.
SET_ELSEWHERE = {
    "account": "slurm.account",
    "partition": "slurm.partition",
    "qos": "slurm.qos",
    "constraint": "slurm.constraint",
    "reservation": "slurm.reservation",
    "exclude": "slurm.exclude",
    "time": "slurm.time",
    "mem": "slurm.mem_mib",
    "signal": "slurm.warning_seconds",
    "gres": "slurm.gres",
    "gpus": "slurm.gres",
    "gpus-per-node": "slurm.gres",
    "nodes": "nodes",
    "ntasks": "nproc_per_node",
    "ntasks-per-node": "nproc_per_node",
    "cpus-per-task": "threads_per_rank",
    "job-name": "nothing: the pipeline names its jobs",
    "comment": "nothing: the pipeline finds its jobs by it",
    "output": "nothing: logs lie under output/logs/slurm",
    "error": "nothing: logs lie under output/logs/slurm",
    "wrap": "nothing: Snakemake writes the script",
    "array": "nothing: a job is one job",
}
_SHORT = {
    "A": "account",
    "p": "partition",
    "q": "qos",
    "C": "constraint",
    "x": "exclude",
    "t": "time",
    "G": "gpus",
    "N": "nodes",
    "n": "ntasks",
    "c": "cpus-per-task",
    "J": "job-name",
    "o": "output",
    "e": "error",
    "a": "array",
}


def resources(settings: Settings, stage: Stage, threads: int) -> Mapping[str, Any]:
    """A value for every name in NAMES.

    `shapes` takes one node, `tune` those of `gemm_tuning.nodes`, `train` all; `evaluate` one GPU;
    the others one node without GPUs.

    Args:
        threads: cores per node that the stage keeps busy.
    """
    slurm = settings.slurm
    with_ranks = stage in ("shapes", "tune", "train", "evaluate")
    gpus = _takes_gpus(settings, stage)
    nodes: dict[Stage, int] = {"tune": settings.gemm_tuning.nodes, "train": settings.nodes}
    each = 1 if stage == "evaluate" else settings.nproc_per_node
    everything = 0  # sbatch's word for all of a node's memory
    ranks_memory = slurm.mem_mib or (everything if gpus else slurm.cpu_mem_mib)
    return {
        "nodes": nodes.get(stage, 1),
        "gres": f"{slurm.gres}:{each}" if gpus and slurm.gres else NONE,
        "cpus_per_task": threads,
        "mem_mb": ranks_memory if with_ranks else slurm.cpu_mem_mib,
        "runtime": slurm.time if with_ranks else slurm.cpu_time,
        "sbatch": shlex.join(_options(settings, stage)),
    }


def _takes_gpus(settings: Settings, stage: Stage) -> bool:
    if stage == "shapes":
        return settings.platform != "cpu" and settings.gemm_tuning.shapes == "record"
    return settings.platform != "cpu" and stage in ("tune", "train", "evaluate")


def _options(settings: Settings, stage: Stage) -> list[str]:
    slurm = settings.slurm
    gpus = _takes_gpus(settings, stage)
    values = {
        "account": slurm.account,
        "partition": slurm.partition if gpus else slurm.cpu_partition or slurm.partition,
        "qos": slurm.qos,
        "constraint": slurm.constraint if gpus else None,
        "reservation": slurm.reservation,
        "exclude": slurm.exclude,
    }
    options = [f"--{name}={value}" for name, value in values.items() if value]
    return options + shlex.split(slurm.extra)


def repeated(extra: str) -> tuple[str, str] | None:
    """The first option in `slurm.extra` that is said elsewhere, and where; None without one.

    Raises:
        ValueError: a quotation mark is not closed.
    """
    for word in shlex.split(extra):
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
        elif word.startswith("-"):
            name = _SHORT.get(word[1:2], "")
        else:
            continue
        if name in SET_ELSEWHERE:
            return word, SET_ELSEWHERE[name]
    return None
