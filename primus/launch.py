"""How a stage's ranks start: one process, an agent here, or an agent on each node of a job."""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from primus.container.run import added, step_options
from primus.container.spec import Container, python
from primus.errors import UnavailableError
from primus.ranks.places import node_directory

_PR_SET_PDEATHSIG = 1

# Set by the script of a job that primus.slurm.submit has submitted: the job's number, and the file
# whose presence asks for the same job once more; in it stand the nodes to leave out then.
JOB = "PRIMUS_SLURM_JOB"
AGAIN = "PRIMUS_SLURM_AGAIN"
# And when the job came into the queue and left it, in the node's local time.
QUEUE = "PRIMUS_SLURM_QUEUE"
# For what was told to end: first by itself, then by force.
_END_SECONDS = 10.0


def queue_times() -> dict[str, float | None]:
    """When this process's job was submitted and when it left the queue, as `Attempt` has them."""
    names = ("submitted", "job_started")
    try:
        found = [
            time.mktime(time.strptime(word, "%Y-%m-%dT%H:%M:%S"))
            for word in os.environ.get(QUEUE, "").split()
        ]
        return dict(zip(names, found, strict=True))
    except ValueError:
        # Outside of a job, or SLURM does not say.
        return dict.fromkeys(names)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of one attempt.

    Attributes:
        module: what each rank runs, as in `python -m`.
        arguments: its command line.
        environment: set for every rank, on top of this process's own; None: must be unset.
        log_directory: each rank's output is kept there; rank 0's is also shown.
        imports: modules that an agent imports once for all of its ranks.
        container: in which they run; None: on the host.
        warn_before: seconds before the end of the SLURM job at which they are told to save and
            stop, as of now: it may grow while they run; None: they are not told.
    """

    module: str
    arguments: Sequence[str]
    nproc_per_node: int
    nodes: int
    environment: Mapping[str, str | None]
    log_directory: Path
    imports: Sequence[str] = ()
    container: Container | None = None
    warn_before: Callable[[], float] | None = None

    @property
    def is_step(self) -> bool:
        """They start as a step of a SLURM job, on one node or several.

        Of the processes of a job only those of a step are warned before its time is over.
        """
        if self.container is not None and self.container.is_step:
            return True
        return self.nodes > 1 or JOB in os.environ

    def command(self) -> list[str]:
        """The argument list that starts the ranks.

        Raises:
            UnavailableError: more nodes than this machine, or the SLURM job it is part of, has.
        """
        if self.is_step:
            return self._step()
        if self.nproc_per_node == 1:
            return python(self._container, ["-u", "-m", self.module, *self.arguments])
        agent = [
            *("-u", "-m", "primus.agent", "--standalone"),
            *("--nproc-per-node", str(self.nproc_per_node)),
            *("--log-dir", str(self.log_directory / node_directory(0))),
            *self._program(),
        ]
        return python(self._container, agent)

    def _program(self) -> list[str]:
        imports = ("--imports", ",".join(self.imports)) if self.imports else ()
        return ["--module", self.module, *imports, "--", *self.arguments]

    @property
    def _container(self) -> Container | None:
        if self.container is None:
            return None
        names = {*self.container.variables, *self.environment}
        return replace(self.container, variables=tuple(sorted(names)))

    def variables(self) -> dict[str, str]:
        """The whole environment of the process that starts the ranks."""
        own = {"PYTHONUNBUFFERED": "1"}
        if self.is_step:
            own["MASTER_PORT"] = str(_free_port())
        if self.container is not None and self.container.is_step:
            own |= added(self.container)
        return laid_over(os.environ, own, self.environment)

    def _step(self) -> list[str]:
        found = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        if "SLURM_JOB_ID" not in os.environ or found < self.nodes:
            here = f"the SLURM job has {found}" if found > 1 else "this machine is one node"
            raise UnavailableError(
                f"nodes = {self.nodes}: {here}. "
                "Fix: nodes: 1, or run on a cluster with --profile slurm"
            )
        step = with_all_cores(self.nodes)
        node = [
            *("-u", "-m", "primus.node"),
            *("--nproc-per-node", str(self.nproc_per_node), "--log-dir", str(self.log_directory)),
        ]
        container, ranks = self._container, self._program()
        if container is None:
            return [*step, sys.executable, *node, *ranks]
        if container.is_step:
            inner = python(container, [*node, *ranks])
            return [*step, *step_options(container, self.variables()), *inner]
        # The host knows SLURM, and starts the container on each node.
        return [*step, sys.executable, *node, "--container", container.to_json(), *ranks]


def laid_over(base: Mapping[str, str], *layers: Mapping[str, str | None]) -> dict[str, str]:
    """An environment: each layer over those before it; None: unset."""
    found: dict[str, str | None] = dict(base)
    for layer in layers:
        found |= layer
    return {name: value for name, value in found.items() if value is not None}


def one_per_node(nodes: int) -> list[str]:
    """srun for a step of one task on each node of this job; one that fails ends the others."""
    one_each = (f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1")
    return ["srun", *one_each, "--kill-on-bad-exit=1"]


def with_all_cores(nodes: int) -> list[str]:
    """As `one_per_node`, each task with all of the job's cores there; output comes at once."""
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    return [
        *one_per_node(nodes),
        *((f"--cpus-per-task={cores}",) if cores else ()),
        # Ranks bind themselves, where they do.
        *("--cpu-bind=none", "--unbuffered"),
    ]


