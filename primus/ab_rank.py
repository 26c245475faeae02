"""One rank of a segment of a comparison of kernels: what `primus.ab_segments` starts.

It trains as `primus.train_rank` does, with the same model, optimizer, samples and loop, for a few
iterations from the start of the training, and saves, validates and logs nothing.
"""

from __future__ import annotations

import argparse
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from primus.artifacts.ab import Segment
from primus.config.frozen import StageSettings, load_settings
from primus.errors import TrainingError, run_main
from primus.files import atomic_write, canonical_json
from primus.launch import end_with_parent
from primus.ranks.parent import agent_is_gone
from primus.ranks.progress import Reporter, give_stacks_when_asked
from primus.step_turns import step_clock
from primus.train_rank import device_name, import_all, parser_of
from primus.trainer.files_seen import wait_for_files


class _Over(Exception):
    """The last step of the segment has ended."""


@dataclass
class Stopwatch:
    """Hears of each iteration when it begins, and ends the training after the last one.

    Attributes:
        warm_up, steps: iterations that are not timed, and those that are.
        clock: seconds. wait: until the device has done all that it was given.
        said: what else wants to hear it.
        loss: of the last iteration.
        seconds: per step that was timed. losses: per iteration.
        begun: `time.time()` at the first step that was timed.
    """

    warm_up: int
    steps: int
    clock: Callable[[], float]
    wait: Callable[[], object]
    said: Callable[[str, int], None]
    loss: Callable[[], float] = lambda: math.nan
    seconds: list[float] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    begun: float = 0.0
    _first: int | None = None
    _last: float = 0.0

    def report(self, phase: str, iteration: int) -> None:
        """`Run.report` of the training loop.

        Raises:
            _Over: all steps are done; on all ranks at the same iteration.
        """
        self.said(phase, iteration)
        if phase != "iterate":
            return
        if self._first is None:
            self._first = iteration
        done = iteration - self._first
        if done:
            loss = self.loss()
            self.losses.append(loss if math.isfinite(loss) else None)
        # Between them a device may run behind, as it does in training.
        if done in (self.warm_up, self.warm_up + self.steps):
            self.wait()
        now = self.clock()
        if done == self.warm_up:
            self.begun = time.time()
        elif done > self.warm_up:
            self.seconds.append(now - self._last)
        if done == self.warm_up + self.steps:
            raise _Over
        self._last = now


def main(argv: Sequence[str] | None = None) -> None:
    """Join the segment, train, and on rank 0 write what was seen."""
    started = time.time()
    parser = parser_of("primus.ab_rank", __doc__)
    parser.add_argument("--warm-up", type=int, required=True, help="steps that are not timed")
    parser.add_argument("--steps", type=int, required=True, help="steps that are")
    parser.add_argument("--round", type=int, required=True, help="of which this is a part")
    parser.add_argument("--output", type=Path, required=True, help="for the segment")
    args = parser.parse_args(argv)
    end_with_parent(signal.SIGKILL)
    if agent_is_gone():
        raise TrainingError("the agent of this rank has ended")
    give_stacks_when_asked()
    reporter = Reporter()
    reporter.say("start")
    wait_for_files([args.settings, args.samples, args.about, args.tuned, args.weights])
    _run(load_settings(args, "train"), args, started, reporter)


def _run(
    settings: StageSettings, args: argparse.Namespace, started: float, reporter: Reporter
) -> None:
    device = import_all(settings)
    import torch
    from torch import distributed

    from primus import train_setup
    from primus.gemm.applied import open_applied
    from primus.trainer import parallel
    from primus.trainer.kernels import compile_or_fall_back
    from primus.trainer.loop import Loop

    compile_or_fall_back(device)
    parallel.initialize(settings, timeout_minutes=settings.distributed_timeout_minutes)
    tuned = applied = None
    if args.tuned is not None:
        threads, rank = settings.threads_per_rank, distributed.get_rank()
        tuned, applied = open_applied(args.tuned, threads=threads, rank=rank)
    run, state = train_setup.prepare(settings, args, device, tuned, applied, lambda: False)
    if run.metrics is not None:
        run.metrics.close()
    if settings.load_checkpoint is not None:
        train_setup.load_other_run(settings, state, None)
    elif args.weights is not None:
        train_setup.load_start_weights(settings, state, args.weights)
    watch = Stopwatch(
        warm_up=args.warm_up,
        steps=args.steps,
        clock=step_clock(settings.threads_per_rank, settings.platform),
        wait=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
        said=reporter.say,
    )
    loop = Loop(replace(run, metrics=None, report=watch.report), state)
    watch.loss = lambda: loop.loss
    try:
        loop.train()
    except _Over:
        pass
    else:
        raise TrainingError("the training ended before the segment did")
    use = train_setup.tuned_use(applied)
    # Steps begin and end on all ranks together: the slowest one decides.
    seconds = torch.tensor(watch.seconds, dtype=torch.float64, device=device)
    distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
    watch.seconds = seconds.tolist()
    if distributed.get_rank() == 0:
        _write(args, watch, use.hits if use is not None else 0, started, device_name(device))
    distributed.barrier()
    reporter.close()
    distributed.destroy_process_group()


def _write(
    args: argparse.Namespace, watch: Stopwatch, served: int, started: float, device: str
) -> None:
    segment = Segment(
        round=args.round,
        kernels="tuned" if args.tuned is not None else "default",
        seconds=watch.seconds,
        losses=watch.losses,
        served=served,
        started_seconds=watch.begun - started,
    )
    with atomic_write(args.output) as stream:
        stream.write(canonical_json({"device": device, "segment": segment.model_dump()}))


if __name__ == "__main__":
    run_main(main)
