"""How long each stage took, kept beside its artefact and never declared to Snakemake."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from primus.artifacts.standing import standing
from primus.errors import FileSystemError, UnavailableError
from primus.files import last_parsed, parse_json, require_writable

_TAIL_BYTES = 1 << 12


@contextmanager
def stage_time(stage: str, output: Path | str) -> Iterator[None]:
    """Append one line to `<output>.times.jsonl` when the body ends, also when it fails.

    While it runs, `<output>.running.json` says so, see `primus.artifacts.standing`.

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
        with standing(stage, output):
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


def last_time(output: Path | str) -> dict[str, Any] | None:
    """The last whole line of `<output>.times.jsonl`; None where there is none."""
    return last_parsed(times_path(output), _TAIL_BYTES, _time)


def _time(line: bytes) -> dict[str, Any] | None:
    found = parse_json(line)
    whole = isinstance(found, dict) and isinstance(found.get("succeeded"), bool)
    return found if whole else None


def times_path(output: Path | str) -> Path:
    """Where the times of the stage that makes `output` are kept."""
    output = Path(output)
    return output.with_name(output.name + ".times.jsonl")
