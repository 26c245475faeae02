"""Short segments of an experiment's own training, with the tuned kernels and without, in turns.

A segment is a whole launch: all ranks of the training start as they do for it, on its nodes, in
its layout and its container, train its samples in its batches from its first weights, and end. The
segment of the other kernels starts after that. So one way serves all libraries: what hipBLASLt and
cuBLASLt override is read when a process starts and cannot be switched in it, two copies of a model
that fills its GPUs cannot be there at once, and ranks that only wait would still take part of the
machine from those at work (NCCL waits on the device). That costs a start per segment. It also
buys something: where a process happens to lie in memory makes all of its steps faster or slower,
alike, and must not be taken for a difference of kernels. With a process per segment it scatters
from round to round with the rest of the noise.

Within one process, and without a start for each, the tune stage times steps of one micro-batch
(`primus.tune_steps`).

A round is a segment of either kernels; who comes first changes from round to round: A B B A A B.
All segments train the same iterations, so that their losses can be compared one by one.
"""

from __future__ import annotations

import shutil
import signal
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from primus.artifacts.ab import Kernels, Segment
from primus.config.frozen import StageSettings
from primus.config.merge import merge
from primus.errors import PreemptedError, TrainingError
from primus.files import atomic_write, canonical_json, parse_json
from primus.gemm.measure import turns
from primus.launch import Ranks
from primus.trainer.supervise import start_ranks, training_ranks

_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
_NEVER = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, and for how long.

    Attributes:
        settings: of the train stage.
        directory: for files of the ranks, on a file system that all nodes see; it is removed
            where all went well.
        tuned: the tuned result. variables: under which ranks use it.
        weights: manifest of the start weights; None: random ones.
        rounds: each of a segment of either kernels.
        warm_up, steps: iterations of a segment that are not timed, and those that are.
        deadline: `time.monotonic()` at which no more segments are run.
        over: what is over then, for people.
    """

    settings: StageSettings
    directory: Path
    samples: Path
    tuned: Path
    variables: Mapping[str, str]
    weights: Path | None
    rounds: int
    warm_up: int
    steps: int
    deadline: float
    over: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """Segments of whole rounds, in their order; the ranks' device; whether time ran out."""

    segments: list[Segment]
    device: str
    late: bool


def run_segments(asked: Comparison) -> Found:
    """Run the segments one after another.

    Raises:
        TrainingError: the ranks of one failed, or not one round was over in time.
        PreemptedError: told to stop.
    """
    settings = asked.directory / "settings.json"
    _for_a_moment(asked).save(settings)
    sides: tuple[Kernels, Kernels] = ("default", "tuned")
    segments: list[Segment] = []
    device = ""
    for number, order in enumerate(turns(sides, asked.rounds)):
        pair: list[Segment] = []
        for kernels in order:
            made = _segment(asked, settings, number, "tuned" if kernels == "tuned" else "default")
            if made is None:
                return _found(asked, segments, device, late=True)
            pair.append(made[0])
            device = made[1]
        segments += pair
        print(_line(pair, asked.rounds), flush=True)
    return _found(asked, segments, device, late=False)


def _found(asked: Comparison, segments: list[Segment], device: str, *, late: bool) -> Found:
    if not segments:
        raise TrainingError(
            f"{asked.over} before one round was. Fix: raise ab.minutes, in a job also slurm.time, "
            "or lower ab.steps_per_segment"
        )
    shutil.rmtree(asked.directory, ignore_errors=True)
    return Found(segments=segments, device=device, late=late)


def _line(pair: list[Segment], rounds: int) -> str:
    typical = {one.kernels: statistics.median(one.seconds) for one in pair}
    told = ", ".join(f"{kernels} {typical[kernels]:.4g}" for kernels in ("default", "tuned"))
    return f"round {pair[0].round + 1} of {rounds}: seconds per step: {told}"


def _for_a_moment(asked: Comparison) -> StageSettings:
    """The settings of a training of which nothing stays, and that nobody is told about."""
    settings = asked.settings
    changes = {
        # A segment ends before; a run that goes on from elsewhere must have something left.
        "train_iters": settings.train_iters + asked.warm_up + asked.steps + 1,
        "save_interval": _NEVER,
        "async_save": False,
        "eval_iters": 0,
        "tensorboard": False,
        "wandb_project": None,
        "mlflow_experiment_name": None,
        # Nothing is told as a share of it, and measuring it takes a second.
        "peak_tflops": {"fp32": 1.0, "bf16": 1.0},
    }
    return StageSettings(
        stage="train",
        experiment=settings.experiment,
        key=settings.key,
        identity=settings.identity,
        extent=settings.extent,
        options=merge(settings.options, changes),
        upstream=settings.upstream,
    )


def _segment(
    asked: Comparison, settings: Path, number: int, kernels: Kernels
) -> tuple[Segment, str] | None:
    """Start the ranks and wait for them; None where time is over."""
    left = asked.deadline - time.monotonic()
    if left <= 0:
        return None
    directory = asked.directory / f"{number:03d}-{kernels}"
    directory.mkdir()
    with atomic_write(directory / "about.json") as stream:
        stream.write(canonical_json({"settings": {}}))
    ranks = _ranks(asked, settings, directory, number, kernels)
    status = start_ranks(ranks, limit=left)
    output = directory / "segment.json"
    if not output.exists():
        if time.monotonic() >= asked.deadline:
            return None
        if status in _STOPPED:
            raise PreemptedError("told to stop", advanced=False)
        raise TrainingError(
            f"round {number + 1}: the ranks with the {kernels} kernels ended with exit status "
            f"{status}; why is said above. Logs: {directory}"
        )
    content = parse_json(output.read_text(encoding="utf-8"))
    return Segment.model_validate(content["segment"]), str(content["device"])


def _ranks(
    asked: Comparison, settings: Path, directory: Path, number: int, kernels: Kernels
) -> Ranks:
    tuned = kernels == "tuned"
    return training_ranks(
        asked.settings,
        directory,
        module="primus.ab_rank",
        arguments=[
            *("--settings", str(settings), "--samples", str(asked.samples)),
            *("--run-directory", str(directory), "--about", str(directory / "about.json")),
            *("--attempt", "1", "--round", str(number)),
            *("--warm-up", str(asked.warm_up), "--steps", str(asked.steps)),
            *("--output", str(directory / "segment.json")),
            *(("--tuned", str(asked.tuned)) if tuned else ()),
            *(("--weights", str(asked.weights)) if asked.weights else ()),
        ],
        variables=asked.variables if tuned else {},
        weights=asked.weights,
    )
