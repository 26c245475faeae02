"""A process that measures: JSON lines in, JSON lines out.

`python -m primus.gemm.worker '<BackendSpec as JSON>'` answers each line on stdin with one on
stdout. It is a process of its own so that a kernel that hangs or crashes takes nothing else along.

    {"peak": "bf16_r"}          → {"peak": 0.45}
    {"problem": {"m": 8, …}}    → {"candidates": [["default", {…}], …],
                                    "details": {}}

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
from primus.gemm.measure import measure_problem
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
        problem = Problem.from_json(request["problem"])
        times = measure_problem(backend, problem)
        details = dict(backend.details(problem)) if times else {}
    except (RuntimeError, PrimusError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        return {"error": why, "again": isinstance(error, ToolFailure)}
    candidates = [[name, t.model_dump()] for name, t in times.items()]
    return {"candidates": candidates, "details": details}


if __name__ == "__main__":
    run_main(main)
