"""The machine: what `configs/hardware/<name>.yaml` may hold."""

from __future__ import annotations

from typing import Literal

from primus.config.schema.keys import Keys, Stage, key

_CONTAINED: tuple[Stage, ...] = ("shapes", "tune", "train")


class Container(Keys):
    """In what the ranks, and the stages that measure, run."""

    runtime: Literal["none", "docker", "podman", "apptainer", "pyxis"] = key(
        "none", doc="Container runtime; none: on the host.", option=_CONTAINED
    )
    image: str | None = key(None, doc="Image name or path.", option=_CONTAINED)
    python: str = key(
        "python3", doc="The interpreter in the image.", option=_CONTAINED, min_length=1
    )
    mounts: list[str] = key(
        [],
        doc="Further directories, SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro; the repository, its "
        "output and every path in the settings are there anyway.",
        option=_CONTAINED,
    )
    privileged: bool = key(
        False, doc="Whether docker and podman lift their isolation.", option=_CONTAINED
    )
    options: list[str] = key(
        [], doc="Further options for the runtime's run, one per item.", option=_CONTAINED
    )


class PeakTflops(Keys):
    """Measured `torch.mm` maximum of one device on random data, in 10^12 FLOP/s."""

    fp32: float | None = key(None, doc="With float32 inputs.", gt=0)
    bf16: float | None = key(None, doc="With bfloat16 inputs.", gt=0)
    fp8: float | None = key(None, doc="With float8 inputs.", gt=0)


class Hardware(Keys):
    """Keys that describe the nodes on which an experiment runs."""

    platform: Literal["cpu", "cuda", "rocm"] = key(
        doc="Which of torch's device types the ranks use.", identity=("shapes", "tune", "train")
    )
    nproc_per_node: int = key(doc="Ranks per node.", identity="train", ge=1)
    threads_per_rank: int = key(
        1,
        doc="CPU threads of each rank (OMP_NUM_THREADS).",
        identity=("tune", "train"),
        ge=1,
    )
    device_memory_gib: float | None = key(
        None, doc="Memory of one device; null: not checked.", option="train", gt=0
    )
    peak_tflops: PeakTflops = key(
        PeakTflops(), doc="Measured peak per device; null: measured on the spot.", option="train"
    )
    gemm_backend: Literal["cpu", "cublaslt", "hipblaslt", "replay"] = key(
        doc="Library whose kernels are tuned.", identity="tune"
    )
    env: dict[str, str | None] = key(
        {}, doc="Environment of every rank; null: unset.", option=("shapes", "tune", "train")
    )
    container: Container = key(
        Container(), doc="In what the ranks, and the stages that measure, run."
    )
