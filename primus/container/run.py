"""Run Python in a container on this node, and hand signals and its end through.

    python -m primus.container.run --container '{"runtime": "podman", …}' -- -m primus.agent …

The container ends when this process does, however that dies: it holds the other end of a pipe.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import psutil

from primus.config.frozen import StageSettings
from primus.container.arguments import client, srun_options
from primus.container.environment import INSIDE, entering
from primus.container.spec import Container, inside, python
from primus.errors import RunConflictError, UnavailableError, run_main
from primus.processes import started

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Of docker's and podman's clients: the container did not start; its program cannot run, is missing.
_NOT_STARTED = {125: "did not start", 126: "cannot run", 127: "does not have"}
_ROCM_DRIVER = "/dev/kfd"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    parser = argparse.ArgumentParser(prog="python -m primus.container.run", description=__doc__)
    parser.add_argument("--container", type=Container.from_json, required=True, help="JSON")
    parser.add_argument("arguments", nargs="+", help="for Python in the image")
    args = parser.parse_args(argv)
    raise SystemExit(run(args.container, args.arguments))


def enter(settings: StageSettings, arguments: Sequence[str]) -> None:
    """Go on with this stage inside its container: does not return where there is one.

    Args:
        arguments: of the stage's command line.

    Raises:
        UnavailableError, RunConflictError: as `run`; or pyxis outside of a SLURM job.
    """
    container = Container.of(settings)
    if container is None:
        return
    again = ["-u", "-m", f"primus.{settings.stage}", *arguments]
    if not container.is_step:
        raise SystemExit(run(container, again))
    if "SLURM_JOB_ID" not in os.environ:
        raise UnavailableError(
            "container.runtime = pyxis: is srun's, and this is no SLURM job. "
            "Fix: run with --profile slurm, or choose another runtime"
        )
    variables = {**os.environ, **added(container)}
    step = ["srun", "--nodes=1", "--ntasks=1", *step_options(container, variables)]
    command = [*step, *python(container, again)]
    os.execvpe(command[0], command, variables)  # noqa: S606  # an argument list, no shell


def added(container: Container) -> dict[str, str]:
    """Variables that commands inside have besides what they inherit."""
    root = Path(__file__).resolve().parents[2]
    return {
        INSIDE: container.image,
        "PYTHONPATH": str(root),
        # Of the host's home directory, for another Python.
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def step_options(container: Container, variables: Mapping[str, str]) -> list[str]:
    """For srun: what makes pyxis run the step in the image."""
    return srun_options(container, entering(variables, {*container.variables, *added(container)}))


def run(container: Container, arguments: Sequence[str]) -> int:
    """Run the image's Python with `arguments`.

    Returns:
        its exit status; 128 and more for a signal.

    Raises:
        UnavailableError: this node lacks the runtime, a device or a directory, or the image
            cannot be started.
        RunConflictError: the same work runs in a container of a living process.
    """
    container = _on_this_node(container)
    _remove_left_over(container)
    variables = {**os.environ, **added(container)}
    names = entering(variables, {*container.variables, *added(container)})
    unset = [name for name in container.variables if name not in variables]
    if container.runtime == "apptainer":
        variables |= {f"APPTAINERENV_{name}": variables[name] for name in names}
    command = client(
        container, inside(container, arguments, unset=unset), names=names, owner=_myself()
    )
    try:
        status = _attached(command, variables)
    except FileNotFoundError as error:
        raise UnavailableError(
            f"container.runtime = {container.runtime}: {socket.gethostname()} has no such program. "
            "Fix: install it on every node, or choose another runtime"
        ) from error
    if status < 0:
        # The client was killed. The leash ends what it left; this does not wait for that.
        _remove(container)
    if status in _NOT_STARTED and container.runtime != "apptainer":
        raise UnavailableError(
            f"container.image = {container.image}: {container.runtime} {_NOT_STARTED[status]} "
            f"{'it' if status == 125 else container.python}; its own words are above. "
            "Fix: correct container in the hardware file (image, python, mounts, options)"
        )
    return 128 - status if status < 0 else status


def _attached(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Wait for the client; signals go to it, and it hands them on."""
    pending: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, _: FrameType | None) -> None:
        if process is None:
            pending.append(number)
        else:
            process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    previous = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=dict(variables), start_new_session=True
        )
        for number in pending:
            process.send_signal(number)
        status = process.wait()
        assert process.stdin is not None
        process.stdin.close()
        return status
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _on_this_node(container: Container) -> Container:
    here = socket.gethostname()
    if container.platform == "rocm" and not Path(_ROCM_DRIVER).exists():
        raise UnavailableError(
            f"hardware of platform rocm: {here} has no {_ROCM_DRIVER}. "
            "Fix: run on a node with AMD GPUs and their driver"
        )
    missing = [mount for mount in container.mounts if not Path(mount.source).exists()]
    for mount in missing:
        if mount.required:
            raise UnavailableError(
                f"container.mounts: {mount.source} is not on {here}. "
                "Fix: make it there, or take it out of container.mounts"
            )
    mounts = tuple(mount for mount in container.mounts if mount not in missing)
    # Nodes may share what the runtime stores.
    return replace(container, name=f"{container.name}-{here}", mounts=mounts)


def _myself() -> str:
    process = psutil.Process()
    return f"{socket.gethostname()}/{process.pid}/{process.create_time():.2f}"


def _remove_left_over(container: Container) -> None:
    """A container of an earlier turn whose client is gone must not go on beside this one.

    Raises:
        RunConflictError: its client lives.
    """
    if container.runtime == "apptainer":
        return
    question = ("inspect", "--format", '{{index .Config.Labels "primus.owner"}}', container.name)
    owner = _asked(container.runtime, *question)
    if owner is None:
        return
    if _lives(owner):
        raise RunConflictError(
            f"container {container.name}: process {owner.split('/')[1]} of this node runs it. "
            "Fix: wait for that one, or end it"
        )
    _remove(container)


def _remove(container: Container) -> None:
    # Podman would wait for ten seconds.
    at_once = {"docker": ("--force",), "podman": ("--force", "--time=0")}.get(container.runtime)
    if at_once:
        _asked(container.runtime, "rm", *at_once, container.name)


def _asked(*command: str) -> str | None:
    """What the runtime answers; None where it knows no such container, or is not there."""
    with suppress(FileNotFoundError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def _lives(owner: str) -> bool:
    """Whether `HOST/PID/STARTED` is a process of this host that runs."""
    try:
        host, pid, noted = owner.split("/")
        found = started(int(pid))
        same = found is not None and abs(found - float(noted)) < 1
    except ValueError:
        return False
    return same and host == socket.gethostname()


if __name__ == "__main__":
    run_main(main)
