"""On what and with which code something was made."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import psutil

from primus.artifacts.run import Environment

_LIBRARIES = (
    "megatron-core",
    "numpy",
    "safetensors",
    "snakemake",
    "tokenizers",
    "torch",
    "transformer-engine",
    "transformers",
)
# Variables that change what a run computes, how fast, or where: these, and all of some libraries.
_VARIABLES = (
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "PRIMUS_CONTAINER",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
)
_PREFIXES = (
    *("NCCL_", "RCCL_", "MSCCLPP_", "GLOO_", "UCX_", "FI_", "TORCH_", "PYTORCH_", "NVTE_"),
    *("CUDA_", "CUBLAS", "HIP_", "HSA_", "ROCR_", "GPU_", "HIPBLASLT_", "ROCBLAS_", "TENSILE_"),
    *("OMP_", "MKL_", "OPENBLAS_"),
)
# Whatever else a name says, this is not written into a file.
_SECRET = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|KEY", re.IGNORECASE)


def libraries() -> dict[str, str]:
    """Installed versions of the libraries that matter for a run."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def code_version() -> tuple[str, bool]:
    """Commit of this code and whether it was changed since; ("unknown", True) outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "primus")
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True
    return commit, bool(changed)


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def cpu_model() -> str:
    """Name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(
    *, platform_name: str, device: str, devices: int, variables: Iterable[str] = ()
) -> Environment:
    """The machine and software of this process.

    Args:
        variables: names to record besides the usual ones, such as those a hardware file sets.
    """
    commit, dirty = code_version()
    named = {*_VARIABLES, *variables, *(name for name in os.environ if name.startswith(_PREFIXES))}
    names = sorted(name for name in named if not _SECRET.search(name))
    return Environment(
        host=socket.gethostname(),
        platform=platform_name,
        device=device,
        devices=devices,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 2),
        python=platform.python_version(),
        libraries=libraries(),
        variables={name: os.environ[name] for name in names if name in os.environ},
        code_commit=commit,
        code_dirty=dirty,
    )
