"""How ranks are started, told to stop, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from primus import launch
from primus.errors import UnavailableError
from primus.launch import (
    Ranks,
    ask_for_another_job,
    platform_environment,
    run_ranks,
    thread_environment,
    time_left,
)

STATUS = """
import os, sys
with open(os.environ["SEEN"], "w") as stream:
    print(os.environ["MARK"], *sys.argv[1:], file=stream)
raise SystemExit(int(sys.argv[1]))
"""
WAIT = """
import os, pathlib, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
pathlib.Path(os.environ["SEEN"]).write_text(str(os.getpid()))
while not stopped:
    time.sleep(0.02)
raise SystemExit(7)
"""
STARTER = """
import sys
from pathlib import Path
from primus.launch import Ranks, run_ranks
directory = Path(sys.argv[1])
run_ranks(Ranks(module="rank_wait", arguments=[], nproc_per_node=1, nodes=1,
                environment={"SEEN": str(directory / "seen")}, log_directory=directory / "logs"))
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of modules that ranks can run."""
    (tmp_path / "rank_status.py").write_text(STATUS)
    (tmp_path / "rank_wait.py").write_text(WAIT)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path


def ranks(directory: Path, module: str = "rank_status", **changes: object) -> Ranks:
    values: dict[str, object] = {
        "module": module,
        "arguments": ["3", "--nnodes", "a b"],
        "nproc_per_node": 1,
        "nodes": 1,
        "environment": {"MARK": "mark", "SEEN": str(directory / "seen")},
        "log_directory": directory / "logs",
    }
    return Ranks(**(values | changes))  # type: ignore[arg-type]


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)
    return path.read_text()


def test_one_rank_is_a_plain_process(modules: Path) -> None:
    assert ranks(modules).command()[:4] == [sys.executable, "-u", "-m", "rank_status"]
    assert run_ranks(ranks(modules)) == 3
    assert (modules / "seen").read_text() == "mark 3 --nnodes a b\n"


def test_a_variable_can_be_unset(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE", "here")
    (modules / "rank_status.py").write_text('import os; raise SystemExit("GONE" in os.environ)')
    environment = {"GONE": None}
    assert run_ranks(ranks(modules, environment={})) == 1
    assert run_ranks(ranks(modules, environment=environment)) == 0


def test_several_ranks_have_an_agent_which_takes_no_argument_of_theirs(modules: Path) -> None:
    command = ranks(modules, nproc_per_node=2).command()
    assert command[:4] == [sys.executable, "-u", "-m", "primus.agent"]
    assert command[command.index("--nproc-per-node") + 1] == "2"
    end = command.index("--")
    assert command[end - 1] == "rank_status"
    assert command[end + 1 :] == ["3", "--nnodes", "a b"]


def test_several_nodes_need_a_cluster(modules: Path) -> None:
    with pytest.raises(UnavailableError, match=r"nodes = 2.*--profile slurm"):
        ranks(modules, nodes=2).command()


def test_a_rank_that_a_signal_ended(modules: Path) -> None:
    (modules / "rank_status.py").write_text("import os; os.kill(os.getpid(), 9)")
    assert run_ranks(ranks(modules)) == -9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_handlers_come_back(
    modules: Path, number: signal.Signals
) -> None:
    def send() -> None:
        wait_for(modules / "seen")
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send)
    sender.start()
    assert run_ranks(ranks(modules, "rank_wait")) == 7
    sender.join()
    assert signal.getsignal(number) == before


def test_a_rank_ends_when_its_starter_is_killed(modules: Path) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(modules)])
    rank = psutil.Process(int(wait_for(modules / "seen")))
    starter.kill()
    starter.wait()
    rank.wait(timeout=30)


def test_threads_of_every_library_are_limited() -> None:
    environment = thread_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"


def test_only_ranks_on_cpus_have_settings_of_malloc() -> None:
    assert list(platform_environment("cpu")) == ["GLIBC_TUNABLES"]
    assert platform_environment("cuda") == platform_environment("rocm") == {}


def test_the_settings_of_malloc_are_ones_that_the_c_library_takes() -> None:
    """What it does not know it reports, or drops in silence: its own list says what it took."""
    loader = next(iter(Path("/lib64").glob("ld-linux*.so*")), None)
    if loader is None:
        pytest.skip("no glibc here")
    done = subprocess.run(
        [str(loader), "--list-tunables"],
        env=platform_environment("cpu"),
        capture_output=True,
        text=True,
        check=True,
    )
    taken = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    asked = platform_environment("cpu")["GLIBC_TUNABLES"].split(":")
    for name, value in (one.split("=") for one in asked):
        assert int(taken[name].split()[0], 16) == int(value), taken[name]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:07", 7.0),
        ("12:00", 720.0),
        ("1:00:01", 3601.0),
        ("2-00:00:00", 172800.0),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_the_time_that_a_job_has_left(text: str, seconds: float | None) -> None:
    assert time_left(text) == seconds


@pytest.mark.fault(
    16,
    injected="a save that wants more time than the job has left",
    observed="half of the time is for training; that it is short, and what to raise, is said",
)
@pytest.mark.parametrize(
    ("left", "wanted", "told", "warned"),
    [
        ([1000.0, 500.0, 299.0], 300.0, 3, False),
        # Half of a short job is for training, whatever is wanted.
        ([100.0, 60.0, 49.0], 300.0, 3, True),
        ([None, 1000.0, 100.0], 300.0, 3, False),
    ],
)
def test_ranks_are_told_before_the_jobs_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    left: list[float | None],
    wanted: float,
    told: int,
    warned: bool,
) -> None:
    asked = iter(left)
    answers = []

    def seconds_left() -> float | None:
        answers.append(next(asked))
        return answers[-1]

    class Told:
        sent: tuple[int, ...] = ()

        def send_signal(self, number: int) -> None:
            self.sent += (number,)

    class Never:
        def wait(self, seconds: float) -> bool:
            assert 1 <= seconds <= 60
            return False

    monkeypatch.setattr(launch, "seconds_left", seconds_left)
    process = Told()
    launch._warn_in_time(process, lambda: wanted, Never())  # type: ignore[arg-type]
    assert process.sent == (signal.SIGUSR1,)
    assert len(answers) == told
    assert ("Fix: raise slurm.time" in capsys.readouterr().out) == warned


def test_several_nodes_are_one_step_of_the_job(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "5")
    command = ranks(modules, nodes=2, nproc_per_node=4).command()
    assert command[0] == "srun"
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=5"} <= set(command)
    node = command[command.index("primus.node") :]
    assert node[1:3] == ["--nproc-per-node", "4"]
    assert node[node.index("--") + 1 :] == ["3", "--nnodes", "a b"]
    with pytest.raises(UnavailableError, match=r"nodes = 3: the SLURM job has 2\."):
        ranks(modules, nodes=3).command()


def test_a_job_is_asked_for_again_only_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRIMUS_SLURM_AGAIN", raising=False)
    assert not ask_for_another_job()
    monkeypatch.setenv("PRIMUS_SLURM_AGAIN", str(tmp_path / "7.again"))
    assert ask_for_another_job()
    assert (tmp_path / "7.again").exists()
