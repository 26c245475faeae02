"""Which variables enter a container, by name: no value ever stands on a command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Set inside a container, to the image; what looks for it does not enter another one.
INSIDE = "PRIMUS_CONTAINER"

# Of the job and its place in it, of the libraries that ranks use, and of the hubs.
_PREFIXES = (
    *("SLURM_", "PRIMUS_"),
    *("NCCL_", "RCCL_", "MSCCLPP_", "GLOO_", "UCX_", "FI_"),
    *("CUDA_", "NVIDIA_", "HIP_", "HSA_", "ROCR_", "AMD_", "GPU_", "MIOPEN_"),
    *("HIPBLASLT_", "ROCBLAS_", "TENSILE_", "CUBLASLT_", "CUBLAS_"),
    *("NVTE_", "TORCH", "PYTORCH_", "TRITON_", "OMP_", "MKL_", "OPENBLAS_", "KMP_"),
    *("HF_", "WANDB_", "MLFLOW_"),
)
_NAMES = (
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "TMPDIR", "TZ", "USER", "LOGNAME"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
# Where software lies on the host says nothing about the image.
_PLACES = ("_PATH", "_HOME", "_ROOT", "_DIR")
_PLACES_THAT_ARE_MOUNTED = ("HF_HOME",)


def entering(inherited: Mapping[str, str], asked_for: Iterable[str]) -> list[str]:
    """Names of the variables that a command inside must get from this process's environment.

    Args:
        asked_for: names that somebody set for the ranks, whatever they are called.
    """
    wanted = {name for name in inherited if _belongs(name)} | set(asked_for)
    return sorted(name for name in wanted if name in inherited)


def _belongs(name: str) -> bool:
    if name in _NAMES or name in _PLACES_THAT_ARE_MOUNTED:
        return True
    return name.startswith(_PREFIXES) and not name.endswith(_PLACES)
