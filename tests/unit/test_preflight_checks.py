"""Each check of a node, really made on this machine."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from primus import launch
from primus.artifacts.preflight import Fault
from primus.health import cards, devices, disk
from primus.health.roll_call import roll_call
from primus.launch import AGAIN, JOB, ask_for_another_job
from primus.slurm import nodes


def test_a_disk_is_written_and_read_back(tmp_path: Path) -> None:
    found = disk.measure(tmp_path, 2)
    assert found.error == ""
    assert min(found.free_gib or 0, found.write_mb_s or 0, found.read_mb_s or 0) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert (
        disk.measure(tmp_path / "none", 1).error
        == f"{tmp_path / 'none'}: No such file or directory"
    )


def test_a_disk_that_is_full_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert disk.measure(tmp_path, 1).error == f"{tmp_path}: No space left on device"


def test_a_disk_that_gives_back_other_bytes_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: bytes([real(fd, size)[0] ^ 1]) * size)
    assert "other bytes" in disk.measure(tmp_path, 1).error


def test_tokens_and_marks_of_another_call_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_PATIENCE_SECONDS", 0.0)
    disk.leave_token(tmp_path, "now")
    disk.leave_mark(tmp_path, 0, "now")
    disk.leave_mark(tmp_path, 1, "before")
    assert disk.sees_token(tmp_path, "now")
    assert not disk.sees_token(tmp_path, "other")
    assert disk.unseen_marks(tmp_path, [0, 1, 2], "now", seconds=0.0) == [1, 2]


NVIDIA = """\
0, 0, No, No, Not Active
1, 3, No, No, Active
2, [N/A], Yes, Yes, Not Active
"""


def test_faults_that_nvidias_driver_reports() -> None:
    assert [(f.text, f.severity) for f in cards.from_csv(NVIDIA)] == [
        ("GPU 1: uncorrected memory errors (3)", "broken"),
        ("GPU 1: clocks are held down", "slow"),
        ("GPU 2: a memory row waits for a reset to be remapped", "slow"),
        ("GPU 2: a memory row could not be remapped", "broken"),
    ]


def test_a_job_asks_for_its_own_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "$@" > "$0.said"\necho "2, 1, No, No, Not Active"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = cards.faults({"CUDA_VISIBLE_DEVICES": "2,3"}, root=tmp_path)
    assert found == [Fault(text="GPU 2: uncorrected memory errors (1)", severity="broken")]
    assert "--id=2,3" in (tmp_path / "nvidia-smi.said").read_text().split()


def test_a_driver_that_cannot_be_asked_reports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Field is not a valid field to query.'\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert cards.faults({}, root=tmp_path) == []


def test_faults_that_amds_driver_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for card, block, number in (("card0", "umc", 0), ("card1", "gfx", 2)):
        path = tmp_path / "sys/class/drm" / card / "device/ras" / f"{block}_err_count"
        path.parent.mkdir(parents=True)
        path.write_text(f"ue: {number}\nce: 7\n")  # codespell:ignore ue
    (found,) = cards.faults({}, root=tmp_path)
    assert found == Fault(text="card1: uncorrected errors in gfx (2)", severity="broken")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_has_the_same_bits_every_time(dtype: torch.dtype) -> None:
    first, repeatable = devices.product(dtype, torch.device("cpu"))
    assert (devices.product(dtype, torch.device("cpu")), repeatable) == ((first, True), True)


def test_a_device_that_is_wrong_now_and_then_is_noticed() -> None:
    calls = []

    def flipped(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        found = a @ b
        if len(calls) == 3:
            found[7, 9] = found[7, 9].nextafter(torch.tensor(9.0))
        return found

    assert not devices.product(torch.float32, torch.device("cpu"), flipped)[1]


def test_this_machine_answers_the_roll_call(tmp_path: Path) -> None:
    disk.leave_token(tmp_path, "token")
    found = roll_call(nodes=1, step=False, directory=tmp_path, token="token", limit=60)
    (node,), (clock,) = found.nodes, found.clocks
    assert (node.host, node.sees, node.directory.error) == (os.uname().nodename, True, "")
    assert disk.unseen_marks(tmp_path, [0], "token", seconds=0.0) == []
    assert clock.low <= 0 <= clock.high


SRUN = """\
#!{python}
import os, subprocess, sys, time
ranks = []
command = sys.argv[sys.argv.index({python!r}):]
for node in range(3):
    if node == 1:
        continue  # does not answer
    environment = os.environ | {{"SLURM_NODEID": str(node)}}
    ranks.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE))