# Large tensors stay mapped between steps and lie in huge pages, so that they cost no page faults.
# What glibc cut off when it aligned a tensor must join it again when that is freed, or no tensor of
# its size fits there any more: tcache and fastbins would keep it apart.
_ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=17179869184:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
}


def platform_environment(platform: str) -> dict[str, str]:
    """Variables that ranks on a platform start with where nobody says otherwise.

    On CPUs these are settings of malloc that made whole steps 1.07 to 1.25 times faster on the
    machines measured. The tune stage holds them against a plain malloc and records the plain one
    where that wins; the user's own `env` comes last and replaces either.
    """
    return dict(_ALLOCATOR) if platform == "cpu" else {}


def trainer_imports(platform: str) -> tuple[str, ...]:
    """What an agent imports once for all ranks of a training.

    Nothing for GPUs: their libraries open devices and logs, and read variables that ranks set, when
    they are loaded.
    """
    every_rank = ("primus.trainer.on_cpu", "primus.train_setup", "primus.trainer.loop")
    return every_rank if platform == "cpu" else ()


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that hold every threaded library of a rank to `threads` CPU threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {name: str(threads) for name in names} | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}


def python_path() -> str:
    """PYTHONPATH for a child that finds this package from whatever directory it starts in."""
    root = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))


def run_ranks(ranks: Ranks, *, limit: float | None = None) -> int:
    """Start the ranks, pass SIGTERM, SIGINT and SIGUSR1 on to them, and wait.

    Args:
        limit: seconds after which those that still run are ended; None: none.

    Returns:
        the exit status, negative for a signal. It decides nothing by itself: what the ranks left
        behind does.
    """
    ranks.log_directory.mkdir(parents=True, exist_ok=True)
    environment = ranks.variables()
    process = subprocess.Popen(
        ranks.command(),
        env=environment,
        preexec_fn=_end_with_parent if ranks.is_step else _begin_alone,
        start_new_session=True,
    )

    def forward(number: int, _: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    forwarded = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    previous = {number: signal.signal(number, forward) for number in forwarded}
    ended = threading.Event()
    if ranks.warn_before is not None and JOB in os.environ:
        arguments = (process, ranks.warn_before, ended)
        threading.Thread(target=_warn_in_time, args=arguments, daemon=True).start()
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return end_hard(process)
    finally:
        ended.set()
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_hard(process: subprocess.Popen[Any]) -> int:
    """End a step, or an agent of this machine, that may not end by itself; its exit status."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=_END_SECONDS)
    # srun takes a second Ctrl-C within a second for an order to kill all of its tasks.
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=_END_SECONDS)
    # A rank that is stopped hears nothing, and would be left behind. Stopped itself, the process
    # can neither start more of them nor end well because they are gone.
    process.send_signal(signal.SIGSTOP)
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    return process.wait()


def _warn_in_time(
    process: subprocess.Popen[bytes], before: Callable[[], float], ended: threading.Event
) -> None:
    """Send SIGUSR1, which srun hands on to the ranks, in time before the job's is over.

    SLURM's own --signal comes once, up to a minute early, and is lost when no step runs yet; and
    it does not know how long a save takes. At least half of the job's time is for training.
    """
    most = math.inf
    while True:
        left, wanted = seconds_left(), before()
        if left is not None and most == math.inf:
            most = left / 2
            if wanted > most:
                print(
                    f"warning: this job has {left:.0f} s left; {wanted:.0f} s are wanted for "
                    f"saving (slurm.warning_seconds, and what saves took). Ranks are told "
                    f"{most:.0f} s before its end. Fix: raise slurm.time",
                    flush=True,
                )
        seconds = min(wanted, most)
        if left is not None and left <= seconds:
            process.send_signal(signal.SIGUSR1)
            return
        # A limit can be changed while the job runs, so it is asked for again.
        if ended.wait(60.0 if left is None else max(1.0, min(60.0, left - seconds))):
            return


def seconds_left() -> float | None:
    """Until the end of this SLURM job; None outside of one, and where nobody says."""
    if JOB not in os.environ:
        return None
    command = ["squeue", "--noheader", f"--jobs={os.environ[JOB]}", "--format=%L"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return time_left(done.stdout.strip())


def time_left(text: str) -> float | None:
    """Seconds of SLURM's `[days-][hours:]minutes:seconds`; None for `UNLIMITED` and the like."""
    found = re.fullmatch(r"(?:(\d{1,9})-)?(?:(\d{1,9}):)?(\d{1,9}):(\d{1,9})", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def ask_for_another_job(exclude: Sequence[str] = ()) -> bool:
    """Have the cluster run this job once more when it ends; False where there is no such job.

    Args:
        exclude: all nodes on which it must not run then; none: as it is.
    """
    path = os.environ.get(AGAIN)
    if path is None:
        return False
    Path(path).write_text(",".join(exclude), encoding="ascii")
    return True


def _free_port() -> int:
    """A port that is free on this machine, where ranks of several nodes then meet."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _end_with_parent() -> None:
    end_with_parent(signal.SIGTERM)


def _begin_alone() -> None:
    end_with_parent(signal.SIGTERM)
    # Until the ranks have their own handler, a warning must not end them.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def end_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process `number` when the one that started it dies (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
