"""How long each stage took, kept beside its artefact and never declared to Snakemake."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from primus.errors import FileSystemError, UnavailableError
from primus.files import require_writable


@contextmanager
def stage_time(stage: str, output: Path | str) -> Iterator[None]:
    """Append one line to `<output>.times.jsonl` when the body ends, also when it fails.

    Raises:
        FileSystemError: the output could not be written; the body is not begun.
    """
    try:
        require_writable(Path(output).parent)
    except UnavailableError as error:
        raise FileSystemError(str(error)) from error
    started = time.time()
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        path = times_path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {
            "stage": stage,
            "started": started,
            "seconds": time.time() - started,
            "succeeded": succeeded,
            "host": os.uname().nodename,
        }
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, sort_keys=True) + "\n")


def times_path(output: Path | str) -> Path:
    """Where the times of the stage that makes `output` are kept."""
    output = Path(output)
    return output.with_name(output.name + ".times.jsonl")
