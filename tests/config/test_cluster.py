"""What stages ask of a cluster."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from config_root import Root

from primus.config.cluster import NAMES, repeated, resources
from primus.config.load import load
from primus.config.schema.keys import STAGES, Stage
from primus.config.schema.settings import Settings


def settings(root: Root, **changes: Any) -> Settings:
    return load("x", changes, root=root.path).settings


def asked(root: Root, stage: Stage, **changes: Any) -> Any:
    return resources(settings(root, **changes), stage, threads=3)


GPUS = {
    "platform": "cuda",
    "gemm_backend": "cublaslt",
    "nproc_per_node": 8,
    "global_batch_size": 64,
}


def test_every_stage_says_everything(root: Root) -> None:
    for stage in STAGES:
        assert tuple(asked(root, stage)) == NAMES


def test_training_takes_all_nodes_and_their_gpus(root: Root) -> None:
    found = asked(root, "train", **GPUS, nodes=2)
    assert (found["nodes"], found["gres"], found["mem_mb"]) == (2, "gpu:8", 0)
    assert found["sbatch"] == ""
    assert asked(root, "tune", **GPUS, nodes=2)["nodes"] == 1


def test_tuning_takes_the_nodes_that_it_is_given_and_the_dump_takes_one(root: Root) -> None:
    changes = GPUS | {"nodes": 4, "global_batch_size": 128, "gemm_tuning": {"nodes": 2}}
    wanted = {"shapes": 1, "tune": 2, "train": 4, "data": 1}
    for stage, nodes in wanted.items():
        assert asked(root, stage, **changes)["nodes"] == nodes  # type: ignore[arg-type]
    assert asked(root, "tune", **changes)["gres"] == "gpu:8"


def test_an_evaluation_takes_one_gpu(root: Root) -> None:
    found = asked(root, "evaluate", **GPUS, nodes=2)
    assert (found["nodes"], found["gres"]) == (1, "gpu:1")
    assert asked(root, "evaluate")["gres"] == ""


def test_stages_without_ranks_take_no_gpus_and_their_own_partition(root: Root) -> None:
    slurm = {"partition": "gpu", "cpu_partition": "small", "constraint": "h100", "account": "us"}
    wanted = {"train": "gpu", "tune": "gpu", "shapes": "gpu", "data": "small", "export": "small"}
    for stage, partition in wanted.items():
        found = asked(root, stage, **GPUS, slurm=slurm)  # type: ignore[arg-type]
        options = shlex.split(found["sbatch"])
        assert f"--partition={partition}" in options
        assert "--account=us" in options
        assert ("--constraint=h100" in options) == bool(found["gres"]) == (partition == "gpu")


def test_a_traced_list_of_shapes_needs_no_gpu(root: Root) -> None:
    found = asked(root, "shapes", **GPUS, gemm_tuning={"shapes": "trace"})
    assert found["gres"] == ""


def test_time_and_memory_are_those_of_the_configuration(root: Root) -> None:
    slurm = {"time": 60, "cpu_time": 30, "mem_mib": 900, "cpu_mem_mib": 500, "warning_seconds": 0}
    train, data = asked(root, "train", slurm=slurm), asked(root, "data", slurm=slurm)
    assert (train["runtime"], train["mem_mb"], train["sbatch"]) == (60, 900, "")
    assert (data["runtime"], data["mem_mb"]) == (30, 500)


def test_nothing_about_the_cluster_is_identity(root: Root) -> None:
    from primus.config.identity import identities

    def keys(**changes: Any) -> dict[str, str]:
        return {name: key.key for name, key in identities(settings(root, **changes)).items()}

    assert keys() == keys(slurm={"time": 7, "account": "us", "extra": "--nice=3"})
    assert keys() == keys(gemm_tuning={"nodes": 3})


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("", None),
        ("--nice=3 --licenses=a:2", None),
        ("--time=5", ("--time=5", "slurm.time")),
        ("--nice 3 -p main", ("-p", "slurm.partition")),
        ("-t5", ("-t5", "slurm.time")),
        ("--nodes 2", ("--nodes", "nodes")),
    ],
)
def test_an_option_that_is_said_elsewhere_is_found(
    extra: str, expected: tuple[str, str] | None
) -> None:
    assert repeated(extra) == expected
