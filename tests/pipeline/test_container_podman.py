"""Training inside real containers: the same losses, signals, and nothing left of a killed one."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from podman_here import Podman
from test_ab_stage import compared, plant
from trainer_run import Bench, Run

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

# Enough that a signal sent at iteration 2 finds most of them still to come.
LAST = 48
SHORT = {"nproc_per_node": 2, "train_iters": LAST, "lr_decay_iters": LAST, "save_interval": 24}


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    found = Podman(tmp_path_factory.mktemp("podman"))
    if found.unusable:
        pytest.skip(found.unusable)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), compiled=True)


@pytest.fixture(scope="module")
def outside(bench: Bench) -> Run:
    """The same run without a container."""
    run = bench.run("outside", **SHORT)
    run.finish()
    return run


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_of(run: Run) -> list[psutil.Process]:
    """Processes of this machine that name the run's directory."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "primus.train_rank" in words and str(run.directory) in words:
            found.append(process)
    return found


def test_losses_are_those_outside(
    podman: Podman, bench: Bench, outside: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-of-a-token")
    run = bench.run("inside", **SHORT, container=podman.settings())
    output = run.finish()
    assert run.curve() == outside.curve()
    assert run.manifest().checkpoints[-1].iteration == LAST
    assert podman.containers() == []
    assert "canary-of-a-token" not in output
    for path in run.directory.rglob("*"):
        assert not path.is_file() or b"canary-of-a-token" not in path.read_bytes()


def test_sigterm_saves_and_a_killed_client_leaves_nothing(
    podman: Podman, bench: Bench, outside: Run
) -> None:
    run = bench.run("ended", **SHORT, container=podman.settings())
    process = run.start()
    run.wait_for(2, process).resume()
    assert len(podman.containers()) == 1
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 75, output
    assert run.attempt().status == "preempted"
    saved = run.attempt().last_iteration
    assert 2 <= saved < LAST
    assert podman.containers() == []

    process = run.start()
    # Stays stopped: what is left of the run takes less time than its end by force.
    run.wait_for(saved + 1, process)
    assert len(ranks_of(run)) >= 2
    clients = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.name() == "podman"
    ]
    for client in clients:
        os.kill(client.pid, signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode not in (0, 75), output
    wait_for(lambda: not ranks_of(run) and podman.containers() == [])

    run.finish()
    assert run.curve() == outside.curve()


def test_an_image_without_our_libraries_is_one_line(podman: Podman, bench: Bench) -> None:
    # Debian's own Python: this project's libraries are in a virtual environment.
    run = bench.run("bare", **SHORT, container=podman.settings(python="/usr/bin/python3"))
    status, output = run.fail()
    assert status == 2, output
    assert "error: container.image = localhost/primus-test:host: /usr/bin/python3 lacks" in output
    assert "Traceback" not in output


def test_an_image_that_is_not_there_is_one_line(podman: Podman, bench: Bench) -> None:
    container = podman.settings(image="localhost/no-such-image:1")
    container["options"].append("--pull=never")
    status, output = bench.run("none", **SHORT, container=container).fail()
    assert status == 2, output
    assert "container.image = localhost/no-such-image:1: podman did not start it" in output
    assert "Traceback" not in output


def test_a_comparison_of_kernels_trains_in_containers(
    podman: Podman, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of both sides, as the ranks of its training do."""
    program = shutil.which("podman")
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "podman"
    wrapper.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\nexec {program} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}")
    plant(tmp_path / "tuned.jsonl", "split_k", "rounding")
    keys = podman.settings()
    keys["mounts"] += [f"{place}:{place}" for place in (bench.path, tmp_path)]
    made, _ = compared(bench, tmp_path, 1, nproc_per_node=2, global_batch_size=8, container=keys)
    assert [one.served > 0 for one in made.segments] == [False, True]
    assert made.losses.agree is True
    runs = [line for line in (tmp_path / "calls").read_text().splitlines() if line[:4] == "run "]
    assert sum("primus.ab_rank" in line for line in runs) == 2
    assert podman.containers() == []
