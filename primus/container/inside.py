"""The first process inside a container: checks the image, and lets nothing outlive its command.

    python3 -m primus.container.inside --leash -- python3 -m primus.agent …

Its standard input is the leash: a pipe that ends when the process that started the container is
gone, however that died. It hands signals on, since a container's client can only reach this one.
Runs with the image's Python and needs nothing but the standard library before the check.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from types import FrameType

_OLDEST_PYTHON = (3, 10)
# What ranks and tuning import; `containers/requirements.txt` installs it.
_NEEDED = (
    *("blake3", "megatron.core", "numpy", "psutil", "pydantic", "safetensors", "tensorboard"),
    *("tokenizers", "torch", "tqdm", "typing_extensions", "yaml", "zstandard"),
)
# How long a command may take to end once nobody waits for it any more.
GRACE_SECONDS = 10.0
_UNUSABLE = 2
_PR_SET_CHILD_SUBREAPER = 36
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status, 128 and more for a signal."""
    parser = argparse.ArgumentParser(prog="python -m primus.container.inside")
    parser.add_argument("--leash", action="store_true", help="end when standard input ends")
    parser.add_argument("--unset", action="append", default=[], help="variable to remove")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    if told := unusable():
        print(f"error: {told}", file=sys.stderr, flush=True)
        raise SystemExit(_UNUSABLE)
    for name in args.unset:
        os.environ.pop(name, None)
    raise SystemExit(_supervised(args.command, leash=args.leash))


def unusable() -> str:
    """Why this image cannot run ranks, in one line; empty where it can."""
    image = os.environ.get("PRIMUS_CONTAINER", "this image")
    fix = "Fix: build an image as docs/containers.md says, or set container.python"
    if sys.version_info < _OLDEST_PYTHON:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"container.image = {image}: {sys.executable} is Python {version}, not 3.10. {fix}"
    missing = [name for name in _NEEDED if not _found(name)]
    if missing:
        return f"container.image = {image}: {sys.executable} lacks {', '.join(missing)}. {fix}"
    return ""


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its package
        return False


def _supervised(command: Sequence[str], *, leash: bool) -> int:
    # Orphans of the command become children of this process, which ends them.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    asked: list[int] = []
    child: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        asked.append(number)
        if child:
            _send(child[0], number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    child.append(process.pid)
    for early in list(asked):
        _send(process.pid, early)
    if leash:
        threading.Thread(target=_hold, args=(process.pid,), daemon=True).start()
    status = _wait(process.pid)
    _end_descendants()
    return 128 - status if status < 0 else status


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM if number == signal.SIGINT else number)


def _hold(pid: int) -> None:
    """Wait until the leash is let go of; then nothing here may go on for long."""
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    _send(pid, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    _end_descendants()


def _wait(pid: int) -> int:
    """Wait for the command, and for orphans on the way; its status, negative for a signal."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _end_descendants() -> None:
    import psutil

    # Those that are started meanwhile are seen the next time round.
    while living := [p for p in psutil.Process().children(recursive=True) if _runs(p)]:
        for process in living:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)


def _runs(process: object) -> bool:
    import psutil

    assert isinstance(process, psutil.Process)
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


if __name__ == "__main__":
    main()
