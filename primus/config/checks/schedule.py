"""Precision, learning rate and optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config.checks.fault import Context, Fault
from primus.config.schema.settings import Settings

_LOSS_SCALE = (
    "loss_scale",
    "initial_loss_scale",
    "min_loss_scale",
    "loss_scale_window",
    "hysteresis",
)


def precision(s: Any, _: Context) -> Iterator[Fault]:
    """One precision; float8 inside of bfloat16, by transformer-engine on a GPU."""
    if s.bf16 and s.fp16:
        yield Fault("fp16", "bf16 is true as well", "keep one of the two")
    if s.fp8 is None:
        return
    if not s.bf16:
        yield Fault("fp8", "needs bf16 for all that is not a GEMM", "add bf16: true")
    elif s.platform == "cpu":
        why = "needs a GPU and transformer-engine there (the extra 'gpu')"
        yield Fault("fp8", why, "write null, or other hardware")
    elif s.transformer_impl == "local":
        why = "needs transformer-engine, and transformer_impl is local"
        yield Fault("fp8", why, "write transformer_impl: auto, and install the extra 'gpu'")


def loss_scale(s: Any, _: Context) -> Iterator[Fault]:
    """A loss is scaled in fp16 only, by one constant or between two bounds."""
    fields = Settings.model_fields
    changed = [key for key in _LOSS_SCALE if getattr(s, key) != fields[key].default]
    if not s.fp16:
        for key in changed:
            why = "has no effect without fp16"
            yield Fault(key, why, "remove the line, or write fp16: true")
        return
    if s.loss_scale is not None:
        for key in changed[1:]:
            why = "belongs to a dynamic loss scale, and loss_scale is constant"
            yield Fault(key, why, "keep one of the two")
    elif s.min_loss_scale > s.initial_loss_scale:
        why = f"is above initial_loss_scale {s.initial_loss_scale:g}"
        yield Fault("min_loss_scale", why, f"write at most {s.initial_loss_scale:g}")


def learning_rate(s: Any, _: Context) -> Iterator[Fault]:
    """The parts of the learning-rate schedule fit into its length."""
    length = s.lr_decay_iters or s.train_iters
    if s.lr_warmup_iters >= length and s.lr_warmup_iters > 0:
        name = "lr_decay_iters" if s.lr_decay_iters else "train_iters"
        why = f"is not below the length of the schedule ({name} {length})"
        yield Fault("lr_warmup_iters", why, f"write at most {length - 1}")
    if s.min_lr > s.lr:
        yield Fault("min_lr", f"is above lr {s.lr}", f"write at most {s.lr}")
    if s.lr_decay_style != "WSD":
        return
    if s.lr_wsd_decay_iters is None:
        why = "is required where lr_decay_style is WSD"
        yield Fault("lr_wsd_decay_iters", why, "add it, for example a tenth of lr_decay_iters")
    elif s.lr_wsd_decay_iters > length - s.lr_warmup_iters:
        why = f"does not fit between the warm-up and the end of the schedule ({length})"
        yield Fault("lr_wsd_decay_iters", why, f"write at most {length - s.lr_warmup_iters}")


def overlap(s: Any, _: Context) -> Iterator[Fault]:
    """Parameters are gathered early only where they are sharded and gradients overlap."""
    if s.overlap_param_gather and not (s.use_distributed_optimizer and s.overlap_grad_reduce):
        why = "needs use_distributed_optimizer and overlap_grad_reduce"
        yield Fault("overlap_param_gather", why, "write false, or set both to true")


def checkpoints(s: Any, _: Context) -> Iterator[Fault]:
    """What keep_every names is saved at all, and keep_last would delete it."""
    if s.keep_every is None:
        return
    if s.keep_last is None:
        yield Fault("keep_every", "keep_last is null, which keeps all", "set keep_last as well")
    elif s.keep_every % s.save_interval:
        why = f"is no multiple of save_interval {s.save_interval}: nothing is saved there"
        nearest = max(1, round(s.keep_every / s.save_interval)) * s.save_interval
        yield Fault("keep_every", why, f"write {nearest}")
