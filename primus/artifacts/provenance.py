"""On what and with which code something was made."""

from __future__ import annotations

import os
import platform
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
# Variables that change what a run computes or where it runs. Never a token: names, not patterns.
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "GLIBC_TUNABLES",
    "HIP_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
)


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
    names = sorted({*_VARIABLES, *variables})
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
