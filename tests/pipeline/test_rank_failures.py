"""Ranks that die or hang in a real training on this machine: ended, named, and gone on from."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from trainer_run import Bench, Run

from primus.artifacts.run import read_attempts

pytestmark = pytest.mark.slow

TWO = {"nproc_per_node": 2, "train_iters": 400, "lr_decay_iters": 400, "save_interval": 5}


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The two ranks, the first one first."""
    family = psutil.Process(process.pid).children(recursive=True)
    found = {p.name(): p for p in family}
    return [found["rank000"], found["rank001"]]


# Each rank imports for itself, as on GPUs.
_APART = """
import sys
if "primus.train" in sys.orig_argv:
    import primus.launch
    primus.launch.trainer_imports = lambda platform: ()
"""


def test_ranks_that_share_imports_train_as_ranks_that_do_not(bench: Bench) -> None:
    """To the same bits; and both ways are really taken."""
    hooks = bench.path / "apart"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(_APART)
    changes = TWO | {"train_iters": 6}
    shared, apart = bench.run("imports-shared", **changes), bench.run("imports-apart", **changes)
    apart.environment = {"PYTHONPATH": f"{hooks}:{Path.cwd()}"}
    for run, imports in ((shared, True), (apart, False)):
        process = run.start()
        run.wait_for(1, process).resume()
        words = ranks_of(process)[1].cmdline()
        assert ("--imports" in words) == imports
        output, _ = process.communicate()
        assert process.returncode == 0, output
    assert shared.curve() == apart.curve()
    assert list(shared.curve()) == list(range(1, 7))


def end_of(process: subprocess.Popen[str]) -> str:
    """The last words of a training that failed; none of its processes is left."""
    family = psutil.Process(process.pid).children(recursive=True)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0, output
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    return output


def iterate(run: Run, iteration: int, process: subprocess.Popen[str]) -> None:
    run.wait_for(iteration, process).resume()


@pytest.mark.fault(
    1,
    3,
    injected="SIGKILL, or SIGSEGV, to the second of two ranks",
    observed="its peer and agent end; rank, node, signal and iteration stand in the last line",
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_rank_that_a_signal_ends_is_named(bench: Bench, number: signal.Signals) -> None:
    run = bench.run(f"ended-{number.name}", **TWO)
    process = run.start()
    iterate(run, 7, process)
    ranks_of(process)[1].send_signal(number)
    output = end_of(process)
    said = rf"attempt 1 failed: rank 1 on \S+ was ended by {number.name} after iteration (\d+)"
    found = re.search(said, output)
    assert found, output
    assert int(found[1]) >= 6
    assert "Traceback" not in output.splitlines()[-1]
    assert run.attempt().status == "failed"
    assert f"rank 1 on {run.attempt().host} was ended by {number.name}" in run.attempt().reason


@pytest.mark.fault(
    2,
    injected="SIGSTOP to the second of two ranks",
    observed="the attempt ends, the rank is named as stopped, the other one's stacks are kept; the "
    "rerun goes on",
)
def test_a_rank_that_is_stopped_ends_the_attempt_with_the_stacks_of_the_others(
    bench: Bench,
) -> None:
    run = bench.run("stopped", hang_timeout_minutes=0.05, **TWO)
    process = run.start()
    iterate(run, 7, process)
    ranks_of(process)[1].suspend()
    output = end_of(process)
    said = r"attempt 1 hung: rank 1 on \S+ did not get on after iteration \d+.*was stopped"
    assert re.search(said, output), output
    logs = run.directory / "attempts/001/logs/node000"
    stacks = (logs / "rank000/stacks.txt").read_text()
    assert "torch/distributed" in stacks
    assert "in _iterate" in stacks
    assert (logs / "rank001/stacks.txt").read_text() == ""
    # The same command goes on, and an ordinary run is not taken for a hung one.
    short = bench.run("stopped", hang_timeout_minutes=0.5, **TWO | {"train_iters": 12})
    short.finish()
    assert [attempt.status for attempt in read_attempts(run.directory)] == ["failed", "completed"]


@pytest.mark.fault(
    2,
    injected="a single rank sits in a call of the C library that lets no Python run",
    observed="a timer that needs no Python writes its stacks and ends it",
)
def test_one_rank_alone_watches_itself(bench: Bench) -> None:
    """Its main thread sits in a call that lets no Python run: the timer needs none."""
    run = bench.run("alone", hang_timeout_minutes=0.05, start_timeout_minutes=0.05)
    hook = bench.path / "hook"
    hook.mkdir()
    hook.joinpath("sitecustomize.py").write_text(
        "import sys, ctypes\n"
        "if sys.argv[0] == '-m' and 'primus.train_rank' in ' '.join(sys.orig_argv):\n"
        "    import faulthandler\n"
        "    real = faulthandler.dump_traceback_later\n"
        "    def stuck(*words, **names):\n"
        "        real(*words, **names)\n"
        "        ctypes.PyDLL(None).sleep(60)\n"
        "    faulthandler.dump_traceback_later = stuck\n"
    )
    command = ["env", f"PYTHONPATH={hook}:{Path.cwd()}", *run.command()]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert time.monotonic() - started < 60, "it was ended, and did not end by itself"
    assert (run.directory / "attempts/001/logs/stacks.txt").read_text().startswith("Timeout (")


@pytest.mark.fault(
    38,
    injected="a limit on the address space of two ranks",
    observed="status 71; micro_batch_size, recompute_granularity and TP are named, no blind retry",
)
def test_too_little_memory_names_the_keys_to_change(bench: Bench) -> None:
    run = bench.run("memory", nproc_per_node=2, micro_batch_size=2, hidden_size=1 << 12)
    process = subprocess.Popen(
        run.command(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)),
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 71, output
    last = [line for line in output.splitlines() if line.startswith("error: ")][-1]
    assert "out of memory" in last
    assert "micro_batch_size: 1" in last
    assert "recompute_granularity: full" in last
    assert "run the same command again" not in last


def test_a_single_rank_that_is_killed_is_named(bench: Bench) -> None:
    run = bench.run("single", train_iters=400, lr_decay_iters=400)
    process = run.start()
    run.wait_for(5, process).kill()
    output = end_of(process)
    assert re.search(r"attempt 1 failed: rank 0 on \S+ was ended by SIGKILL after iter", output)


@pytest.mark.fault(
    20,
    injected="a rank does not see a file of its attempt for two seconds",
    observed="it waits, and trains",
)
def test_a_file_that_comes_late_is_waited_for(bench: Bench) -> None:
    """As on a network file system that shows a new file only after a while."""
    run = bench.run("late", train_iters=2)
    hook = bench.path / "late-hook"
    hook.mkdir()
    hook.joinpath("sitecustomize.py").write_text(
        "import pathlib, sys, time\n"
        "if 'primus.train_rank' in ' '.join(sys.orig_argv):\n"
        "    start, real = time.monotonic(), pathlib.Path.stat\n"
        "    def stat(path, *words, **names):\n"
        "        if path.name == 'about.json' and time.monotonic() < start + 2:\n"
        "            raise FileNotFoundError(path)\n"
        "        return real(path, *words, **names)\n"
        "    pathlib.Path.stat = stat\n"
    )
    command = ["env", f"PYTHONPATH={hook}:{Path.cwd()}", *run.command()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sys.executable in run.command()
