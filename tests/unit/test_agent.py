"""What starts a node's ranks: signals reach them, one that fails ends the others and is named."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from primus.artifacts.failure import Failure, RankEnd, RankStanding, first_cause, hung_rank

# All of it: each test is quick.
pytestmark = pytest.mark.slow

# `start` says that a rank is there; `act` what it then does, by its number.
RANK = """
import ctypes, os, pathlib, signal, sys, time
rank, directory, acts = int(os.environ["RANK"]), pathlib.Path(sys.argv[1]), sys.argv[2:]
def note(name):
    (directory / f"{name}.{rank}").write_text(str(os.getpid()))
def stop(number, _):
    note(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGTERM, stop)
print("rank", rank, "of", os.environ["WORLD_SIZE"], flush=True)
note("start")
act = acts[rank]
while act != "leave" and not all((directory / f"start.{n}").exists() for n in range(len(acts))):
    time.sleep(0.01)
if act == "segfault":
    ctypes.string_at(1)
elif act == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif act == "memory":
    raise MemoryError("no more")
elif act == "lost":
    time.sleep(0.5)
    raise RuntimeError("[gloo] Connection closed by peer [10.0.0.1]:1234")
elif act == "fail":
    print("what went wrong", file=sys.stderr)
    sys.exit(3)
elif act == "wait":
    time.sleep(60)
elif act == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
"""


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agents]:
    (tmp_path / "act.py").write_text(RANK)
    paths = [str(tmp_path), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    started = Agents(tmp_path)
    yield started
    started.end()


class Agents:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *acts: str, nodes: int = 0, port: int = 0) -> subprocess.Popen[str]:
        """One agent that stands alone, or the next of `nodes`."""
        node = len(self.processes)
        place = (
            ["--nnodes", str(nodes), "--node-rank", str(node), "--master-port", str(port)]
            if nodes
            else ["--standalone"]
        )
        process = subprocess.Popen(
            [
                *(sys.executable, "-u", "-m", "primus.agent", *place),
                *("--nproc-per-node", str(len(acts) // max(nodes, 1))),
                *("--log-dir", str(self.logs(node)), "--module", "act", "--"),
                *(str(self.directory), *acts),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        )
        self.processes.append(process)
        return process

    def logs(self, node: int = 0) -> Path:
        return self.directory / f"node{node:03d}"

    def failure(self, node: int = 0) -> Failure:
        return Failure.load(self.logs(node) / "failure.json")

    def ranks(self, count: int) -> list[psutil.Process]:
        """Once all of them have started."""
        files = [self.directory / f"start.{number}" for number in range(count)]
        deadline = time.monotonic() + 60
        while not all(file.exists() and file.read_text() for file in files):
            assert time.monotonic() < deadline, "the ranks do not start"
            time.sleep(0.02)
        return [psutil.Process(int(file.read_text())) for file in files]

    def forks(self, process: subprocess.Popen[str], count: int) -> list[psutil.Process]:
        """The agent's ranks as soon as they are there; they wait until it has met the others."""
        deadline = time.monotonic() + 60
        while len(found := psutil.Process(process.pid).children()) < count:
            assert time.monotonic() < deadline, "the ranks are not forked"
            time.sleep(0.005)
        return found

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for file in self.directory.glob("start.*"):
            with suppress(psutil.NoSuchProcess):
                psutil.Process(int(file.read_text())).kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_ranks_that_end_well(agents: Agents) -> None:
    output, _ = agents.start("leave", "leave").communicate(timeout=90)
    assert agents.processes[0].returncode == 0, output
    # The first one is shown, each has a file of its own, and nothing failed.
    assert output == "rank 0 of 2\n"
    assert (agents.logs() / "rank001" / "stdout.log").read_text() == "rank 1 of 2\n"
    assert not (agents.logs() / "failure.json").exists()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGUSR1, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_signal_reaches_the_ranks_and_their_end_is_the_agents(
    agents: Agents, number: signal.Signals
) -> None:
    process = agents.start("wait", "wait")
    agents.ranks(2)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    heard = sorted(path.name for path in agents.directory.glob("SIG*"))
    assert heard == [f"{number.name}.0", f"{number.name}.1"]


