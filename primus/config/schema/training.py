"""Batch, optimizer, schedule, and what is kept of a run. Names are Megatron's."""

from __future__ import annotations

from typing import Literal

from primus.config.schema.keys import Keys, key


class Training(Keys):
    """Keys of the training loop."""

    micro_batch_size: int = key(
        doc="Samples per rank and forward pass.", identity=("shapes", "train"), ge=1
    )
    global_batch_size: int = key(doc="Samples per iteration.", identity="train", ge=1)
    train_iters: int = key(doc="Iterations in all.", extent="train", ge=1)
    seed: int = key(
        1234, doc="Seed of weights, dropout and data order.", identity=("samples", "train"), ge=0
    )
    load_checkpoint: str | None = key(
        None,
        doc="Run or checkpoint to go on from, with all of its state, at this parallel layout; "
        "null: a fresh start.",
        identity="train",
    )
    load_hf: str | None = key(
        None,
        doc="Hugging Face model to start from: a directory, or a hub id such as org/name or "
        "org/name@revision; null: random weights.",
        identity=("weights", "train"),
    )

    lr: float = key(doc="Peak learning rate.", identity="train", gt=0)
    min_lr: float = key(0.0, doc="Final learning rate.", identity="train", ge=0)
    lr_decay_style: Literal["constant", "linear", "cosine", "WSD"] = key(
        "cosine", doc="Shape of the schedule.", identity="train"
    )
    lr_decay_iters: int | None = key(
        None,
        doc="Length of the schedule; null: train_iters, which then belongs to the identity.",
        identity="train",
        ge=1,
    )
    lr_warmup_iters: int = key(0, doc="Linear warm-up.", identity="train", ge=0)
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = key(
        "minus_sqrt", doc="Shape of WSD's final decay.", identity="train"
    )
    lr_wsd_decay_iters: int | None = key(
        None, doc="Length of WSD's final decay.", identity="train", ge=1
    )
    weight_decay: float = key(0.1, doc="Decoupled weight decay.", identity="train", ge=0)
    adam_beta1: float = key(0.9, doc="Decay of Adam's first moment.", identity="train", ge=0, lt=1)
    adam_beta2: float = key(
        0.95, doc="Decay of Adam's second moment.", identity="train", ge=0, lt=1
    )
    adam_eps: float = key(1e-8, doc="Adam's epsilon.", identity="train", gt=0)
    clip_grad: float = key(
        1.0, doc="Largest global gradient norm; 0: no clipping.", identity="train", ge=0
    )

    # Not identity: a run that met a bad batch can then go on, and without one nothing differs.
    skip_bad_batches: int = key(
        0,
        doc="Batches that a run may go on without, in all, when their loss or gradient is not "
        "finite; at one more it stops. The report lists them.",
        option="train",
        ge=0,
    )

    eval_interval: int | None = key(
        None, doc="Iterations between validations; null: only at the end.", option="train", ge=1
    )
    eval_iters: int = key(10, doc="Global batches per validation; 0: none.", identity="train", ge=0)
    save_interval: int = key(100, doc="Iterations between checkpoints.", option="train", ge=1)
    keep_last: int | None = key(
        None, doc="Newest checkpoints to keep; null: all.", option="train", ge=1
    )
    keep_every: int | None = key(
        None,
        doc="Checkpoints at a multiple of this many iterations are kept besides keep_last; "
        "null: no others.",
        option="train",
        ge=1,
    )
    async_save: bool = key(
        False,
        doc="Training goes on while a copy of the state in memory is written; the copy takes as "
        "much host memory as a checkpoint on disk.",
        option="train",
    )
    log_interval: int = key(10, doc="Iterations between log lines.", option="train", ge=1)
    num_workers: int = key(0, doc="Data loading processes per rank.", option="train", ge=0)
    distributed_timeout_minutes: float = key(
        10.0, doc="A collective that takes longer ends the attempt.", option="train", gt=0
    )
    hang_timeout_minutes: float | None = key(
        8.0,
        doc="A rank that does not get on for so long ends the attempt, with the stacks of all "
        "ranks; less than distributed_timeout_minutes, more than an iteration or a save takes. "
        "null: never.",
        option="train",
        gt=0,
    )
    start_timeout_minutes: float = key(
        60.0,
        doc="The same from the start of the ranks until their first iteration is finished: "
        "loading and compiling take longer.",
        option="train",
        gt=0,
    )
    lease_timeout_seconds: float = key(
        60.0,
        doc="A writer on another node whose heartbeat stands still for so long is taken for dead, "
        "and its run taken over. More than the file system ever stalls; where it is mounted so "
        "that nodes see old content (NFS with nocto), more than that takes (acregmax).",
        option="train",
        ge=1,
    )
