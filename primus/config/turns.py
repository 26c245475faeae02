"""What a run asks of a cluster, in lines for the dry run: its jobs, and turns of training."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from primus.config.cluster import NONE
from primus.config.estimate import checkpoint_bytes, estimate
from primus.config.identity import stage_identity
from primus.config.newest import newest_first
from primus.config.paths import RUNS
from primus.config.summary import amount, duration
from primus.files import tail

# Settings that say how long an iteration takes; others may differ from those of an earlier run.
_SPEED = (
    *("model", "hardware", "platform", "nodes", "nproc_per_node", "threads_per_rank"),
    *("num_layers", "hidden_size", "ffn_hidden_size", "seq_length", "num_experts"),
    *("micro_batch_size", "global_batch_size", "bf16", "fp8", "recompute_granularity"),
    *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
    *("expert_model_parallel_size", "use_torch_fsdp2"),
)
_TAIL_BYTES = 1 << 16
# From a job's start to its first iteration: imports, meeting, loading. An allowance.
_START_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long an iteration takes, and how that is known."""

    seconds: float
    known: str


def asks(resources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for all stages that ask for the same.

    Args:
        resources: by stage, see `primus.config.cluster.resources`.
    """
    alike: dict[str, list[str]] = {}
    for stage, asked in resources.items():
        alike.setdefault(_asked(asked), []).append(stage)
    return [f"{', '.join(stages)}: {text}" for text, stages in alike.items()]


def _asked(asked: Mapping[str, Any]) -> str:
    nodes, memory = asked["nodes"], asked["mem_mb"]
    words = [f"{nodes} node{'s' if nodes > 1 else ''}"]
    words += [str(asked["gres"])] if asked["gres"] != NONE else []
    words.append(f"{asked['cpus_per_task']} cores")
    words.append(f"{memory} MiB" if memory else "all memory")
    words.append(f"{asked['runtime']} min")
    words += asked["sbatch"].split()
    return ", ".join(words)


def turns(s: Any, runs: Path = RUNS) -> str:
    """How many jobs' time the rest of the training takes."""
    finished, speed = done(s, runs), pace(s, runs)
    left = s.train_iters - finished
    if left <= 0:
        return f"no turn is left: {finished} of {s.train_iters} iterations are done"
    size = amount(checkpoint_bytes(s))
    told = s.slurm.warning_seconds
    saves = f"told to save {size} {told} s before" if told else "not told before"
    if speed is None:
        return (
            f"turns of {s.slurm.time} min, {saves} each ends; how many is not known: no run was "
            "measured, and hardware without peak_tflops gives no estimate"
        )
    usable = s.slurm.time * 60 - told - _START_SECONDS
    if usable <= speed.seconds:
        return (
            f"no iteration fits into a turn of {s.slurm.time} min, {saves} it ends. Fix: raise "
            "slurm.time or lower slurm.warning_seconds"
        )
    number = math.ceil(left * speed.seconds / usable)
    known = speed.known
    known += f", {finished} of {s.train_iters} iterations are done" if finished else ""
    plural = "s" if number != 1 else ""
    return (
        f"about {number} turn{plural} of {s.slurm.time} min, {saves} each ends "
        f"({duration(left * speed.seconds)} at {speed.seconds:.3g} s per iteration, {known})"
    )


def pace(s: Any, runs: Path = RUNS) -> Pace | None:
    """From this run, or the newest one of the experiment that was as fast; else an estimate."""
    mine = runs / s.experiment / stage_identity(s, "train").key
    alike = (path for path in (runs / s.experiment).glob("*") if path != mine and _alike(path, s))
    for path in (mine, *newest_first(alike)):
        rows = [row["seconds_per_iteration"] for row in _rows(path)]
        if rows:
            return Pace(seconds=statistics.median(rows), known=f"measured in {path.name}")
    expected = estimate(s)
    if expected is None:
        return None
    return Pace(seconds=expected.seconds_per_step, known="estimated from the plan")


def _alike(run: Path, s: Any) -> bool:
    for about in sorted(run.glob("attempts/*/about.json"), reverse=True):
        try:
            before = json.loads(about.read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError):
            return False
        return all(before.get(name) == getattr(s, name, None) for name in _SPEED if name in before)
    return False


def done(s: Any, runs: Path = RUNS) -> int:
    """The iteration that the run has come to."""
    run = runs / s.experiment / stage_identity(s, "train").key
    return max((int(row["iteration"]) for row in _rows(run)), default=0)


def _rows(run: Path) -> Sequence[Mapping[str, Any]]:
    """The last rows of a run's metrics; of a torn one nothing."""
    try:
        lines = tail(run / "metrics.jsonl", _TAIL_BYTES).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "seconds_per_iteration" in row:
            found.append(row)
    return found
