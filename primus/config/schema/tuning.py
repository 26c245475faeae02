"""Offline GEMM tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from primus.config.schema.keys import Keys, key

Factor = Annotated[float, Field(gt=0)]


class GemmTuning(Keys):
    """Keys of the shape dump and of the search for faster kernels."""

    enabled: bool = key(True, doc="Tune, and train with the result.", identity="tune")
    shapes: Literal["record", "trace"] = key(
        "record",
        doc="Shapes from real training steps, or from a trace without memory or device.",
        identity="shapes",
    )
    record_iters: int = key(
        2, doc="Training steps of a record; all must agree.", identity="shapes", ge=1
    )
    budget_minutes: float = key(
        30.0, doc="Time for measurements; stops with the best so far.", identity="tune", gt=0
    )
    coverage: float = key(
        0.95,
        doc="Share of the GEMM time that is tuned, largest problems first.",
        identity="tune",
        gt=0,
        le=1,
    )
    min_gain: float | None = key(
        None,
        doc="A kernel replaces the default only if it is faster by this share, twice; "
        "null: the backend's own, 0.05 on a CPU and 0.02 on a GPU.",
        identity="tune",
        ge=0,
        lt=1,
    )
    expert_token_factors: list[Factor] = key(
        [0.5, 1.0, 2.0],
        doc="GEMMs of experts, whose number of tokens varies, are tuned at these multiples "
        "of the mean number.",
        identity="tune",
        min_length=1,
    )
    workspace_mib: int = key(
        32, doc="Memory that a GPU kernel may use beside its operands.", identity="tune", ge=0
    )
    step_rounds: int = key(
        6,
        doc="Rounds, in each of two runs, of whole training steps with and without the tuned "
        "kernels in turn, where one rank holds the model; 0: none.",
        identity="tune",
        ge=0,
    )
    problem_timeout_seconds: float = key(
        120.0, doc="Time limit for one problem.", identity="tune", gt=0
    )
    allow_lossy: bool = key(False, doc="Also consider kernels of lower precision.", identity="tune")
    require: bool = key(
        True, doc="A run in which no tuned kernel could be applied is an error.", option="train"
    )
    workers: int | None = key(
        None,
        doc="Measuring processes at a time on each node; null: one per device.",
        option="tune",
        ge=1,
    )
    nodes: int = key(
        1,
        doc="Nodes of a cluster that measure together; each must have the same devices and builds.",
        option="tune",
        ge=1,
    )
    store: str = key(
        "output/gemm/store", doc="Directory of every problem ever tuned.", option="tune"
    )
    replay_file: str | None = key(
        None, doc="Recorded timings for gemm_backend replay.", identity="tune"
    )
