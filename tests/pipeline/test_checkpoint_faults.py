"""The trainer as a process while a checkpoint is being written: killed, without space, EIO.

Each fault once with saves at once and once with saves behind the training.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from trainer_run import REPOSITORY, Bench, Run, wait_until

from primus.trainer.checkpoint_directory import verify
from primus.trainer.checkpoint_space import free_bytes

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

LAST = 12
CHANGES = {"train_iters": LAST, "save_interval": 2, "eval_iters": 0}
BEHIND = pytest.mark.parametrize("behind", [False, True], ids=["at once", "behind the training"])
# A stand-in for a bad disk: fsync of a file whose path holds EIO_IN fails. `strace -e inject` would
# do so to any file, and slow every system call down.
EIO = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int fsync(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    if (strstr(path, getenv("EIO_IN"))) {
        errno = EIO;
        return -1;
    }
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return next(file);
}
"""


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Run:
    """A run from start to end in one attempt that saves at once; tests only read it."""
    run = bench.run("undisturbed", **CHANGES)
    run.finish()
    return run


@pytest.fixture(scope="module")
def bad_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library whose fsync fails."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    path = tmp_path_factory.mktemp("eio")
    (path / "eio.c").write_text(EIO)
    command = ["gcc", "-shared", "-fPIC", "-o", str(path / "eio.so"), str(path / "eio.c"), "-ldl"]
    subprocess.run(command, check=True)
    return path / "eio.so"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def stop_inside_a_save(run: Run, process: subprocess.Popen[str]) -> psutil.Process:
    """The rank, stopped while a shard of a checkpoint after the second lies unpublished."""
    while True:
        wait_until(lambda: len(run.checkpoints()) >= 2 and any(unfinished(run)), process)
        rank = psutil.Process(run.attempt().pid)
        rank.send_signal(signal.SIGSTOP)
        if any(unfinished(run)):
            return rank
        rank.resume()


def unfinished(run: Run) -> list[Path]:
    return list((run.directory / "checkpoints").glob(".iter_*.tmp/*.distcp"))


@pytest.mark.fault(
    4,
    injected="SIGKILL to a rank while shards lie in the temporary directory; saves at once, and "
    "behind the training",
    observed="the checkpoint before it loads, the rerun ends on the undisturbed curve",
)
@BEHIND
def test_killed_during_a_save(bench: Bench, undisturbed: Run, behind: bool) -> None:
    run = bench.run(f"killed-{behind}", async_save=behind, **CHANGES)
    process = run.start()
    rank = stop_inside_a_save(run, process)
    before = run.checkpoints()
    rank.kill()
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "SIGKILL" in output
    assert unfinished(run), "the kill came while a checkpoint was being written"
    assert run.checkpoints() == before
    key = undisturbed.manifest().key
    for checkpoint in before:
        verify(checkpoint, key)
    assert f"resuming from {before[-1].name}" in run.finish()
    assert run.curve() == undisturbed.curve()
    assert not list((run.directory / "checkpoints").glob(".iter_*"))


@pytest.mark.fault(
    13,
    injected="SIGTERM while a save behind the training is under way",
    observed="that save and the last one are complete, status 75, the rerun ends on the same curve",
)
def test_asked_to_stop_during_a_save_behind_the_training(bench: Bench, undisturbed: Run) -> None:
    run = bench.run("stopped", async_save=True, **CHANGES)
    process = run.start()
    rank = stop_inside_a_save(run, process)
    (in_flight,) = {path.parent.name.split(".")[1] for path in unfinished(run)}
    process.terminate()
    rank.resume()
    output, _ = process.communicate()
    assert process.returncode == 75, output
    names = [path.name for path in run.checkpoints()]
    assert in_flight in names
    assert names[-1] == f"iter_{run.attempt().last_iteration:07d}"
    key = undisturbed.manifest().key
    for checkpoint in run.checkpoints():
        verify(checkpoint, key)
    run.finish()
    assert [row.iteration for row in run.rows()] == list(range(1, LAST + 1)), "nothing ran twice"
    assert run.curve() == undisturbed.curve()


