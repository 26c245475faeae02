"""Run commands of this project, each in a fork of a process that has imported what most need.

Reads one JSON request a line: {"module", "arguments", "directory", "stdout"}; answers with the exit
status and what was written. `stdout` is "kept" or "closed pipe".
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import traceback
from typing import Any

import primus.config.pipeline
import primus.reports.formats  # noqa: F401  # imported for the forks


def run(module: str, arguments: list[str]) -> int:
    """As `python -m module arguments`, in this process; the exit status."""
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.chdir(request["directory"])
            target = out.fileno()
            if request["stdout"] == "closed pipe":
                reader, target = os.pipe()
                os.close(reader)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(target, 1)
            os.dup2(err.fileno(), 2)
            status = run(request["module"], request["arguments"])
            try:
                sys.stdout.flush()
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        for stream in (out, err):
            stream.seek(0)
        return {
            "status": os.waitstatus_to_exitcode(status),
            "stdout": out.read().decode(errors="replace"),
            "stderr": err.read().decode(errors="replace"),
        }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(fork(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
