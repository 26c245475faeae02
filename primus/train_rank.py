"""One rank of a training attempt: what an agent starts for `primus.train`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from primus.artifacts.provenance import environment
from primus.artifacts.run import Attempt, AttemptResult, Status
from primus.config.frozen import StageSettings, add_settings_arguments, load_settings
from primus.errors import PrimusError, TrainingError, UnavailableError, UserError, run_main
from primus.hidden import hide
from primus.launch import end_with_parent, queue_times
from primus.quick_imports import quick_imports
from primus.ranks.gpu import take_gpu
from primus.ranks.parent import agent_is_gone
from primus.ranks.progress import Reporter, give_stacks_when_asked
from primus.ranks.screen import on_screen
from primus.trainer.files_seen import wait_for_files
from primus.trainer.lease import Lease, lease
from primus.trainer.memory import lacks_memory, out_of_memory

_stop = False


def main(argv: Sequence[str] | None = None) -> None:
    """Join the attempt, train, and on rank 0 write what came of it."""
    started = time.time()
    args = parser_of("primus.train_rank", __doc__).parse_args(argv)
    end_with_parent(signal.SIGKILL)
    if agent_is_gone():
        raise TrainingError("the agent of this rank has ended")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _request_stop)
    give_stacks_when_asked()
    reporter = Reporter()
    reporter.say("start")
    # The launcher, on another node perhaps, has just written some of these.
    wait_for_files([args.settings, args.samples, args.about, args.tuned, args.weights])
    settings = load_settings(args, "train")
    with on_screen():
        _train(settings, args, args.began or started, reporter)


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """What a rank that trains is told, whichever module it runs."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    add_settings_arguments(parser)
    parser.add_argument("--samples", type=Path, required=True, help="samples manifest")
    parser.add_argument("--tuned", type=Path, help="the run's tuned.jsonl")
    parser.add_argument("--weights", type=Path, help="weights manifest")
    parser.add_argument("--run-directory", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--began", type=float, help="when the attempt did; else when this rank did")
    parser.add_argument("--about", type=Path, required=True, help="JSON for checkpoint manifests")
    parser.add_argument(
        "--variables", type=json.loads, default={}, help="JSON of what the tuned GEMMs had set"
    )
    return parser


def _request_stop(*_: Any) -> None:
    global _stop
    _stop = True


def _train(
    settings: StageSettings, args: argparse.Namespace, started: float, reporter: Reporter
) -> None:
    device = import_all(settings)
    import torch

    from primus.trainer import parallel
    from primus.trainer.kernels import compile_or_fall_back

    compile_or_fall_back(device)
    parallel.initialize(settings, timeout_minutes=settings.distributed_timeout_minutes)
    with ExitStack() as stack:
        record = _AttemptRecord(settings, args, started)
        leader = torch.distributed.get_rank() == 0
        try:
            patience = settings.lease_timeout_seconds
            held = stack.enter_context(lease(args.run_directory, patience)) if leader else None
            ended = _attempt(settings, args, device, record, held, reporter)
        except PrimusError as error:
            record.end("failed", hide(str(error)), mendable=isinstance(error, UserError))
            raise
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            lack = out_of_memory(settings, torch.distributed.get_rank(), error)
            record.end("failed", hide(str(lack)))
            raise lack from error
    reporter.close()
    torch.distributed.destroy_process_group()
    if not ended:
        # What a tracker has left for the end of the process may wait for its network for ever.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def import_all(settings: StageSettings) -> Any:
    """Import what a rank runs, on the platform that it is for; the rank's device.

    Raises:
        UnavailableError: there is no such device here.
    """
    with quick_imports():
        import torch

        torch.set_num_threads(settings.threads_per_rank)
        if settings.platform != "cpu":
            if not torch.cuda.is_available():
                raise UnavailableError(
                    f"platform = {settings.platform}: torch {torch.__version__} sees no GPU here. "
                    "Fix: run where there is one, with a build of torch for it, or set "
                    "hardware: cpu"
                )
            _take_device()
        from primus.trainer.platform import install

        device = install(settings.platform)
        importlib.import_module("primus.train_setup")
        importlib.import_module("primus.trainer.loop")
    return device


def _take_device() -> None:
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    take_gpu(
        lambda gpus: (
            f"nproc_per_node = {ranks}: torch sees {gpus} GPUs here. "
            f"Fix: nproc_per_node: {gpus}, or run where there are {ranks}"
        )
    )


def _stop_requested(held: Lease | None) -> bool:
    if held is not None:
        held.check_quickly()
    return _stop


class _AttemptRecord:
    """attempt.json of this attempt; written by rank 0 alone."""

    def __init__(self, settings: StageSettings, args: argparse.Namespace, started: float) -> None:
        self._directory = args.run_directory / "attempts" / f"{args.attempt:03d}"
        self._number, self._started, self._variables = args.attempt, started, args.variables
        self.first = self.last = 0
        self.longest_save = self.save_seconds = 0.0
        self.resumed_from: str | None = None

    def begin(self, iteration: int, resumed_from: str | None) -> None:
        """The attempt starts at `iteration`."""
        self.first = self.last = iteration
        self.resumed_from = resumed_from
        self._write("running", "", None)

    def saved(self, iteration: int, longest_seconds: float, seconds: float) -> None:
        """A checkpoint is there; what is noted now is known also after a kill."""
        self.last, self.longest_save, self.save_seconds = iteration, longest_seconds, seconds
        self._write("running", "", None)

    def end(self, status: Status, reason: str, *, mendable: bool = False) -> None:
        """The attempt is over."""
        self._write(status, reason, time.time(), mendable=mendable)

    def result(self, result: AttemptResult) -> None:
        """Keep what the finished attempt found out."""
        result.save(self._directory / "result.json")

    def _write(
        self, status: Status, reason: str, finished: float | None, *, mendable: bool = False
    ) -> None:
        from torch import distributed

        if distributed.get_rank() != 0:
            return
        Attempt(
            number=self._number,
            status=status,
            reason=reason,
            mendable=mendable,
            variables=self._variables,
            started=self._started,
            finished=finished,
            first_iteration=self.first,
            last_iteration=self.last,
            resumed_from=self.resumed_from,
            host=os.uname().nodename,
            pid=os.getpid(),
            world_size=distributed.get_world_size(),
            job=os.environ.get("SLURM_JOB_ID"),
            **queue_times(),
            longest_save_seconds=self.longest_save,
            save_seconds=self.save_seconds,
        ).save(self._directory / "attempt.json")


def _attempt(
    settings: StageSettings,
    args: argparse.Namespace,
    device: Any,
    record: _AttemptRecord,
    held: Lease | None,
    reporter: Reporter,
) -> bool:
    """Train, and say how it ended; False where a tracker has not come to its end."""
    from torch import distributed

    from primus import train_setup
    from primus.gemm.applied import open_applied
    from primus.gemm.verify import summary
    from primus.trainer import checkpoint, parallel
    from primus.trainer.loop import Loop

    started = time.time()
    tuned = applied = None
    if args.tuned is not None:
        threads, rank = settings.threads_per_rank, distributed.get_rank()
        tuned, applied = open_applied(args.tuned, threads=threads, rank=rank)
    stop = partial(_stop_requested, held)
    run, state = train_setup.prepare(settings, args, device, tuned, applied, stop)
    run = replace(run, report=reporter.say, saved=record.saved)
    run = replace(run, may_write=held.check) if held is not None else run
    reporter.say("load")
    resumed = checkpoint.load_newest(state, run.checkpoints, settings.key)
    if settings.load_checkpoint is not None and resumed is None:
        resumed = train_setup.load_other_run(settings, state, args.run_directory)
    elif args.weights is not None and resumed is None:
        train_setup.load_start_weights(settings, state, args.weights)
    record.begin(state.iteration, resumed)
    if run.metrics is not None:
        run.metrics.begin(state.iteration)
    if distributed.get_rank() == 0 and resumed:
        print(f"resuming from {resumed}", flush=True)
    loop = Loop(run, state)
    try:
        outcome = loop.train()
    finally:
        record.last = state.iteration
        if run.metrics is not None:
            run.metrics.close()
    use = train_setup.tuned_use(applied)
    parameters = parallel.count_parameters(state.chunks)
    if distributed.get_rank() == 0:
        names = (*settings.env.as_dict(), *args.variables)
        record.result(_result(settings, run, state, device, parameters, use, started, names))
        for line in summary(tuned.rows, use) if tuned is not None and use is not None else ():
            print(line, flush=True)
    record.end(outcome, "" if outcome == "completed" else "stopped by a signal, state saved")
    return run.metrics is None or run.metrics.wait()


def _result(
    settings: StageSettings,
    run: Any,
    state: Any,
    device: Any,
    parameters: int,
    use: Any,
    started: float,
    variables: Sequence[str],
) -> AttemptResult:
    from torch import distributed

    return AttemptResult(
        iteration=state.iteration,
        consumed_samples=state.consumed_samples,
        consumed_tokens=state.consumed_tokens,
        parameters=parameters,
        flops_per_token=run.flops_per_token,
        peak_tflops_per_device=run.peak_tflops,
        seconds=time.time() - started,
        device=device_name(device),
        platform=settings.platform,
        tuned=use,
        environment=environment(
            platform_name=settings.platform,
            device=device_name(device),
            devices=distributed.get_world_size(),
            variables=variables,
        ),
    )


def device_name(device: Any) -> str:
    """What the device is called by its maker."""
    import torch

    from primus.artifacts.provenance import cpu_model

    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


if __name__ == "__main__":
    run_main(main)
