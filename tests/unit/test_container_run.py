"""A command in a container from its start to its end: status, signals, leash, nothing left over.

The runtime is a stand-in (fake_podman.py) that starts an ordinary process; a real podman is in
tests/pipeline/test_container_podman.py.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from primus.container.run import run
from primus.container.spec import Container
from primus.errors import RunConflictError, UnavailableError

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_podman.py")
# Says which signals come, and leaves a grandchild that would outlive it.
STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
seen = pathlib.Path(sys.argv[1])
def note(number, _):
    with seen.open("a") as stream:
        print(signal.Signals(number).name, file=stream)
    if number == signal.SIGTERM and sys.argv[2] == "ends":
        raise SystemExit(75)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, note)
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
with seen.open("a") as stream:
    print(child.pid, os.getpid(), file=stream)
while True:
    time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def _podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "podman"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PODMAN_SEEN", str(tmp_path / "podman.log"))


def container(**changes: object) -> Container:
    values: dict[str, object] = {
        "runtime": "podman",
        "image": "some-image",
        "name": "primus-train-0123456789ab",
        "platform": "cpu",
        "python": sys.executable,
        "directory": str(ROOT),
        "mounts": (),
    }
    return Container(**(values | changes))  # type: ignore[arg-type]


def test_status_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("MINE", "; rm -rf /")
    monkeypatch.setenv("ELSE", "stays outside")
    program = (
        "import os, sys; n = os.environ; "
        "print(n['HF_TOKEN'], n['MINE'], n.get('ELSE'), n['PRIMUS_CONTAINER'], sys.argv[1:]); "
        "raise SystemExit(3)"
    )
    assert run(container(variables=("MINE",)), ["-c", program, "a b", "$(id)"]) == 3
    assert capfd.readouterr().out == "canary ; rm -rf / None some-image ['a b', '$(id)']\n"
    assert "canary" not in (tmp_path / "podman.log").read_text()


def test_a_variable_of_the_image_is_unset(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NCCL_DEBUG", raising=False)
    assert run(container(variables=("NCCL_DEBUG",)), ["-c", "print(1)"]) == 0
    seen = Path(os.environ["FAKE_PODMAN_SEEN"]).read_text()
    assert "--unset NCCL_DEBUG --" in seen


def test_a_signal_of_the_command_is_its_status() -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    assert run(container(), ["-c", program]) == 128 + signal.SIGSEGV


def test_an_image_that_does_not_start() -> None:
    with pytest.raises(UnavailableError, match="no-such-image: podman did not"):
        run(container(image="no-such-image"), ["-c", "0"])


def test_a_container_of_a_living_client_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    me = psutil.Process()
    label = f"{socket.gethostname()}/{me.pid}/{me.create_time():.2f}"
    monkeypatch.setenv("FAKE_PODMAN_LABEL", label)
    with pytest.raises(RunConflictError, match=f"process {me.pid} of this node runs it"):
        run(container(), ["-c", "0"])
    assert "rm " not in Path(os.environ["FAKE_PODMAN_SEEN"]).read_text()


def test_a_container_of_a_dead_client_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PODMAN_LABEL", f"{socket.gethostname()}/{os.getpid()}/12.00")
    assert run(container(), ["-c", "0"]) == 0
    verbs = [
        line.split()[0] for line in Path(os.environ["FAKE_PODMAN_SEEN"]).read_text().splitlines()
    ]
    assert verbs == ["inspect", "rm", "run"]


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    return tmp_path / "seen"


def start(seen: Path, how: str) -> subprocess.Popen[bytes]:
    """`primus.container.run` around the program, which has said that it runs."""
    (seen.parent / "stubborn.py").write_text(STUBBORN)
    arguments = [str(seen.parent / "stubborn.py"), str(seen), how]
    command = ["-m", "primus.container.run", "--container", container().to_json(), "--"]
    process = subprocess.Popen([sys.executable, *command, *arguments], cwd=ROOT)
    wait_for(lambda: seen.exists() and len(seen.read_text().split()) == 2)
    return process


def wait_for(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_signals_reach_the_command_and_its_children_end_with_it(seen: Path) -> None:
    process = start(seen, "ends")
    pids = [int(pid) for pid in seen.read_text().split()]
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: "SIGUSR1" in seen.read_text())
    process.terminate()
    assert process.wait(timeout=60) == 75
    assert "SIGTERM" in seen.read_text()
    assert all(gone(pid) for pid in pids)


@pytest.mark.slow  # the program is given its time
@pytest.mark.parametrize("victim", ["run", "client"])
def test_nothing_outlives_whoever_holds_the_leash(seen: Path, victim: str) -> None:
    process = start(seen, "goes on")
    pids = [int(pid) for pid in seen.read_text().split()]
    found = psutil.Process(process.pid).children()
    (process if victim == "run" else found[0]).kill()
    process.wait(timeout=60)
    wait_for(lambda: all(gone(pid) for pid in pids))
    # It was asked before it was killed.
    assert "SIGTERM" in seen.read_text()
