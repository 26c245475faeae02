"""Start a node's ranks, pass signals on to them, and say why one of them ended.

    python -u -m primus.agent --nnodes 2 --node-rank 0 --nproc-per-node 8 --master-addr 10.0.0.1 \\
        --master-port 29500 --log-dir LOGS --module primus.train_rank -- ARGUMENTS

`--standalone` instead of the node's place and the address: this machine alone, on a port that is
free. What `--imports` names is imported here, once for all ranks: they are forks of this process.
Each rank writes into `LOGS/rank000/stdout.log` and `stderr.log`; the first rank of all is shown,
too. When a rank fails, the others of all nodes are given a few seconds, then killed, and
`LOGS/failure.json` says what was seen (`primus.artifacts.failure`). With `--hang-seconds`, so is a
rank that does not say for that long how far it is (`primus.ranks.progress`). What ranks that are
killed were doing stands in `LOGS/rank000/stacks.txt`. No rank is started again.

The store by which ranks and agents meet is torch's own. The rest is not: torchrun starts a Python
for each rank, takes the end of a save for a hang after 30 s, dies of SIGUSR1, and calls a run that
saved and left after SIGTERM failed.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primus.artifacts.failure import Failure, RankEnd, RankStanding, Reason, how
from primus.errors import TrainingError, run_main
from primus.quick_imports import quick_imports
from primus.ranks import network
from primus.ranks.ends import catches, describe, oom_kills
from primus.ranks.forks import Forks, Program, run_as_main
from primus.ranks.logs import shown
from primus.ranks.parent import AGENT
from primus.ranks.places import rank_directory
from primus.ranks.progress import HANG, START
from primus.ranks.scratch import scratch
from primus.ranks.watch import Patience, Watch

if TYPE_CHECKING:
    from primus.ranks.meeting import Meeting

_POLL_SECONDS = 0.1
_WATCH_SECONDS = 1.0
# For the other ranks to end by themselves, with what they have to say, once one has failed.
GRACE_SECONDS = 5.0
# What ranks are told with, by the signal that came.
_PASSED_ON = {
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the ranks to their end; the status is 0 where all of them ended well.

    Returns in a rank, which is a fork.
    """
    parser = argparse.ArgumentParser(
        prog="python -m primus.agent",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nnodes", type=int, default=1, help="nodes in all")
    parser.add_argument("--node-rank", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("--nproc-per-node", type=int, required=True, help="ranks on this node")
    parser.add_argument("--master-addr", default="127.0.0.1", help="of the first node")
    parser.add_argument("--master-port", type=int, default=0, help="free on the first node")
    parser.add_argument("--standalone", action="store_true", help="this machine alone")
    parser.add_argument(
        "--hang-seconds",
        type=float,
        default=os.environ.get(HANG),
        help=f"a rank that is silent for longer hangs; default: ${HANG}, else never",
    )
    parser.add_argument(
        "--start-seconds",
        type=float,
        default=os.environ.get(START, "0"),
        help=f"the same before its first iteration ends; default: ${START}",
    )
    parser.add_argument("--log-dir", type=Path, required=True, help="of the ranks' output")
    parser.add_argument("--module", required=True, help="what each rank runs, as in python -m")
    parser.add_argument(
        "--imports",
        type=lambda text: text.split(","),
        default=[],
        help="modules to import for all ranks, with commas between them",
    )
    parser.add_argument("arguments", nargs="*", help="its command line")
    args = parser.parse_args(argv)
    if not args.standalone and args.master_port == 0:
        parser.error("--master-port or --standalone is needed")
    agent = Agent(args)
    if not agent.fork():
        raise SystemExit(agent.run())


class Agent:
    """The ranks of this node."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._first = args.node_rank * args.nproc_per_node
        # What is on one node is nobody else's business.
        self._address = network.LOCAL if args.nnodes == 1 else args.master_addr
        self._patience = args.hang_seconds and Patience(
            seconds=args.hang_seconds, start_seconds=args.start_seconds
        )
        self._asked: signal.Signals | None = None
        self._told: set[int] = set()
        self._ends: dict[int, RankEnd] = {}
        self._well: set[int] = set()
        self._standing: list[RankStanding] = []
        self._ooms = oom_kills()
        self._ranks = Forks()

    def fork(self) -> bool:
        """Import what all ranks need, then fork them; True in a rank.

        Raises:
            Exception: in a rank: what it needs cannot be imported.
        """
        for caught in _PASSED_ON:
            signal.signal(caught, self._ask)
        # Of this process, too: libraries read it when they are loaded.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        error = self._import()
        for number in range(self._args.nproc_per_node):
            if self._ranks.add(number, self._program(number)):
                if error is not None:
                    raise error
                return True
        return False

    def _import(self) -> Exception | None:
        """What went wrong; it is the ranks' error, not this process's, as far as that can go on."""
        try:
            with quick_imports():
                for name in self._args.imports:
                    importlib.import_module(name)
        except Exception as error:
            # The ranks' second attempt could end otherwise: torch cannot be imported twice.
            if "torch" not in sys.modules:
                raise
            return error
        return None

    def _program(self, number: int) -> Program:
        return Program(
            name=rank_directory(self._first + number),
            module=self._args.module,
            arguments=self._args.arguments,
            stdout=self._file(number, "stdout.log"),
            stderr=self._file(number, "stderr.log"),
        )

    def run(self) -> int:
        """Let the ranks begin and wait for them; the exit status of this process."""
        numbers = range(self._args.nproc_per_node)
        with ExitStack() as stack:
            progress = stack.enter_context(scratch())
            if self._args.node_rank == 0:
                stack.enter_context(shown(self._program(0)))
            # No process of a rank stays, those that it has started included.
            stack.callback(self._ranks.end, GRACE_SECONDS)
            self._meeting = self._meet()
            if self._asked not in (None, signal.SIGUSR1):
                return 128 + signal.SIGTERM
            stacks = {number: self._file(number, "stacks.txt") for number in numbers}
            self._watch = Watch(progress, stacks, self._first)
            for number in numbers:
                self._ranks.begin(number, self._environment(number))
            return self._wait()

    def _ask(self, number: int, _: Any) -> None:
        self._asked = _PASSED_ON[signal.Signals(number)]
        self._told = set()

    def _meet(self) -> Meeting:
        with quick_imports():
            from primus.ranks.meeting import Meeting

        args = self._args
        try:
            address = network.numeric(self._address)
            return Meeting(address, args.master_port, node=args.node_rank, nodes=args.nnodes)
        except (OSError, RuntimeError) as error:
            where = f"{self._address} port {args.master_port}"
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            self._record("port" if taken else "peer")
            raise TrainingError(
                f"{where}: the port is taken. Fix: start again, another one is chosen"
                if taken
                else f"{where}: this node did not meet the first one: {str(error).splitlines()[0]}"
            ) from error

    def _environment(self, number: int) -> dict[str, str]:
        args = self._args
        return {
            "RANK": str(self._first + number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(args.nnodes * args.nproc_per_node),
            "LOCAL_WORLD_SIZE": str(args.nproc_per_node),
            "GROUP_RANK": str(args.node_rank),
            "MASTER_ADDR": self._address,
            "MASTER_PORT": str(self._meeting.port),
            "TORCHELASTIC_RUN_ID": "agent",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get(
                "TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"
            ),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            # A rank that a signal ends says where it was.
            "PYTHONFAULTHANDLER": "1",
            **(network.stay_local() if args.nnodes == 1 else {}),
            AGENT: str(os.getpid()),
            **self._watch.environment(number),
        }

    def _wait(self) -> int:
        looked = time.monotonic()
        while True:
            self._look()
            if self._ends:
                return self._fail("rank")
            if len(self._well) == self._args.nproc_per_node:
                self._meeting.leave()
                return 0
            if self._meeting.heard.is_set():
                return self._fail("hang" if self._meeting.reason == "hang" else "peer")
            if self._patience and time.monotonic() - looked > _WATCH_SECONDS:
                looked = time.monotonic()
                if self._watch.stuck(self._running(), self._patience):
                    return self._fail("hang")
            self._tell()
            time.sleep(_POLL_SECONDS)

    def _running(self) -> dict[int, int]:
        """Process numbers by local rank."""
        gone = self._ends.keys() | self._well
        return {n: pid for n, pid in self._ranks.pids.items() if n not in gone}

    def _look(self) -> None:
        """Note the ranks that have ended; their numbers stay taken until all are killed."""
        for number, pid in self._running().items():
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                continue
            status = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            if status == 0:
                self._well.add(number)
                continue
            self._ends[number] = describe(
                rank=self._first + number,
                local_rank=number,
                status=status,
                iteration=self._watch.iteration(number),
                stderr=self._file(number, "stderr.log"),
                killed_for_memory=oom_kills() > self._ooms,
            )

    def _tell(self) -> None:
        """Pass on, once, what was asked; the warning when a rank is ready to hear it."""
        asked = self._asked
        if asked is None:
            return
        for pid in set(self._running().values()) - self._told:
            # It would end a rank that only starts, and one that is on its way out.
            if asked == signal.SIGUSR1 and not catches(pid, asked):
                continue
            with suppress(ProcessLookupError):
                os.kill(pid, asked)
            self._told.add(pid)

    def _fail(self, reason: Reason) -> int:
        """Give the others a moment, note what they do, and end; the exit status.

        The record is written at once, and again at the end: this process may be killed, too.
        """
        self._meeting.tell(reason)
        signals = {end.signal for end in self._ends.values()}
        if self._asked == signal.SIGTERM and signals == {"SIGTERM"}:
            return 128 + signal.SIGTERM
        self._record(reason)
        end = time.monotonic() + (0 if reason == "hang" else GRACE_SECONDS)
        while self._running() and time.monotonic() < end:
            self._look()
            time.sleep(_POLL_SECONDS)
        self._standing = self._watch.survey(self._running())
        self._record(reason)
        self._say()
        self._meeting.wait_told(GRACE_SECONDS)
        return 1

    def _record(self, reason: Reason) -> None:
        failure = Failure(
            node=self._args.node_rank,
            host=socket.gethostname(),
            reason=reason,
            time=time.time(),
            ranks=sorted(self._ends.values(), key=lambda end: end.time),
            standing=self._standing,
        )
        failure.save(self._args.log_dir / "failure.json")

    def _say(self) -> None:
        for end in self._ends.values():
            if not end.follows:
                where = f"rank {end.rank} on {socket.gethostname()}"
                file = self._file(end.local_rank, "stderr.log")
                print(f"error: {where} {how(end)}. Its output: {file}", flush=True)

    def _file(self, number: int, name: str) -> Path:
        return Path(self._args.log_dir, rank_directory(self._first + number), name)


if __name__ == "__main__":
    run_main(main)
    # Only a rank comes here.
    run_as_main()
