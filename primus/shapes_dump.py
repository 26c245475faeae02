"""Watch the GEMMs of training steps: the trainer's steps inside the GEMM recorder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from primus.config.frozen import StageSettings
from primus.errors import TrainingError
from primus.gemm.record import GemmRecorder, Recorded
from primus.gemm.shapes import write_shapes
from primus.trainer.platform import install

# Keys that training steps need and that no shape depends on: any legal value will do.
_NEUTRAL = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_eps": 1e-8,
    "attention_dropout": 0.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "clip_grad": 1.0,
    "eod_mask_loss": False,
    "hidden_dropout": 0.0,
    "hysteresis": 2,
    "init_method_std": 0.02,
    "initial_loss_scale": 2.0**32,
    "load_checkpoint": None,
    "loss_scale": None,
    "loss_scale_window": 1000,
    "lr": 1e-4,
    "max_position_embeddings": 1 << 20,
    "min_loss_scale": 1.0,
    "min_lr": 0.0,
    "moe_aux_loss_coeff": 0.0,
    "moe_router_bias_update_rate": 0.0,
    "moe_router_enable_expert_bias": False,
    "moe_router_force_load_balancing": False,
    "moe_router_group_score": "max",
    "moe_router_group_topk": None,
    "moe_router_load_balancing_type": "none",
    "moe_router_num_groups": None,
    "moe_router_pre_softmax": True,
    "moe_router_score_function": "softmax",
    "moe_router_topk_scaling_factor": None,
    "moe_z_loss_coeff": None,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
    "mtp_loss_scaling_factor": 0.1,
    "norm_epsilon": 1e-5,
    "original_max_position_embeddings": 4096,
    "overlap_grad_reduce": False,
    "overlap_param_gather": False,
    "rope_scaling_factor": 8.0,
    "rope_type": "rope",
    "rotary_base": 1e4,
    "rotary_scaling_factor": 1.0,
    "seed": 1234,
    "untie_embeddings_and_output_weights": True,
    "use_distributed_optimizer": False,
    "use_rope_scaling": False,
    "weight_decay": 0.1,
}


def dump(settings: StageSettings, output: Path) -> None:
    """Write shapes.jsonl as `gemm_tuning.shapes` asks; on the first rank only."""
    source = settings.gemm_tuning.shapes
    found = (trace if source == "trace" else record)(complete(settings))
    if found is None:
        return
    shapes = write_shapes(
        output, found.calls, source=source, model=settings.identity, varying=found.varying
    )
    number = sum(shape.calls for shape in shapes)
    print(f"{source}: {number} GEMMs per micro-batch, {len(shapes)} distinct problems")


def complete(settings: StageSettings) -> StageSettings:
    """The stage's settings with legal values for what training reads and no shape depends on."""
    return StageSettings.of(
        "shapes", _NEUTRAL | settings.as_dict(), experiment=settings.experiment, key=settings.key
    )


def _recorders(recorded: list[GemmRecorder]) -> Any:
    def around() -> GemmRecorder:
        recorded.append(GemmRecorder())
        return recorded[-1]

    return around


def record(settings: StageSettings) -> Recorded | None:
    """Record `gemm_tuning.record_iters` real steps on this rank and join what the ranks saw.

    Returns:
        the GEMMs of a micro-batch; None on every rank but the first.

    Raises:
        TrainingError: two steps called different GEMMs.
    """
    torch.set_num_threads(1)
    with groups(settings) as device:
        return record_in_groups(settings, device)


@contextmanager
def groups(settings: StageSettings) -> Iterator[torch.device]:
    """Megatron's process groups of this rank, and its device."""
    device = install(settings.platform)
    from primus.trainer import parallel

    parallel.initialize(settings, timeout_minutes=10)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def record_in_groups(
    settings: StageSettings,
    device: torch.device,
    *,
    iterations: int | None = None,
    gemm: Any | None = None,
) -> Recorded | None:
    """As `record`, in Megatron's process groups, which must exist.

    Args:
        iterations: instead of `gemm_tuning.record_iters`.
        gemm: what multiplies matrices; None for torch itself.
    """
    # The recorder sees what reaches the dispatcher, which compiled regions do not.
    torch.compiler.set_stance("force_eager")
    from primus.trainer import parallel
    from primus.trainer.dry_steps import train_steps

    recorded: list[GemmRecorder] = []
    steps = settings.gemm_tuning.record_iters if iterations is None else iterations
    train_steps(settings, device, steps, _recorders(recorded), gemm)
    first = recorded[0].recorded
    for number, recorder in enumerate(recorded[1:], start=2):
        if recorder.calls != first.calls:
            raise TrainingError(f"step {number} called other GEMMs than step 1")
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, first if parallel.sees_all_gemms() else Recorded())
    return Recorded.joined(parts) if distributed.get_rank() == 0 else None


def trace(settings: StageSettings) -> Recorded:
    """The same list from fake tensors; needs neither the memory nor the device of the settings."""
    install("cpu")
    torch.compiler.set_stance("force_eager")
    from primus.trainer.dry_steps import trace_micro_batch
    from primus.trainer.linear import TorchGemm

    # The platform decides where tensors lie, and these lie nowhere, and whether torch's GEMMs add
    # to float32 themselves (`primus.trainer.linear`).
    gemm = TorchGemm(into_float32=settings.platform == "cuda")
    here = StageSettings.of(
        "shapes", settings.as_dict() | {"platform": "cpu"}, experiment=settings.experiment
    )
    recorded: list[GemmRecorder] = []
    trace_micro_batch(here, _recorders(recorded), gemm)
    return Recorded.joined(recorder.recorded for recorder in recorded)
