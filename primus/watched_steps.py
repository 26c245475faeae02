"""Start ranks that run a few training steps on random tokens, and read what they saw."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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


def run_steps(
    settings: StageSettings,
    directory: Path,
    *,
    iterations: int,
    environment: Mapping[str, str | None],
    threads: int = 1,
    tuned: Path | None = None,
    rank_module: str = RANK,
) -> WatchedSteps:
    """Run `iterations` steps of one micro-batch on the ranks that hold one copy of the model.

    Args:
        settings: of the shapes or the train stage. directory: for files of the ranks; empty.
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
            nproc_per_node=model_parallel_ranks(settings),
            nodes=1,
            environment=thread_environment(threads) | settings.env.as_dict() | dict(environment),
            log_directory=directory / "logs",
            container=Container.of(settings),
        )
    )
    if status != 0:
        raise TrainingError(f"the ranks that record steps ended with exit status {status}")
    return WatchedSteps.load(directory / "steps.json")


def keep_logs_of(directory: Path, processes: Iterable[int]) -> None:
    """Put away the logs of other processes: those repeat the same GEMMs, or are no ranks.

    The number of a process stands in the name of its log, among other things.
    """
    wanted = {str(number) for number in processes}
    (directory / "others").mkdir(exist_ok=True)
    logs = [path for path in directory.iterdir() if path.suffix in _LOGS]
    for path in logs:
        if not wanted & set(re.findall(r"\d+", path.name)):
            path.rename(directory / "others" / path.name)
