"""The machine: what `configs/hardware/<name>.yaml` may hold."""

from __future__ import annotations

from typing import Literal

from primus.config.schema.keys import Keys, key


class Container(Keys):
    """In what the commands of a stage run."""

    runtime: Literal["none", "docker", "podman", "apptainer", "pyxis"] = key(
        "none", doc="Container runtime; none: on the host.", option=("shapes", "tune", "train")
    )
    image: str | None = key(None, doc="Image name or path.", option=("shapes", "tune", "train"))


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
        None, doc="Memory of one device; null: not checked.", gt=0
    )
    peak_tflops: PeakTflops = key(
        PeakTflops(), doc="Measured peak per device; null: measured on the spot.", option="train"
    )
    gemm_backend: Literal["cpu", "cublaslt", "hipblaslt", "replay"] = key(
        doc="Library whose kernels are tuned.", identity="tune"
    )
    env: dict[str, str] = key(
        {}, doc="Environment of every rank.", option=("shapes", "tune", "train")
    )
    container: Container = key(Container(), doc="Where the commands run.")
