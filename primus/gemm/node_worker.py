"""Measures on one node of a job for the tune stage on another: JSON lines in, JSON lines out.

`primus.gemm.nodes` starts it with srun, and speaks with it through srun's pipes:

    out {"ready": true, "stack": {…}, "places": 8}       what is here: so many requests at a time
    in  {"id": 7, "request": {…}, "timeout": 120.0, "seconds_left": 1500.0}
    out {"id": 7, "content": {…}, "failure": null, "timed_out": false, "tries": 1}
    out {"error": "…"}                                    this node cannot measure at all

Each place has a measuring process of its own, on its own device. At the end of stdin, which comes
when the stage ends, however it ends, everything here ends.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

from primus.errors import PrimusError, run_main
from primus.gemm.backends import load_backend
from primus.gemm.backends.base import BackendSpec
from primus.gemm.pool import Answer, Pool

Tasks = queue.SimpleQueue[dict[str, Any]]


class Answers:
    """The way back; places take turns."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, content: Mapping[str, Any]) -> None:
        """Write one line."""
        with self._lock:
            self._stream.write(json.dumps(content) + "\n")
            self._stream.flush()


def main() -> None:
    """Serve until stdin ends.

    Raises:
        UnavailableError: this node cannot measure with the backend.
    """
    # Libraries print to stdout; only answers may.
    answers = Answers(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    told = json.loads(sys.argv[1])
    backend = load_backend(BackendSpec(**told["spec"]))
    places = told["workers"] or backend.devices()
    tasks: Tasks = queue.SimpleQueue()
    for number in range(places):
        environment = {**told["environment"], **backend.worker_environment(number)}
        pool = Pool(backend.spec, 1, environment)
        threading.Thread(target=_serve, args=(pool, tasks, answers), daemon=True).start()
    answers.send({"ready": True, "stack": backend.stack().to_json(), "places": places})
    for line in sys.stdin:
        tasks.put(json.loads(line))
    # The measuring processes see that their own stdin ends, and take their children along.
    os._exit(0)


def _serve(pool: Pool, tasks: Tasks, answers: Answers) -> None:
    """One place: one task after the other."""
    while True:
        task = tasks.get()
        deadline = time.monotonic() + task["seconds_left"]
        try:
            for _, answer in pool.run(
                [task["request"]], timeout=task["timeout"], deadline=deadline
            ):
                answers.send({"id": task["id"], **_plain(answer)})
        except PrimusError as error:
            answers.send({"error": str(error)})
            return


def _plain(answer: Answer) -> dict[str, Any]:
    return {
        "content": answer.content,
        "failure": answer.failure,
        "timed_out": answer.timed_out,
        "tries": answer.tries,
    }


if __name__ == "__main__":
    run_main(main)
