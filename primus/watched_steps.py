"""Start ranks that run a few training steps on random tokens, and read what they saw."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from primus.config.frozen import StageSettings
from primus.config.layout import model_parallel_ranks
from primus.container.spec import Container
from primus.errors import TrainingError
from primus.launch import Ranks, run_ranks, thread_environment

if TYPE_CHECKING:
    from primus.gemm.watched import WatchedSteps

RANK = "primus.watched_rank"
# Of hipBLASLt's own log, and of the library that counts cuBLASLt's calls.
_LOGS = (".log", ".calls")
_POLL_SECONDS = 0.5


def run_steps(
    settings: StageSettings,
    directory: Path,
    *,
    iterations: int,
    environment: Mapping[str, str | None],
    threads: int = 1,
    nodes: int = 1,
    tuned: Path | None = None,
    rank_module: str = RANK,
) -> WatchedSteps:
    """Run `iterations` steps of one micro-batch on the ranks that hold one copy of the model.

    Args:
        settings: of the shapes or the train stage. directory: for files of the ranks; empty.
        nodes: of this job, among which the ranks are shared; all must see the directory.
        environment: for the ranks, over the configuration's own; None: unset.
        tuned: apply this result.
        rank_module: what a rank runs; tests put a library's log around it.

    Raises:
        TrainingError: the ranks failed.
    """
    from primus.gemm.watched import WatchedSteps

    directory.mkdir(parents=True, exist_ok=True)
    settings.save(directory / "settings.json")
    status = run_ranks(
        Ranks(
            module=rank_module,
            arguments=[
                *("--settings", str(directory / "settings.json"), "--stage", settings.stage),
                *("--iterations", str(iterations), "--threads", str(threads)),
                *("--output", str(directory / "steps.json")),
                *(("--tuned", str(tuned)) if tuned is not None else ()),
            ],
            nproc_per_node=model_parallel_ranks(settings) // nodes,
            nodes=nodes,
            environment=thread_environment(threads) | settings.env.as_dict() | dict(environment),
            log_directory=directory / "logs",
            container=Container.of(settings),
        )
    )
    if status != 0:
        raise TrainingError(f"the ranks that record steps ended with exit status {status}")
    return WatchedSteps.load(directory / "steps.json")


def keep_logs_of(
    directory: Path, processes: Sequence[tuple[str, int]], *, seconds: float = 0.0
) -> None:
    """Put away the logs of other processes: those repeat the same GEMMs, or are no ranks.

    The name of a log ends with the number of its process, before which its host may stand.

    Args:
        processes: host and number.
        seconds: how long to wait for their logs; those of other nodes may be visible late.
    """
    end = time.monotonic() + seconds
    while len(kept := _logs_of(directory, processes)) < len(processes):
        if time.monotonic() >= end:
            break
        time.sleep(_POLL_SECONDS)
    (directory / "others").mkdir(exist_ok=True)
    for path in list(directory.iterdir()):
        if path.suffix in _LOGS and path not in kept:
            path.rename(directory / "others" / path.name)


def _logs_of(directory: Path, processes: Iterable[tuple[str, int]]) -> list[Path]:
    names = "|".join(f"(?:{re.escape(host)}[-_])?{number}" for host, number in processes)
    name = re.compile(rf"[a-z]+[-_](?:{names})\.[a-z]+")
    return [p for p in directory.iterdir() if p.suffix in _LOGS and name.fullmatch(p.name)]