@pytest.mark.fault(
    5,
    injected="a file system on which a later checkpoint has no room",
    observed="one line: what is needed and free; earlier ones verify; more space mends it",
)
@BEHIND
def test_a_full_disk(bench: Bench, undisturbed: Run, small_disk: Path, behind: bool) -> None:
    size = sum(p.stat().st_size for p in undisturbed.checkpoints()[0].rglob("*") if p.is_file())
    run = bench.run(f"full-{behind}", async_save=behind, **CHANGES)
    run.directory = small_disk / "run"
    filler = small_disk / "filler"
    filler.write_bytes(bytes(free_bytes(small_disk) - 2 * size - (3 << 20) // 2))
    status, output = run.fail()
    assert status == 74
    found = re.search(
        r"cannot save iteration \d+: \S+: a checkpoint needs \S+ MiB, and \S+ \w+ are free", output
    )
    assert found, output
    assert "Fix: set keep_last" in output
    assert "Traceback" not in output
    good = run.checkpoints()
    assert good
    for checkpoint in good:
        verify(checkpoint, undisturbed.manifest().key)
    assert not list((run.directory / "checkpoints").glob(".iter_*"))
    filler.unlink()
    assert f"resuming from {good[-1].name}" in run.finish()
    assert run.curve() == undisturbed.curve()


@pytest.mark.fault(
    6,
    injected="a stand-in for a bad disk: fsync of the third checkpoint's files returns EIO",
    observed="it is not published, EIO is named, the one before loads, the rerun ends on the same "
    "curve",
)
@BEHIND
def test_an_error_at_fsync(bench: Bench, undisturbed: Run, bad_disk: Path, behind: bool) -> None:
    run = bench.run(f"eio-{behind}", async_save=behind, **CHANGES)
    run.environment = {"LD_PRELOAD": str(bad_disk), "EIO_IN": "/.iter_0000006."}
    status, output = run.fail()
    assert status == 74
    assert re.search(r"cannot save iteration 6: .*Input/output error", output), output
    assert [path.name for path in run.checkpoints()] == ["iter_0000002", "iter_0000004"]
    assert not list((run.directory / "checkpoints").glob(".iter_*"))
    run.environment = {}
    assert "resuming from iter_0000004" in run.finish()
    assert run.curve() == undisturbed.curve()


@pytest.mark.fault(
    6,
    injected="the same for the file of the second of two ranks, behind the training",
    observed="both ranks end, the second is named, the rerun ends on the same curve",
)
def test_an_error_on_one_rank_of_two(bench: Bench, bad_disk: Path) -> None:
    changes = CHANGES | {"nproc_per_node": 2, "train_iters": 6}
    at_once = bench.run("two-at-once", **changes)
    at_once.finish()
    run = bench.run("two-behind", async_save=True, **changes)
    run.environment = {"LD_PRELOAD": str(bad_disk), "EIO_IN": "/.iter_0000004.001.tmp/__1_"}
    status, output = run.fail()
    assert status == 74
    assert re.search(r"cannot save iteration 4: rank 1: .*Input/output error", output), output
    assert [path.name for path in run.checkpoints()] == ["iter_0000002"]
    run.environment = {}
    assert "resuming from iter_0000002" in run.finish()
    assert run.curve() == at_once.curve()
    assert [path.name for path in run.checkpoints()] == [p.name for p in at_once.checkpoints()]
    for checkpoint in run.checkpoints():
        verify(checkpoint, run.manifest().key)


@pytest.mark.fault(
    7,
    9,
    injected="the newest checkpoint cut short, the one before without a manifest",
    observed="both are named, the third loads, the losses go on bitwise",
)
def test_a_shard_cut_short_and_a_torn_manifest(undisturbed: Run) -> None:
    run = undisturbed.copy("torn", until=LAST)
    newest, second = run.checkpoints()[:-3:-1]
    shard = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(shard, shard.stat().st_size // 2)
    os.truncate(second / "manifest.json", 0)
    output = run.finish()
    assert re.search(rf"skipping a damaged checkpoint: .*{newest.name}/{shard.name}: has", output)
    assert re.search(rf"skipping a damaged checkpoint: .*{second.name}/manifest.json", output)
    assert "resuming from iter_0000008" in output
    assert run.curve() == undisturbed.curve()


def test_the_commands_work_on_a_real_run(undisturbed: Run, bench: Bench) -> None:
    def command(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "primus.checkpoint", *arguments, str(undisturbed.directory)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    listed = command("list").splitlines()[1:]
    assert [line.split()[0] for line in listed] == ["2", "4", "6", "8", "10", "12"]
    assert [line.split()[6] for line in listed] == ["256", "512", "768", "1,024", "1,280", "1,536"]
    assert command("verify").count(": good\n") == 6
    target = bench.path / "exported"
    command("export", "--iteration=4", f"--output={target}", f"--tokenizer={bench.tokenizer}")
    assert (target / "model.safetensors").is_file()
    assert '"iter_0000004"' in (target / "manifest.json").read_text()
