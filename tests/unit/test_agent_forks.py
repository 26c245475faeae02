"""Ranks are forks of their agent: what one of them sees is as if it had been started by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from primus.launch import thread_environment, trainer_imports

# Says what it is; `shared` has been imported by the agent, for all.
RANK = """
import json, os, pathlib, random, signal, sys
import numpy.random
import shared
import torch
print(json.dumps({
    "environment": {name: os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")},
    "argv": sys.argv, "orig_argv": sys.orig_argv, "module": __name__, "spec": __spec__.name,
    "main": sys.modules["__main__"].__dict__ is globals(), "port": int(os.environ["MASTER_PORT"]),
    "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "group": os.getpgid(0),
    "name": pathlib.Path("/proc/self/comm").read_text().strip(),
    "imported_by": shared.PID, "random": random.random(), "numpy": numpy.random.random(),
    "torch": torch.rand(()).item(),
    "handlers": [repr(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)],
    "warned": repr(signal.getsignal(signal.SIGUSR1)),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "files": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "faulthandler": __import__("faulthandler").is_enabled(),
}))
sys.exit(int(sys.argv[2]))
"""


def command(
    path: Path, *place: str, module: str, imports: str, arguments: tuple[str, ...] = ()
) -> list[str]:
    return [
        *(sys.executable, "-u", "-m", "primus.agent", *place, "--nproc-per-node", "2"),
        *("--log-dir", str(path / "logs"), "--module", module, "--imports", imports),
        *("--", *arguments),
    ]


def said(path: Path, rank: int, stream: str = "stdout") -> str:
    return (path / f"logs/rank{rank:03d}/{stream}.log").read_text()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "look.py").write_text(RANK)
    (tmp_path / "shared.py").write_text("import os\nPID = os.getpid()\n")
    (tmp_path / "broken.py").write_text("import torch\nraise ImportError('it lacks a symbol')\n")
    paths = [str(tmp_path), os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path


def test_a_rank_is_what_a_new_python_would_be(path: Path) -> None:
    words = command(
        path,
        "--standalone",
        module="look",
        imports="shared,numpy.random,torch",
        arguments=("a b", "0"),
    )
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as agent:
        output, _ = agent.communicate(timeout=90)
    assert agent.returncode == 0, output
    ranks: list[dict[str, Any]] = [json.loads(said(path, rank)) for rank in (0, 1)]
    for number, rank in enumerate(ranks):
        assert rank["environment"] == {
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": "2",
        }
        assert rank["argv"] == [str(path / "look.py"), "a b", "0"]
        assert rank["orig_argv"] == [sys.executable, "-u", "-m", "look", "a b", "0"]
        assert (rank["module"], rank["spec"], rank["main"]) == ("__main__", "look", True)
        assert rank["parent"] == rank["imported_by"] == agent.pid
        assert rank["pid"] == rank["session"] == rank["group"]
        assert rank["name"] == f"rank{number:03d}"
        assert rank["handlers"][:2] == [repr(signal.SIG_DFL)] * 2
        assert "default_int_handler" in rank["handlers"][2]
        assert (rank["warned"], rank["blocked"]) == (repr(signal.SIG_IGN), [])
        assert rank["faulthandler"]
        # Its own three, and the listing's: of the agent's and of other ranks' none is left.
        assert rank["files"] == [0, 1, 2, 3]
    assert ranks[0]["port"] == ranks[1]["port"] > 0
    for generator in ("random", "numpy", "torch"):
        assert ranks[0][generator] != ranks[1][generator]
    assert json.loads(output)["pid"] == ranks[0]["pid"], "the first rank is shown"


def test_what_cannot_be_imported_is_the_ranks_error(path: Path) -> None:
    words = command(path, "--standalone", module="look", imports="broken", arguments=("a", "0"))
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 1
    failure = json.loads((path / "logs/failure.json").read_text())
    assert failure["reason"] == "rank"
    assert {rank["status"] for rank in failure["ranks"]} == {1}
    for rank in (0, 1):
        error = said(path, rank, "stderr")
        assert error.endswith("ImportError: it lacks a symbol\n")
        assert 'broken.py", line 2' in error
        assert said(path, rank) == ""
    assert "ImportError: it lacks a symbol" in done.stderr, "the first rank is shown"


def waiting(path: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """An agent that waits for the first node, which never comes; its ranks wait for it."""
    place = ("--nnodes", "2", "--node-rank", "1", "--master-port", "9")
    words = command(path, *place, module="look", imports="shared", arguments=("a", "0"))
    agent = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(ranks := psutil.Process(agent.pid).children()) < 2:
        assert time.monotonic() < deadline, "the ranks are not forked"
        time.sleep(0.01)
    return agent, ranks


def test_an_agent_that_is_killed_before_its_ranks_begin_leaves_none(path: Path) -> None:
    agent, ranks = waiting(path)
    try:
        agent.kill()
        agent.wait()
        _, alive = psutil.wait_procs(ranks, timeout=30)
        assert not alive
        assert "the agent of this rank has ended" in said(path, 3, "stderr")
        assert said(path, 2) == said(path, 3) == ""
    finally:
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_rank_that_waits_dies_of_a_signal(path: Path, number: signal.Signals) -> None:
    agent, ranks = waiting(path)
    try:
        ranks[1].send_signal(signal.SIGUSR1)
        time.sleep(0.2)
        assert [rank.status() for rank in ranks] == [psutil.STATUS_SLEEPING] * 2
        ranks[1].send_signal(number)
        deadline = time.monotonic() + 30
        while ranks[1].status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        agent.kill()
        agent.wait()


IMPORTING = """
import importlib, json, os, sys
for name in sys.argv[1:]: importlib.import_module(name)
import numpy, psutil, torch
own = psutil.Process()
print(json.dumps([own.num_threads(), len(own.children()), own.net_connections(),
    torch.cuda.is_initialized(), "megatron.core" in sys.modules]), flush=True)
pid = os.fork()
if pid == 0:
    numpy.ones((600, 600)) @ numpy.ones((600, 600))
    one = torch.ones(600, 600, requires_grad=True)
    (one @ one).sum().backward()
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 4])
def test_what_a_training_imports_can_be_forked(threads: int) -> None:
    """A fork of a process with threads, or with a device that is open, could hang."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTING, *trainer_imports("cpu")],
        env=os.environ | thread_environment(threads),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 7, done.stderr
    count, *others = json.loads(done.stdout)
    assert others == [0, [], False, True]
    # OpenBLAS has some at once, and ends them itself before a fork.
    assert count == 1 or threads > 1


def test_nothing_is_imported_for_the_ranks_of_gpus() -> None:
    """Their libraries read variables, and open devices and logs, when they are loaded."""
    assert trainer_imports("cuda") == trainer_imports("rocm") == ()
