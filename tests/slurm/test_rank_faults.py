"""Faults of ranks on the real SLURM: named, survived, and nothing left behind."""

from __future__ import annotations

import re
import signal

import pytest
from cluster_run import SETTINGS, SLOW, TWO, Bench, Job, Run, nothing_is_left_of, ranks
from lab import Lab

from primus.artifacts.run import read_attempts

pytestmark = pytest.mark.slurm


@pytest.mark.fault(
    1,
    2,
    3,
    injected="SIGKILL, SIGSEGV and SIGSTOP, one after the other, to the rank on the second node",
    observed="each is named with its node; no process is left; the run goes on to the undisturbed "
    "curve",
)
@pytest.mark.fault(
    13,
    14,
    injected="scancel --signal=USR1, then TERM, to a job of two nodes",
    observed="saved, two turns more of the same job, the undisturbed curve",
)
def test_ranks_that_die_or_stop_are_named_and_the_run_goes_on(
    lab: Lab, bench: Bench, undisturbed: Run
) -> None:
    """kill -9, a segmentation fault, a stopped rank; then, told to by SLURM, two turns more."""
    run = bench.run("ranks", **TWO)
    reached = 0
    for number, words in (
        (signal.SIGKILL, r"failed: rank 1 on node\d was ended by SIGKILL after iteration \d+"),
        (signal.SIGSEGV, r"failed: rank 1 on node\d was ended by SIGSEGV after iteration \d+"),
        (signal.SIGSTOP, r"hung: rank 1 on node\d did not get on after iteration \d+.*stopped"),
    ):
        # Compiling for a validation takes seconds where many tests share a machine.
        run.changes["hang_timeout_minutes"] = 0.25 if number == signal.SIGSTOP else 5.0
        job = Job(run, nodes=2, environment=SLOW)
        reached += 5
        job.wait_for(reached)
        family = ranks(run)
        assert len(family) == 2
        family[1].send_signal(number)
        log = job.ends("failed")
        assert re.search(rf"attempt \d {words}", log), log
        nothing_is_left_of(run)
    stacks = sorted(run.directory.glob("attempts/003/logs/node00?/rank00?/stacks.txt"))
    assert "in _iterate" in stacks[0].read_text()
    assert stacks[1].read_text() == "", "a process that is stopped cannot answer"
    run.changes["hang_timeout_minutes"] = 5.0
    job = Job(run, nodes=2, environment=SLOW)
    for name in ("USR1", "TERM"):
        reached += 5
        job.wait_for(reached)
        job.signal(name)
    job.finish()
    ends = [attempt.status for attempt in read_attempts(run.directory)]
    assert ends == [*["failed"] * 3, *["preempted"] * 2, "completed"]
    assert [attempt.job for attempt in read_attempts(run.directory)][3:] == [job.number] * 3
    assert run.curve() == undisturbed.curve()
    lost = [row.iteration for row in run.rows()]
    assert len(lost) - len(set(lost)) <= 3 * SETTINGS["save_interval"]
