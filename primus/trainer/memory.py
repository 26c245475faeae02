"""When a rank gets no memory: how that is recognised, and what to change. No torch here."""

from __future__ import annotations

from primus.config.frozen import StageSettings
from primus.errors import OutOfMemoryError
from primus.ranks import ends


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left; torch says so in a RuntimeError."""
    return ends.lacks_memory([f"{type(error).__name__}: {error}"])


def out_of_memory(settings: StageSettings, rank: int, error: BaseException) -> OutOfMemoryError:
    """What to raise in place of `error`."""
    said = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return OutOfMemoryError(f"rank {rank} is out of memory: {said}. Fix: {advice(settings)}")


def advice(settings: StageSettings) -> str:
    """What of the settings to change so that a rank needs less, the cheapest first."""
    found = []
    if settings.recompute_granularity is None:
        found.append("recompute_granularity: full (slower, the same losses)")
    if settings.micro_batch_size > 1:
        found.append(f"micro_batch_size: {settings.micro_batch_size // 2}")
    if not settings.use_distributed_optimizer and not settings.use_torch_fsdp2:
        found.append("use_distributed_optimizer: true")
    found.append(
        f"tensor_model_parallel_size: {2 * settings.tensor_model_parallel_size}, "
        "pipeline_model_parallel_size, or more nodes"
    )
    return "one of " + "; ".join(found) + ". The same command fails again until something is"
