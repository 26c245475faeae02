"""One rank of a few watched training steps: what `primus.watched_steps` starts."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primus.config.frozen import StageSettings
from primus.errors import run_main
from primus.ranks.gpu import take_gpu

_LOG_FILE = "HIPBLASLT_LOG_FILE"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the steps; the first rank writes what all saw."""
    parser = argparse.ArgumentParser(prog="python -m primus.watched_rank", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True, help="frozen settings")
    parser.add_argument("--stage", required=True, help="whose settings they are")
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tuned", type=Path, help="apply this tuned result")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    _name_log()
    _run(StageSettings.load(args.settings, args.stage), args)


def _name_log() -> None:
    """Put the host's name for %h, before a library reads it: ranks of two nodes log apart."""
    name = os.environ.get(_LOG_FILE)
    if name is not None:
        os.environ[_LOG_FILE] = name.replace("%h", socket.gethostname())


def _run(settings: StageSettings, args: argparse.Namespace) -> None:
    import torch
    from torch import distributed

    from primus.shapes_dump import complete, groups, record_in_groups

    torch.set_num_threads(args.threads)
    take_device(settings.platform)
    settings = complete(settings)
    with groups(settings) as device:
        from primus.trainer import parallel

        rank = distributed.get_rank()
        applied: Any = None
        if args.tuned is not None:
            from primus.gemm.applied import open_applied

            applied = open_applied(args.tuned, threads=args.threads, rank=rank, verifying=True)[1]
        gemm = applied.gemm if applied is not None else None
        recorded = record_in_groups(settings, device, iterations=args.iterations, gemm=gemm)
        told = [None] * distributed.get_world_size()
        use = applied.use() if applied is not None else None
        here = (socket.gethostname(), os.getpid())
        counts = here if parallel.sees_all_gemms() else None
        distributed.all_gather_object(told, (counts, use))
        if recorded is not None:
            _write(args, recorded, told)


def _write(args: argparse.Namespace, recorded: Any, told: Sequence[Any]) -> None:
    from primus.gemm.applied import merged
    from primus.gemm.watched import WatchedSteps

    uses = [use for _, use in told if use is not None]
    WatchedSteps.of(
        recorded,
        iterations=args.iterations,
        processes=[process for process, _ in told if process is not None],
        use=merged(uses) if uses else None,
    ).save(args.output)


def take_device(platform: str) -> None:
    """Use this rank's own device, where the platform has devices.

    Raises:
        UnavailableError: the machine has fewer than ranks.
    """
    if platform == "cpu":
        return
    import torch

    ranks = os.environ.get("WORLD_SIZE", "1")
    take_gpu(
        lambda gpus: (
            f"platform = {platform}: a copy of the model takes {ranks} ranks, torch "
            f"{torch.__version__} sees {gpus} GPUs here. Fix: gemm_tuning.shapes: trace"
        )
    )


if __name__ == "__main__":
    run_main(main)