@pytest.mark.parametrize(
    ("act", "status", "name"),
    [
        ("segfault", None, "SIGSEGV"),
        pytest.param("kill", None, "SIGKILL", marks=pytest.mark.slow),
        pytest.param("fail", 3, None, marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_fails_is_named_and_the_others_end(
    agents: Agents, act: str, status: int | None, name: str | None
) -> None:
    process = agents.start("deaf", act)
    family = agents.ranks(2)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    (end,) = agents.failure().ranks
    assert (end.rank, end.local_rank, end.status, end.signal) == (1, 1, status, name)
    assert (end.out_of_memory, end.follows) == (False, False)
    said = {"segfault": "Fatal Python error: Segmentation fault", "fail": "what went wrong"}
    assert said.get(act, "") in "\n".join(end.lines)


@pytest.mark.slow
def test_too_little_memory_is_recognised(agents: Agents) -> None:
    agents.start("wait", "memory").communicate(timeout=60)
    (end,) = agents.failure().ranks
    assert (end.rank, end.status, end.out_of_memory) == (1, 1, True)


@pytest.mark.slow
def test_a_rank_on_another_node_that_lost_its_peer_is_no_cause(agents: Agents) -> None:
    """Two agents: the rank of the second is killed, that of the first complains of it."""
    port = free_port()
    for _ in range(2):
        agents.start("lost", "kill", nodes=2, port=port)
    for process in agents.processes:
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 1, output
    found = first_cause(agents.failure(node) for node in (1, 0))
    assert found is not None
    assert (found[0].node, found[1].rank, found[1].signal) == (1, 1, "SIGKILL")
    assert [end.follows for end in agents.failure(0).ranks] == [True]


@pytest.mark.slow
def test_a_failure_ends_the_ranks_of_other_nodes(agents: Agents) -> None:
    port = free_port()
    for _ in range(2):
        agents.start("fail", "deaf", nodes=2, port=port)
    family = agents.ranks(2)
    for process in agents.processes:
        process.communicate(timeout=90)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert (agents.failure(1).reason, agents.failure(1).ranks) == ("peer", [])


@pytest.mark.slow
def test_a_port_that_is_taken_is_said(agents: Agents) -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        process = agents.start("leave", "leave", nodes=2, port=listener.getsockname()[1])
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the port is taken. Fix: start again" in output
    assert "Traceback" not in output
    assert agents.failure().reason == "port"


@pytest.mark.slow
def test_ranks_whose_agent_is_told_before_they_have_started(agents: Agents) -> None:
    """The warning comes while they wait for their environment: not lost, and it ends nobody."""
    process = agents.start("wait", "wait")
    agents.forks(process, 2)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert len(list(agents.directory.glob("SIGUSR1.*"))) == 2


def test_the_first_cause_is_not_the_first_complaint() -> None:
    def end(rank: int, when: float, *, follows: bool) -> RankEnd:
        return RankEnd(
            rank=rank,
            local_rank=0,
            status=1,
            signal=None,
            time=when,
            out_of_memory=False,
            follows=follows,
            lines=[],
        )

    def node(number: int, *ends: RankEnd) -> Failure:
        return Failure(node=number, host=f"n{number}", reason="rank", time=0.0, ranks=list(ends))

    early, late = end(0, 1.0, follows=True), end(2, 3.0, follows=False)
    found = first_cause([node(0, early), node(1, late, end(3, 4.0, follows=False))])
    assert found is not None
    assert (found[0].host, found[1].rank) == ("n1", 2)
    assert first_cause([node(0)]) is None
    only = first_cause([node(0, early)])
    assert only is not None
    assert only[1].rank == 0


HANG = """
import os, sys, time
from primus.ranks.progress import Reporter, give_stacks_when_asked
give_stacks_when_asked()
reporter = Reporter()
rank, stuck, pipe = int(os.environ["RANK"]), int(sys.argv[1]), os.pipe()
reporter.say("start", 6)
for iteration in (7, 8):
    reporter.say("iterate", iteration)
def sit_in_a_call():
    os.read(pipe[0], 1)
if rank != stuck:
    reporter.say("reduce", 8)
sit_in_a_call()
"""


@pytest.mark.slow
def test_a_rank_that_does_not_get_on_is_found_with_the_stacks_of_all(agents: Agents) -> None:
    (agents.directory / "hang.py").write_text(HANG)
    command = [
        *(sys.executable, "-u", "-m", "primus.agent", "--standalone", "--nproc-per-node", "2"),
        *("--hang-seconds", "1", "--log-dir", str(agents.logs()), "--module", "hang", "--", "1"),
    ]
    done = subprocess.run(command, check=False, timeout=90)
    assert done.returncode == 1
    failure = agents.failure()
    assert failure.reason == "hang"
    found = hung_rank([failure])
    assert found is not None
    assert (found[1].rank, found[1].iteration, found[1].phase) == (1, 8, "iterate")
    assert found[1].where.startswith("sit_in_a_call (hang.py:")
    for rank in (0, 1):
        stacks = agents.logs() / f"rank{rank:03d}" / "stacks.txt"
        assert "in sit_in_a_call" in stacks.read_text()


def standing(rank: int, **changes: object) -> RankStanding:
    usual: dict[str, object] = {
        "local_rank": rank,
        "step": 9,
        "iteration": 4,
        "phase": "iterate",
        "silent_seconds": 60.0,
        "state": "running",
        "answered": True,
        "waits": True,
        "where": "",
    }
    return RankStanding(rank=rank, **(usual | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("others", "odd"),
    [
        ({}, {"answered": False, "state": "stopped"}),
        ({}, {"step": 8}),
        ({}, {"waits": False}),
        ({"step": 8}, {"answered": False}),
    ],
)
def test_the_rank_for_which_the_others_wait(
    others: dict[str, object], odd: dict[str, object]
) -> None:
    ranks = [standing(n, **(odd if n == 2 else others)) for n in range(4)]
    failures = [
        Failure(node=n, host=f"n{n}", reason="hang", time=0.0, standing=ranks[2 * n : 2 * n + 2])
        for n in range(2)
    ]
    found = hung_rank(failures)
    assert found is not None
    assert (found[0].host, found[1].rank) == ("n1", 2)


def test_where_all_wait_none_is_blamed() -> None:
    all_alike = Failure(
        node=0, host="n", reason="hang", time=0.0, standing=[standing(0), standing(1)]
    )
    assert hung_rank([all_alike]) is None
    assert hung_rank([]) is None
