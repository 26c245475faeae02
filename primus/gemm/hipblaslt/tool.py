"""Running hipblaslt-bench: where it is, its environment, its time limit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from primus.gemm.hipblaslt.output import BenchOutput, parse_output

NAME = "hipblaslt-bench"
# Each of these changes what the tool runs, or where it writes.
UNSET = (
    "HIPBLASLT_LOG_FILE",
    "HIPBLASLT_LOG_LEVEL",
    "HIPBLASLT_LOG_MASK",
    "HIPBLASLT_TUNING_CACHE_PATH",
    "HIPBLASLT_TUNING_FILE",
    "HIPBLASLT_TUNING_MODE",
    "HIPBLASLT_TUNING_OVERRIDE_FILE",
)
# The last lines of what it said tell why it failed; a whole survey is megabytes.
_TAIL = 300
_GPUS_PER_NODE = 8
HELP_SECONDS = 60.0


@dataclass(frozen=True)
class BenchRun:
    """One run of the tool.

    Attributes:
        status: exit status, negative for a signal; None after the time limit.
        said: the end of its output, for messages.
    """

    output: BenchOutput
    status: int | None
    said: str

    @property
    def failure(self) -> str | None:
        """How it ended, where it did not end well."""
        if self.status is None:
            return f"{NAME} exceeded its time limit"
        if self.status:
            how = f"signal {-self.status}" if self.status < 0 else f"status {self.status}"
            return f"{NAME} ended with {how}: {self.said or 'it printed nothing'}"
        return None


def rocm_prefix() -> Path:
    """Where ROCm is installed: $ROCM_PATH, or /opt/rocm."""
    return Path(os.environ.get("ROCM_PATH") or "/opt/rocm")


def find_tool() -> Path | None:
    """The tool: $HIPBLASLT_BENCH alone where it is set, else on PATH, else below ROCm's prefix."""
    named = os.environ.get("HIPBLASLT_BENCH")
    if named is not None:
        return Path(named) if os.access(named, os.X_OK) else None
    found = shutil.which(NAME) or shutil.which(rocm_prefix() / "bin" / NAME)
    return Path(found) if found else None


def run_tool(
    tool: Path,
    arguments: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
) -> BenchRun:
    """Run the tool and read what it printed, also when it fails or lasts too long.

    The tool stays in this process's group: who kills the measuring process's group kills it too.

    Raises:
        RuntimeError: it cannot be started.
    """
    env = {name: value for name, value in os.environ.items() if name not in UNSET}
    # The reference of --verify is computed on the CPU; a worker's own thread count is for torch.
    env["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // _GPUS_PER_NODE))
    env |= environment or {}
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                [str(tool), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=env,
            )
        except OSError as error:
            raise RuntimeError(f"cannot start {tool}: {error.strerror}") from error
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                _kill_tree(process)
        stdout.seek(0)
        lines = (line.decode("utf-8", "replace") for line in stdout)
        output = parse_output(lines)
        return BenchRun(output, status, _tail(stderr) or _tail(stdout))


def known_flags(tool: Path) -> frozenset[str]:
    """The flags that the tool's help names.

    Raises:
        RuntimeError: it prints no help.
    """
    try:
        done = subprocess.run(
            [str(tool), "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HELP_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{tool} --help: {error}") from error
    found = frozenset(re.findall(r"--[A-Za-z_]+", done.stdout))
    if not found:
        raise RuntimeError(f"{tool} --help names no flag: {done.stderr[:_TAIL].strip()}")
    return found


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill it and all that it started: the tool may be a script around the tool."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.kill()
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def _tail(stream: IO[bytes]) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _TAIL))
    return " ".join(stream.read().decode("utf-8", "replace").split())
