"""What the end of a rank means: too little memory, a consequence of another's end, or its own."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from primus.artifacts.failure import RankEnd
from primus.files import tail

_BYTES = 1 << 14
_LINES = 30
_TELLING = re.compile(
    r"(\[rank\d+\]: )?(error: |Fatal |terminate called|(\w+\.)*\w*(Error|Exception|Interrupt)\b)"
)
_TELLING_LENGTH = 300
# Warnings of torch's own loggers, in Python and in C++.
_LOGGED = re.compile(r"\s*(\[rank\d+\]:)?\[?[IW]\d{4} ")

# As Python, torch's allocators for CPU and GPU, the C++ library and SLURM's daemon say it.
_NO_MEMORY = re.compile(
    r"\bMemoryError\b|OutOfMemoryError|can't allocate memory|\bstd::bad_alloc\b"
    r"|\bout of memory\b|Cannot allocate memory|oom[-_]kill",
    re.IGNORECASE,
)
# As gloo, NCCL, RCCL and torch's store say it of a rank that is gone.
_OTHER_IS_GONE = re.compile(
    r"Connection closed by peer|Connection reset by peer|Connection refused|Broken pipe"
    r"|remote process exited|failed to recv, got 0 bytes|Timed out waiting \d+ms for"
    r"|ncclRemoteError|ncclSystemError"
)


def describe(
    *,
    rank: int,
    local_rank: int,
    status: int,
    stderr: Path,
    killed_for_memory: bool,
    iteration: int | None = None,
) -> RankEnd:
    """The record of a rank that has ended.

    Args:
        status: as `subprocess` has it: negative for a signal.
        stderr: the file that it wrote to.
        killed_for_memory: the kernel has killed a process of this node's job for lack of memory.
        iteration: the last that it had finished.
    """
    lines = last_lines(stderr)
    said = "\n".join(lines)
    killed = status == -signal.SIGKILL and killed_for_memory
    return RankEnd(
        rank=rank,
        local_rank=local_rank,
        status=status if status >= 0 else None,
        signal=signal_name(-status) if status < 0 else None,
        time=time.time(),
        out_of_memory=killed or status == os.EX_OSERR or lacks_memory(lines),
        follows=status > 0 and _OTHER_IS_GONE.search(said) is not None,
        iteration=iteration,
        lines=lines,
    )


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", _text(Path(f"/proc/{pid}/status")), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def signal_name(number: int) -> str:
    """Its name, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def lacks_memory(lines: Sequence[str]) -> bool:
    """Whether the last words of a rank say that it got no memory."""
    return any(_NO_MEMORY.search(line) for line in lines)


def telling(lines: Sequence[str]) -> str:
    """What a rank said of its end, in one line: its error, or else its very last line."""
    found = [line for line in lines if _TELLING.match(line)]
    text = next(iter((found or [line for line in lines if not _LOGGED.match(line)])[-1:]), "")
    return "".join(c if c.isprintable() else " " for c in text)[:_TELLING_LENGTH]


def last_lines(path: Path, count: int = _LINES) -> list[str]:
    """The last lines of a file that are not empty; none where it cannot be read."""
    try:
        text = tail(path, _BYTES).decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def oom_kills(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """How many processes of this process's control group the kernel killed for lack of memory.

    0 where the machine does not say. Both versions of control groups are understood.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    for line in lines:
        _, controllers, path = line.split(":", 2)
        relative = path.lstrip("/")
        if controllers == "":
            files = [cgroups / relative / "memory.events"]
        elif "memory" in controllers.split(","):
            files = [cgroups / "memory" / relative / "memory.oom_control"]
        else:
            continue
        for file in files:
            found = re.search(r"^oom_kill (\d+)$", _text(file), re.MULTILINE)
            if found:
                return int(found[1])
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