for line in sys.stdin:
    for rank in ranks:
        rank.stdin.write(line.encode())
        rank.stdin.flush()
for rank in ranks:
    rank.stdin.close()
    rank.wait()
"""


@pytest.mark.slow
def test_a_node_that_does_not_answer_is_missed_and_the_others_are_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_srun = tmp_path / "srun"
    fake_srun.write_text(SRUN.format(python=sys.executable))
    fake_srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    disk.leave_token(tmp_path, "token")
    found = roll_call(nodes=3, step=True, directory=tmp_path, token="token", limit=15)
    assert [node.node for node in found.nodes] == [0, 2]
    assert [clock.node for clock in found.clocks] == [0, 2]


def test_a_roll_call_that_cannot_start_hears_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_srun = tmp_path / "srun"
    fake_srun.write_text("#!/bin/sh\necho 'srun: error: no' >&2\nexit 1\n")
    fake_srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = roll_call(nodes=2, step=True, directory=tmp_path, token="token", limit=1000)
    assert (found.nodes, found.clocks) == ([], [])


JOB_LINE = (
    "JobId=7 JobName=x Partition=main NumNodes={wanted} ExcNodeList={excluded} Features=(null)"
)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the cluster says of the job and its partition."""
    said = SimpleNamespace(
        wanted="2-2", excluded="(null)", states="n1 idle\nn2 alloc\nn3 idle\nn4 idle\n"
    )

    def ask(command: Sequence[str]) -> str:
        if command[0] == "sinfo":
            assert "--partition=main" in command
            return str(said.states)
        return JOB_LINE.format(wanted=said.wanted, excluded=said.excluded)

    monkeypatch.setenv(JOB, "7")
    monkeypatch.setattr(nodes.queue, "ask", ask)
    monkeypatch.setattr(nodes, "node_names", lambda text: text.split(","))
    return said


def test_a_job_does_without_the_old_and_the_new_nodes(slurm: SimpleNamespace) -> None:
    slurm.excluded = "n1"
    assert nodes.without(["n3"]).nodes == ("n1", "n3")


@pytest.mark.parametrize("state", ["down", "down*", "drained", "draining", "idle*", "maint"])
def test_a_job_is_never_left_without_nodes(slurm: SimpleNamespace, state: str) -> None:
    assert nodes.without(["n3", "n4"]).nodes == ("n3", "n4")
    slurm.states = slurm.states.replace("n2 alloc", f"n2 {state}")
    found = nodes.without(["n3", "n4"])
    assert found.nodes == ()
    assert found.why == "partition main has 1 other nodes, and the job takes 2"


def test_what_is_no_job_excludes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB, raising=False)
    assert nodes.without(["n1"]).why == "this is no job of the pipeline on SLURM"


def test_the_next_turn_is_asked_for_with_the_nodes_to_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AGAIN, str(tmp_path / "again"))
    assert ask_for_another_job(exclude=("n1", "n3"))
    assert (tmp_path / "again").read_text() == "n1,n3"
    assert ask_for_another_job()
    assert (tmp_path / "again").read_text() == ""


def test_what_hears_no_signal_is_killed_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_END_SECONDS", 0.3)
    deaf = subprocess.Popen(
        ["sh", "-c", "trap '' TERM INT; sleep 300 & echo $!; wait"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with deaf:
        assert deaf.stdout is not None
        child = psutil.Process(int(deaf.stdout.readline()))
        assert launch.end_hard(deaf) == -signal.SIGKILL
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
