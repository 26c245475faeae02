"""What a rank puts together before it trains: kernels, model, optimizer, data, metrics."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

import primus.trainer.trackers.tensorboard  # noqa: F401 - before ranks are forked
from primus.artifacts.run import TunedUse
from primus.artifacts.tokens import SamplesManifest
from primus.config.flops import flops_per_token
from primus.config.frozen import StageSettings
from primus.dataset.order import batch_indices
from primus.dataset.samples import SplitName, open_split
from primus.errors import DataError, TrainingError, UserError
from primus.gemm.applied import Applied, merged
from primus.gemm.peak import measure_peak
from primus.gemm.tuned import TunedResult
from primus.huggingface.read import fill
from primus.huggingface.start import open_start, verify
from primus.trainer import parallel, started_from
from primus.trainer.batches import Order, micro_batches
from primus.trainer.checkpoint import TrainingState, load_other, seen_by_first
from primus.trainer.fully_sharded import holder
from primus.trainer.loop import Run
from primus.trainer.metrics import Metrics
from primus.trainer.model import model_config, params_dtype
from primus.trainer.optimizer import build_optimizer, build_scheduler
from primus.trainer.start_weights import load_weights
from primus.trainer.trackers import TrackedRun, Trackers

if TYPE_CHECKING:
    MicroBatches = Iterator[dict[str, Tensor]]

_GEMM_TYPES = {torch.float32: "f32_r", torch.bfloat16: "bf16_r", torch.float16: "f16_r"}
_PEAK_KEYS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "bf16"}


def prepare(
    settings: StageSettings,
    args: argparse.Namespace,
    device: torch.device,
    tuned: TunedResult | None,
    applied: Applied | None,
    stop_requested: Callable[[], bool],
) -> tuple[Run, TrainingState]:
    """Everything of an attempt, at iteration 0 and with fresh weights.

    Args:
        args: the command line of `primus.train_rank`.
        tuned, applied: the tuned result and how it is used; None without one.
    """
    config = model_config(settings, applied.gemm if applied is not None else None)
    chunks = parallel.wrap(settings, config, parallel.build_chunks(settings, config))
    optimizer = build_optimizer(settings, chunks)
    config.grad_scale_func = optimizer.scale_loss
    state = TrainingState(
        chunks=chunks, optimizer=optimizer, scheduler=build_scheduler(settings, optimizer)
    )
    about = json.loads(args.about.read_text()) | {
        "attempt": args.attempt,
        "layout": parallel.layout(settings),
    }
    leader = distributed.get_rank() == 0
    run = Run(
        settings=settings,
        directory=args.run_directory,
        attempt=args.attempt,
        train_batches=_batches(settings, args.samples, "train", device),
        valid_batches=_valid(settings, args.samples, device),
        flops_per_token=flops_per_token(settings),
        peak_tflops=_peak(settings, tuned, device),
        about=about,
        metrics=_metrics(settings, args, about) if leader else None,
        stop_requested=stop_requested,
        after_first_iteration=lambda: _require_tuned(settings, applied),
    )
    return run, state


def _metrics(
    settings: StageSettings, args: argparse.Namespace, about: Mapping[str, Any]
) -> Metrics:
    tracked = TrackedRun(
        directory=args.run_directory,
        experiment=settings.experiment,
        key=settings.key,
        attempt=args.attempt,
        settings=settings,
        values=about["settings"],
    )
    trackers = Trackers(tracked)
    return Metrics(args.run_directory, train_iters=settings.train_iters, trackers=trackers)


def _require_tuned(settings: StageSettings, applied: Applied | None) -> None:
    """Refuse to train on when the tuned result applies to nothing on any rank; collective.

    Raises:
        TrainingError: no product was among the tuned problems, and `gemm_tuning.require` is set.
    """
    if not settings.gemm_tuning.require:
        return
    use = tuned_use(applied)
    if use is not None and use.hits + use.defaults == 0:
        raise TrainingError(
            f"gemm_tuning.require = true: none of {use.misses + use.rejections} GEMM calls of the "
            "first iteration is in the tuned result. Fix: tune again for these settings "
            "(snakemake tune_<experiment>), or set gemm_tuning.require to false"
        )


def _batches(
    settings: StageSettings, samples: Path, split: SplitName, device: torch.device
) -> Callable[[int], MicroBatches]:
    dataset: Any = open_split(samples, split, eod_mask_loss=settings.eod_mask_loss)
    seed = SamplesManifest.load(samples).seed
    size = len(dataset)
    rank, ranks = parallel.data_parallel()
    order: Order = (
        _walk(settings.global_batch_size, size, seed)
        if split == "train"
        else _straight(settings.global_batch_size, size)
    )

    def from_sample(consumed_samples: int) -> MicroBatches:
        return micro_batches(
            dataset,
            order,
            consumed_samples=consumed_samples,
            global_batch_size=settings.global_batch_size,
            micro_batch_size=settings.micro_batch_size,
            rank=rank,
            ranks=ranks,
            device=device,
            num_workers=settings.num_workers if split == "train" else 0,
        )

    return from_sample


def _valid(
    settings: StageSettings, samples: Path, device: torch.device
) -> Callable[[], MicroBatches] | None:
    if settings.eval_iters == 0:
        return None
    from_sample = _batches(settings, samples, "valid", device)
    # Every validation reads the same samples.
    return lambda: from_sample(0)


def _walk(batch: int, size: int, seed: int) -> Order:
    return lambda consumed: batch_indices(consumed, batch, size, seed)  # type: ignore[return-value]


def _straight(batch: int, size: int) -> Order:
    def order(consumed: int) -> Sequence[int]:
        return [(consumed + number) % size for number in range(batch)]

    return order


def load_start_weights(settings: StageSettings, state: TrainingState, path: Path) -> None:
    """Fill a model at iteration 0 from the Hugging Face model of a weights manifest; collective.

    Raises:
        DataError: the model's files changed, or do not hold what the settings describe.
    """
    rank, world = distributed.get_rank(), distributed.get_world_size()
    problem = None
    try:
        verify(path, part=rank, parts=world)
    except DataError as error:
        problem = str(error)
    problems: list[Any] = [None] * world
    distributed.all_gather_object(problems, problem)
    if any(problems):
        raise DataError("\n".join(filter(None, problems)))
    directory, family = open_start(path, settings)
    load_weights(
        [holder(chunk) for chunk in state.chunks],
        family.rules(settings),
        lambda rule, target, offset: fill(directory, rule, target, offset),
    )
    state.optimizer.reload_model_params()
    if rank == 0:
        print(f"starting from {directory.path}", flush=True)


def _peak(settings: StageSettings, tuned: TunedResult | None, device: torch.device) -> float | None:
    dtype = params_dtype(settings)
    configured = getattr(settings.peak_tflops, _PEAK_KEYS[dtype])
    if configured is not None:
        return float(configured)
    if tuned is not None and _GEMM_TYPES[dtype] in tuned.header.peak_tflops:
        return tuned.header.peak_tflops[_GEMM_TYPES[dtype]]
    box = [measure_peak(dtype, device.type) if distributed.get_rank() == 0 else 0.0]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def tuned_use(applied: Applied | None) -> TunedUse | None:
    """What became of the tuned kernels on all ranks together; collective.

    Ranks may know different problems: those of another pipeline stage.
    """
    if applied is None:
        return None
    uses: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(uses, applied.use())
    return merged(uses)


def load_other_run(settings: StageSettings, state: TrainingState, directory: Path | None) -> str:
    """Go on from the checkpoint that `load_checkpoint` names, whatever its layout; collective.

    Args:
        directory: of this run, which notes what it has started from; None: nothing is noted.

    Returns:
        what was loaded, for the attempt's record.

    Raises:
        UserError: there is no good checkpoint, it does not fit, or it has reached `train_iters`.
    """
    named = Path(settings.load_checkpoint)
    (chosen,) = seen_by_first(lambda: [started_from.choose(named, directory)])
    manifest = load_other(state, chosen, parallel.layout(settings))
    if state.iteration >= settings.train_iters:
        raise UserError(
            f"load_checkpoint = {settings.load_checkpoint}: is at iteration {state.iteration} "
            f"already. Fix: raise train_iters, which is {settings.train_iters}"
        )
    if directory is not None and distributed.get_rank() == 0:
        started_from.note(directory, chosen)
    return f"{settings.load_checkpoint} of run {manifest.key} at iteration {state.iteration}"
