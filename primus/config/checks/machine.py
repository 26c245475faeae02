"""The nodes: kernels, containers, what a cluster is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from primus.config.checks.fault import Context, Fault
from primus.config.cluster import repeated
from primus.config.mount import Mount


def tuning(s: Any, context: Context) -> Iterator[Fault]:
    """The GEMM backend has what it needs and fits the platform."""
    replay = s.gemm_tuning.replay_file
    if s.gemm_backend == "replay" and replay is None:
        why = "needs gemm_tuning.replay_file"
        yield Fault("gemm_backend", why, "add gemm_tuning: {replay_file: <recorded timings>}")
    if s.gemm_backend != "replay" and replay is not None:
        why = f"is read only by gemm_backend replay, and gemm_backend is {s.gemm_backend}"
        yield Fault("gemm_tuning.replay_file", why, "remove the line")
    missing = replay is not None and not os.path.isfile(context.root / replay)
    if s.gemm_backend == "replay" and missing and "tune" in context.stages:
        yield Fault("gemm_tuning.replay_file", "there is no such file", "name an existing file")
    platform = {"cpu": "cpu", "cublaslt": "cuda", "hipblaslt": "rocm"}.get(s.gemm_backend)
    if platform not in (None, s.platform):
        why = f"does not run on platform {s.platform}"
        fix = {"cpu": "cpu", "cuda": "cublaslt", "rocm": "hipblaslt"}[s.platform]
        yield Fault("gemm_backend", why, f"write {fix}")


def container(s: Any, _: Context) -> Iterator[Fault]:
    """A container runtime runs an image, which is no option, and mounts what can be mounted."""
    keys = s.container
    if keys.runtime == "none":
        return
    if not keys.image:
        yield Fault("container.image", "is required with a container runtime", "name the image")
    elif keys.image.startswith("-"):
        yield Fault("container.image", "is an option, not an image", "name the image")
    for text in keys.mounts:
        try:
            Mount.parse(text)
        except ValueError as error:
            yield Fault("container.mounts", str(error), "write /source or /source:/target")
    if keys.privileged and keys.runtime not in ("docker", "podman"):
        why = f"means nothing to {keys.runtime}"
        yield Fault("container.privileged", why, "write false")
    if s.gemm_tuning.nodes > 1:
        why = "is started by srun, which the image does not have"
        yield Fault("gemm_tuning.nodes", why, "write 1 with a container runtime")


def cluster(s: Any, _: Context) -> Iterator[Fault]:
    """Options for sbatch are said once, and can be read."""
    try:
        found = repeated(s.slurm.extra)
    except ValueError as error:
        yield Fault("slurm.extra", str(error).lower(), "close the quotation mark")
        return
    if found is not None:
        option, where = found
        yield Fault("slurm.extra", f"holds {option}", f"say it by {where}")
