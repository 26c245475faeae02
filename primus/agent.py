"""Start a node's ranks, pass signals on to them, and say why one of them ended.

    python -m primus.agent --nnodes 2 --node-rank 0 --nproc-per-node 8 --master-addr 10.0.0.1 \\
        --master-port 29500 --log-dir LOGS --module primus.train_rank -- ARGUMENTS

`--standalone` instead of the node's place and the address: this machine alone, on a port that is
free. Each rank writes into `LOGS/rank000/stdout.log` and `stderr.log`; the first rank of all is
shown, too. When a rank fails, the others of all nodes are given a few seconds, then killed, and
`LOGS/failure.json` says what was seen (`primus.artifacts.failure`). No rank is started again.

Processes and their logs are torch's own (`torch.distributed.elastic.multiprocessing`), and so is
the store by which ranks and agents meet. The watching is not: torchrun takes the end of a save
for a hang after 30 s, dies of SIGUSR1, and calls a run that saved and left after SIGTERM failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from primus.artifacts.failure import Failure, RankEnd
from primus.errors import TrainingError, run_main
from primus.ranks.ends import catches, describe, oom_kills

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]
    from torch.distributed.elastic.multiprocessing import PContext

_POLL_SECONDS = 0.1
# For the other ranks to end by themselves, with what they have to say, once one has failed.
GRACE_SECONDS = 5.0
# Nodes of a job start at different times, containers take their time.
_MEET = timedelta(minutes=15)
_LEAVE_SECONDS = 60.0
# Set only once: its presence says that ranks have failed somewhere.
_FAILED, _DONE = "agent/failed", "agent/done"
# What ranks are told with, by the signal that came.
_PASSED_ON = {
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the ranks to their end; the status is 0 where all of them ended well."""
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
    parser.add_argument("--log-dir", type=Path, required=True, help="of the ranks' output")
    parser.add_argument("--module", required=True, help="what each rank runs, as in python -m")
    parser.add_argument("arguments", nargs="*", help="its command line")
    args = parser.parse_args(argv)
    if not args.standalone and args.master_port == 0:
        parser.error("--master-port or --standalone is needed")
    raise SystemExit(Agent(args).run())


