"""A process that measures: JSON lines in, JSON lines out.

`python -m primus.gemm.worker '<BackendSpec as JSON>'` answers each line on stdin with one on
stdout. It is a process of its own so that a kernel that hangs or crashes takes nothing else along.

    {"peak": "bf16_r"}        → {"peak": 0.45}
    {"bandwidth": true}       → {"bandwidth": 11.5}
    {"problem": {"m": 8, …},
     "bound_us": 7.5}         → {"candidates": [["default", {…}], …], "details": {},
                                 "pruned": null}

A failure is answered with {"error": "…"}, and "again": true where another try may succeed. The
first line out, {"ready": true}, says that the library is loaded. At the end of stdin the process
ends at once with all that it has started, whatever it is doing.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import IO, Any

from primus.errors import PrimusError, run_main
from primus.gemm.backends import load_backend
from primus.gemm.backends.base import Backend, BackendSpec, ToolFailure
from primus.gemm.measure import measure_problem, near_bound
from primus.gemm.problem import Problem


def main() -> None:
    """Serve until stdin ends."""
    # Libraries print to stdout; only answers may.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, requests), daemon=True).start()
    backend = load_backend(BackendSpec(**json.loads(sys.argv[1])))
    _send(answers, {"ready": True})
    while True:
        _send(answers, _answer(backend, json.loads(requests.get())))


def _read(stream: IO[str], requests: queue.SimpleQueue[str]) -> None:
    for line in stream:
        requests.put(line)
    if os.getsid(0) == os.getpid():  # as the pool starts it; not in a person's shell
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _send(answers: IO[str], content: dict[str, Any]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def _answer(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if "peak" in request:
            return {"peak": backend.peak(request["peak"])}
        if "bandwidth" in request:
            return {"bandwidth": backend.bandwidth()}
        return _measure(backend, Problem.from_json(request["problem"]), request.get("bound_us"))
    except (RuntimeError, PrimusError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        return {"error": why, "again": isinstance(error, ToolFailure)}


def _measure(backend: Backend, problem: Problem, bound_us: float | None) -> dict[str, Any]:
    near, pruned = near_bound(backend, problem, bound_us) if bound_us is not None else ({}, None)
    times = near or measure_problem(backend, problem)
    return {
        "candidates": [[name, t.model_dump()] for name, t in times.items()],
        "details": dict(backend.details(problem)) if times else {},
        "pruned": pruned,
    }


if __name__ == "__main__":
    run_main(main)
