"""What the end of a rank means, by its last words and by the kernel's counters."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from primus.ranks.ends import catches, describe, last_lines, oom_kills, signal_name, telling


def end(path: Path, text: str, status: int = 1, *, killed: bool = False):  # type: ignore[no-untyped-def]
    path.joinpath("stderr.log").write_text(text)
    return describe(
        rank=5, local_rank=1, status=status, stderr=path / "stderr.log", killed_for_memory=killed
    )


@pytest.mark.parametrize(
    "text",
    [
        "MemoryError: Unable to allocate 8.00 GiB for an array",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't "
        "allocate memory: you tried to allocate 4398046511104 bytes. Error code 12",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_words_for_too_little_memory(tmp_path: Path, text: str) -> None:
    assert end(tmp_path, f"Traceback (most recent call last):\n{text}\n").out_of_memory


@pytest.mark.parametrize(
    "text",
    [
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by "
        "peer [10.77.0.1]:24105",
        "torch.distributed.DistBackendError: NCCL error: remote process exited or there was a "
        "network error",
        "torch.distributed.DistNetworkError: failed to recv, got 0 bytes",
    ],
)
def test_words_for_another_rank_that_is_gone(tmp_path: Path, text: str) -> None:
    assert end(tmp_path, text).follows
    assert not end(tmp_path, text, -11).follows, "a signal is a cause of its own"


def test_a_kill_is_for_memory_only_where_the_kernel_counted_one(tmp_path: Path) -> None:
    assert end(tmp_path, "", -9, killed=True).out_of_memory
    assert not end(tmp_path, "", -9).out_of_memory
    assert not end(tmp_path, "", -11, killed=True).out_of_memory
    assert end(tmp_path, "", -9).signal == "SIGKILL"
    assert end(tmp_path, "", 3).status == 3


def test_an_ordinary_mistake_is_neither(tmp_path: Path) -> None:
    found = end(tmp_path, "ValueError: the memory of an elephant\n")
    assert not found.out_of_memory
    assert not found.follows


def test_the_last_lines_of_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "stderr.log"
    path.write_bytes(b"\xff" * 50_000 + b"\n\n" + b"\n".join(b"line %d" % n for n in range(99)))
    assert last_lines(path, 2) == ["line 97", "line 98"]
    assert last_lines(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["Fatal Python error: Segmentation fault", "Extension modules: a"], "Fatal Python error"),
        (["[rank0]: Traceback", "[rank0]: ValueError: bad", "and so on"], "[rank0]: ValueError: b"),
        (["first", "last"], "last"),
        (["[W1123 02:04:44.98 socket.cpp:207] [c10d] The hostname", "W1123 02:07 x.py:9] y"], ""),
        ([], ""),
    ],
)
def test_the_line_that_tells_most(lines: list[str], told: str) -> None:
    assert telling(lines).startswith(told)
    assert bool(telling(lines)) == bool(told)


def test_signals_without_a_name_keep_their_number() -> None:
    assert signal_name(11) == "SIGSEGV"
    assert signal_name(40) == "signal 40"


def test_both_versions_of_control_groups_are_read(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    second = tmp_path / "job/step/memory.events"
    second.parent.mkdir(parents=True)
    second.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    own.write_text("0::/job/step\n")
    assert oom_kills(tmp_path, own) == 2
    first = tmp_path / "memory/job/memory.oom_control"
    first.parent.mkdir(parents=True)
    first.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    own.write_text("3:cpu,cpuacct:/job\n2:memory:/job\n")
    assert oom_kills(tmp_path, own) == 4
    assert oom_kills(tmp_path, tmp_path / "none") == 0
    assert oom_kills(tmp_path / "elsewhere", own) == 0


def test_a_handler_is_seen() -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    assert catches(os.getpid(), signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, before)
    assert not catches(os.getpid(), signal.SIGUSR2)
    assert not catches(2**22 + 1, signal.SIGUSR2)