class Agent:
    """The ranks of this node."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._asked: signal.Signals | None = None
        self._told: set[int] = set()
        # Others' failure; set by a thread, so that a network that is cut blocks nothing here.
        self._others_failed = threading.Event()
        self._ends: dict[int, RankEnd] = {}
        self._well: set[int] = set()
        self._ooms = oom_kills()

    def run(self) -> int:
        """Start the ranks and wait for them; the exit status of this process."""
        for number in _PASSED_ON:
            signal.signal(number, self._ask)
        self._args.log_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._store = self._meet()
        except RuntimeError as error:
            raise self._unmet(str(error)) from error
        if self._asked not in (None, signal.SIGUSR1):
            return 128 + signal.SIGTERM
        self._ranks = self._start()
        if self._args.nnodes > 1:
            threading.Thread(target=self._listen, name="listen", daemon=True).start()
        try:
            return self._watch()
        finally:
            self._end_all()

    def _ask(self, number: int, _: Any) -> None:
        self._asked = _PASSED_ON[signal.Signals(number)]
        self._told = set()

    def _meet(self) -> Store:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        args = self._args
        store = TCPStore(
            args.master_addr,
            args.master_port,
            is_master=args.node_rank == 0,
            timeout=_MEET,
            wait_for_workers=False,
        )
        self._port = store.port
        return store

    def _unmet(self, why: str) -> TrainingError:
        args = self._args
        where = f"{args.master_addr} port {args.master_port}"
        taken = "EADDRINUSE" in why
        self._record("port" if taken else "peer")
        return TrainingError(
            f"{where}: the port is taken. Fix: start again, another one is chosen"
            if taken
            else f"{where}: this node did not meet the first one: {why.splitlines()[0]}"
        )

    def _start(self) -> PContext:
        from torch.distributed.elastic.multiprocessing import start_processes

        from primus.ranks.logs import RankLogs

        args, numbers = self._args, range(self._args.nproc_per_node)
        # torch would replace the handlers of these by its own.
        os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
        # A rank that has not got to its own handler yet must not die of the warning.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        started = start_processes(
            name="rank",
            entrypoint=sys.executable,
            args=dict.fromkeys(numbers, ("-u", "-m", args.module, *args.arguments)),
            envs={number: self._environment(number) for number in numbers},
            logs_specs=RankLogs(args.log_dir, self._first, shown=args.node_rank == 0),
            log_line_prefixes={0: ""},
        )
        signal.signal(signal.SIGUSR1, self._ask)
        return started

    @property
    def _first(self) -> int:
        return int(self._args.node_rank * self._args.nproc_per_node)

    def _environment(self, number: int) -> dict[str, str]:
        args = self._args
        return {
            "RANK": str(self._first + number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(args.nnodes * args.nproc_per_node),
            "LOCAL_WORLD_SIZE": str(args.nproc_per_node),
            "GROUP_RANK": str(args.node_rank),
            "MASTER_ADDR": args.master_addr,
            "MASTER_PORT": str(self._port),
            "TORCHELASTIC_RUN_ID": "agent",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get(
                "TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"
            ),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            # A rank that a signal ends says where it was.
            "PYTHONFAULTHANDLER": "1",
        }

    def _watch(self) -> int:
        while True:
            self._look()
            if self._ends:
                return self._fail("rank")
            if len(self._well) == self._args.nproc_per_node:
                return self._leave()
            if self._others_failed.is_set():
                return self._fail("peer")
            self._tell()
            time.sleep(_POLL_SECONDS)

    def _running(self) -> dict[int, int]:
        """Process numbers by local rank."""
        gone = self._ends.keys() | self._well
        return {n: pid for n, pid in self._ranks.pids().items() if n not in gone}

    def _look(self) -> None:
        """Note the ranks that have ended, without taking their ends from torch."""
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
                stderr=self._stderr(number),
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

    def _fail(self, reason: str) -> int:
        """Give the others a moment, and say what was seen: at once, and again at the end."""
        stopped = self._asked == signal.SIGTERM and {e.signal for e in self._ends.values()} == {
            "SIGTERM"
        }
        if not stopped:
            self._record(reason)
        threading.Thread(target=self._tell_others, name="tell", daemon=True).start()
        end = time.monotonic() + GRACE_SECONDS
        while self._running() and time.monotonic() < end:
            self._look()
            time.sleep(_POLL_SECONDS)
        if not stopped:
            self._record(reason)
            self._say()
        return 128 + signal.SIGTERM if stopped else 1

    def _record(self, reason: Any) -> None:
        failure = Failure(
            node=self._args.node_rank,
            host=socket.gethostname(),
            reason=reason,
            time=time.time(),
            ranks=sorted(self._ends.values(), key=lambda end: end.time),
        )
        failure.save(self._args.log_dir / "failure.json")

    def _say(self) -> None:
        for end in self._ends.values():
            if not end.follows:
                how = f"ended by {end.signal}" if end.signal else f"exit status {end.status}"
                where = f"rank {end.rank} on {socket.gethostname()}"
                print(f"error: {where}: {how}. Its output: {self._stderr(end.local_rank)}")

    def _stderr(self, number: int) -> Path:
        return Path(self._args.log_dir, f"rank{self._first + number:03d}", "stderr.log")

    def _tell_others(self) -> None:
        # The first node, which keeps the store, may be the one that is gone.
        with suppress(RuntimeError):
            self._store.set(_FAILED, socket.gethostname())

    def _listen(self) -> None:
        while True:
            try:
                failed = self._store.check([_FAILED])
            except RuntimeError:
                failed = True
            if failed:
                self._others_failed.set()
                return
            time.sleep(0.5)

    def _leave(self) -> int:
        """The first node keeps the store until the ranks of all nodes have ended."""
        nodes = self._args.nnodes
        if nodes == 1:
            return 0
        with suppress(RuntimeError):
            self._store.add(_DONE, 1)
            end = time.monotonic() + _LEAVE_SECONDS
            while self._args.node_rank == 0 and self._store.add(_DONE, 0) < nodes:
                if self._others_failed.is_set() or time.monotonic() > end:
                    break
                time.sleep(_POLL_SECONDS)
        return 0

    def _end_all(self) -> None:
        """No process of a rank stays, those that it has started included."""
        for pid in self._ranks.pids().values():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._ranks.close(signal.SIGKILL)


if __name__ == "__main__":
    run_main(main)
