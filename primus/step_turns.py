"""One contestant: a process that trains, one step whenever it is told to.

`python -m primus.step_turns --shapes shapes.json --threads 1` builds the model that the shapes are
of and answers on stdout with {"ready": true}. Each line on stdin is a turn: one training step,
answered with its microseconds and the products in it that a tuned kernel computed,
{"us": 51234.5, "served": 51}. It ends with its stdin.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from primus.artifacts.gemm import load_shapes
from primus.config.frozen import StageSettings
from primus.errors import run_main
from primus.launch import end_with_parent

if TYPE_CHECKING:
    from primus.gemm.dispatch import GemmDispatcher

_ENDLESS = sys.maxsize


class _Over(Exception):
    """Stdin has ended."""


class Turns:
    """Cuts an endless row of training steps into turns, at the points where a step begins.

    Args:
        answers: where a line per turn goes.
        requests: a line for each turn.
        clock: seconds.
        served: products that tuned kernels have computed so far.
        wait: until the device has done all that it was given.
    """

    def __init__(
        self,
        answers: IO[str],
        requests: IO[str],
        *,
        clock: Callable[[], float],
        served: Callable[[], int],
        wait: Callable[[], object],
    ) -> None:
        self._answers, self._requests = answers, requests
        self._clock, self._served, self._wait = clock, served, wait
        self._start: float | None = None
        self._before = 0

    @contextmanager
    def begin(self) -> Iterator[None]:
        """End the last turn, and let the next step begin when it is this process's turn."""
        if self._start is None:
            self._send({"ready": True})
        else:
            self._wait()
            us = (self._clock() - self._start) * 1e6
            self._send({"us": round(us, 1), "served": self._served() - self._before})
        if not self._requests.readline():
            raise _Over
        self._before = self._served()
        self._start = self._clock()
        yield

    def _send(self, content: dict[str, Any]) -> None:
        self._answers.write(json.dumps(content) + "\n")
        self._answers.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Train until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m primus.step_turns", description=__doc__)
    parser.add_argument("--shapes", type=Path, required=True, help="shapes.jsonl of the model")
    parser.add_argument("--threads", type=int, required=True, help="CPU threads of the rank")
    parser.add_argument("--tuned", type=Path, help="tuned.jsonl whose kernels compute")
    args = parser.parse_args(argv)
    end_with_parent(signal.SIGKILL)
    # Libraries print to stdout; only answers may.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    header, _ = load_shapes(args.shapes)
    _train(StageSettings.of("shapes", header.model), args.threads, args.tuned, answers)


def step_clock(threads: int, platform: str) -> Callable[[], float]:
    """Processor time where one thread does all the work: others on the machine do not lengthen it.

    Of the whole process, because autograd may compute in threads of its own.
    """
    return time.process_time if threads == 1 and platform == "cpu" else time.perf_counter


def _train(settings: StageSettings, threads: int, tuned: Path | None, answers: IO[str]) -> None:
    import torch

    torch.set_num_threads(threads)
    from primus.trainer.platform import install

    device = install(settings.platform)
    from primus.shapes_dump import complete
    from primus.trainer import parallel
    from primus.trainer.dry_steps import train_steps
    from primus.trainer.kernels import compile_or_fall_back

    compile_or_fall_back(device)
    settings = complete(settings)
    parallel.initialize(settings, timeout_minutes=10)
    gemm = _dispatcher(tuned)
    turns = Turns(
        answers,
        sys.stdin,
        clock=step_clock(threads, settings.platform),
        served=lambda: gemm.use().hits if gemm is not None else 0,
        wait=torch.cuda.synchronize if device.type == "cuda" else lambda: None,
    )
    try:
        train_steps(settings, device, _ENDLESS, turns.begin, gemm)
    except _Over:
        torch.distributed.destroy_process_group()


def _dispatcher(tuned: Path | None) -> GemmDispatcher | None:
    from primus.gemm.dispatch import GemmDispatcher
    from primus.gemm.tuned import TunedResult

    return GemmDispatcher(TunedResult.load(tuned)) if tuned is not None else None


if __name__ == "__main__":
    run_main(main)
