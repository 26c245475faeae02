"""The checks of the nodes on this machine: two ranks that meet, one that hangs, one that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from trainer_run import REPOSITORY, settings_of

from primus.artifacts.preflight import Preflight

pytestmark = pytest.mark.slow

KEYS: dict[str, Any] = {"gemm_fraction": 0.2, "bandwidth_fraction": 0.2}


def start(path: Path, seconds: float) -> subprocess.Popen[str]:
    settings = path / "settings.json"
    settings_of("train", nproc_per_node=2, preflight=KEYS | {"seconds": seconds}).save(settings)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "primus.preflight", "--settings", str(settings)),
            *("--output", str(path / "preflight.json")),
        ],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rank_of(process: subprocess.Popen[str], number: int) -> psutil.Process:
    """A rank of the checks, as soon as it is there."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.name() == f"rank{number:03d}":
                    return child
            except psutil.Error:
                continue
        time.sleep(0.01)
    raise AssertionError(f"rank {number} does not start")


def test_two_ranks_measure_what_their_machine_can_do(tmp_path: Path) -> None:
    process = start(tmp_path, 200)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    found = Preflight.load(tmp_path / "preflight.json")
    assert (found.hosts, found.finished, found.broken) == ([os.uname().nodename], True, [])
    assert [rank.rank for rank in found.ranks] == [0, 1]
    assert all((rank.tflops or 0) > 0 and rank.repeatable for rank in found.ranks)
    assert len({rank.product for rank in found.ranks}) == 1
    (link,) = found.links
    assert link.nodes == [0]
    assert (link.gb_per_second or 0) > 0
    assert "nodes without a fault: 1" in output


def test_a_rank_that_hangs_is_named_and_nothing_is_left_running(tmp_path: Path) -> None:
    process = start(tmp_path, 40)
    hung = rank_of(process, 1)
    hung.send_signal(signal.SIGSTOP)
    output, _ = process.communicate()
    assert process.returncode == 1, output
    assert not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE
    (finding,) = Preflight.load(tmp_path / "preflight.json").broken
    assert finding.check == "device"
    assert finding.measured.startswith("rank 1 ")
    assert f"error: {finding}" in output


def test_a_rank_that_dies_is_named_with_its_signal(tmp_path: Path) -> None:
    process = start(tmp_path, 200)
    rank_of(process, 1).kill()
    output, _ = process.communicate()
    assert process.returncode == 1, output
    (finding,) = Preflight.load(tmp_path / "preflight.json").broken
    assert finding.measured.startswith("rank 1 ended by SIGKILL")
