"""Watch the GEMMs of training steps: the trainer's steps inside the GEMM recorder."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import distributed

from primus.config.frozen import StageSettings
from primus.errors import TrainingError
from primus.gemm.record import GemmRecorder
from primus.trainer.platform import install

Calls = Counter[Any]


def _recorders(recorded: list[GemmRecorder]) -> Any:
    def around() -> GemmRecorder:
        recorded.append(GemmRecorder())
        return recorded[-1]

    return around


def record(settings: StageSettings) -> Calls | None:
    """Record `gemm_tuning.record_iters` real steps on this rank and join what the ranks saw.

    Returns:
        calls per micro-batch; None on every rank but the first.

    Raises:
        TrainingError: two steps called different GEMMs.
    """
    torch.set_num_threads(1)
    device = install(settings.platform)
    # The recorder sees what reaches the dispatcher, which compiled regions do not.
    torch.compiler.set_stance("force_eager")
    from primus.trainer import parallel
    from primus.trainer.dry_steps import train_steps

    parallel.initialize(settings, timeout_minutes=10)
    recorded: list[GemmRecorder] = []
    train_steps(settings, device, settings.gemm_tuning.record_iters, _recorders(recorded))
    first = recorded[0].calls
    for number, recorder in enumerate(recorded[1:], start=2):
        if recorder.calls != first:
            raise TrainingError(f"step {number} called other GEMMs than step 1")
    own = first if parallel.sees_all_gemms() else Counter()
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, own)
    leader = distributed.get_rank() == 0
    distributed.destroy_process_group()
    return sum(parts, Counter()) if leader else None


def trace(settings: StageSettings) -> Calls:
    """The same list from fake tensors; needs neither the memory nor the device of the settings."""
    install("cpu")
    torch.compiler.set_stance("force_eager")
    from primus.trainer.dry_steps import trace_micro_batch

    # The platform decides only where tensors lie, and these lie nowhere.
    here = StageSettings.of(
        "shapes", settings.as_dict() | {"platform": "cpu"}, experiment=settings.experiment
    )
    recorded: list[GemmRecorder] = []
    trace_micro_batch(here, _recorders(recorded))
    return sum((recorder.calls for recorder in recorded), Counter())
