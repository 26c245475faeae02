"""Measuring on several nodes, each stood in for by a process here that a fake srun starts."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from gemm_replay import recording, shape

from primus.errors import PrimusError, UnavailableError
from primus.gemm import nodes as nodes_module
from primus.gemm.backends import load_backend
from primus.gemm.backends.base import BackendSpec
from primus.gemm.nodes import Nodes, hosts_of_job
from primus.gemm.search import SearchSettings, tune
from primus.gemm.store import Origin

WINNER = {"default": {"us": [100.0]}, "fast": {"us": [80.0]}}
CRASHES = {"default": {"us": [100.0]}, "bad": {"us": [1.0], "fault": "crash"}}
HANGS = {"default": {"us": [100.0]}, "stuck": {"us": [1.0], "fault": "hang"}}
NODES = ("node1", "node2")
SETTINGS = SearchSettings(coverage=1.0, hosts=NODES)

# Starts here what srun would start. On node2 the last argument may be edited.
FAKE_SRUN = """\
#!/bin/sh
while [ "${1#--}" != "$1" ]; do
    case "$1" in --nodelist=*) export FAKE_NODE="${1#--nodelist=}";; esac
    shift
done
[ "$FAKE_NODE" = "$FAKE_BROKEN" ] && { echo "the node is broken" >&2; exit 7; }
[ "$FAKE_NODE" = node2 ] && [ -n "$FAKE_SED" ] && {
    last=$(for last; do :; done; echo "$last")
    exec "$1" "$2" "$3" "$4" "$(echo "$last" | sed "$FAKE_SED")"
}
exec "$@"
"""


@pytest.fixture(autouse=True)
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "srun"
    program.parent.mkdir()
    program.write_text(FAKE_SRUN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def opened(spec: BackendSpec, hosts: Sequence[str] = NODES, **more: Any) -> Nodes:
    return Nodes(spec, hosts, load_backend(spec).stack(), **more)


def requests(number: int) -> list[dict[str, Any]]:
    return [{"problem": shape(n).problem.to_json()} for n in range(number)]


def test_the_nodes_share_the_problems_and_the_result_is_that_of_one(tmp_path: Path) -> None:
    noise = {"sigma": 0.02}
    spec = recording(tmp_path / "r.json", [WINNER] * 4, noise=noise)
    shapes = [shape(number) for number in range(4)]
    one = tune(shapes, spec, SearchSettings(coverage=1.0), str(tmp_path / "one"))
    origin = Origin(experiment="x", stage_key="k", host="login")
    two = tune(shapes, spec, SETTINGS, str(tmp_path / "two"), origin=origin)
    assert two.tuned == one.tuned
    assert (two.measured, two.stopped) == (4, "complete")
    assert set(two.measured_on) == set(NODES)
    stored = [json.loads(p.read_text()) for p in (tmp_path / "two").glob("*/*.json")]
    hosts = [times["origin"]["host"] for times in stored if "origin" in times]
    assert {name: hosts.count(name) for name in NODES} == two.measured_on


def test_a_failure_on_a_node_is_that_of_its_problem(tmp_path: Path) -> None:
    spec = recording(tmp_path / "r.json", [WINNER, CRASHES, HANGS])
    with opened(spec) as pool:
        found = {r["problem"]["k"]: a for r, a in pool.run(requests(3), timeout=0.5)}
        # The nodes go on after that.
        (again,) = pool.run(requests(1), timeout=60)
    assert [found[64 + n].failure is None for n in range(3)] == [True, False, False]
    assert (found[65].tries, found[66].timed_out) == (2, True)
    assert again[1].failure is None


def workers(node: str) -> Iterator[psutil.Process]:
    """The processes that serve a node."""
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # which a zombie is, too
            if process.environ().get("FAKE_NODE") == node:
                yield process


def test_a_lost_node_gives_its_problems_to_the_others(tmp_path: Path, capsys: Any) -> None:
    spec = recording(tmp_path / "r.json", [WINNER] * 4, sample_seconds=0.005)
    with opened(spec) as pool:
        found = []
        for request, answer in pool.run(requests(4), timeout=60):
            found.append((request["problem"]["k"], answer))
            for process in workers("node2"):
                process.send_signal(signal.SIGKILL)
    assert sorted(k for k, _ in found) == [64 + n for n in range(4)]
    assert not [answer.failure for _, answer in found if answer.failure]
    assert {answer.host for _, answer in found[2:]} == {"node1"}
    said = capsys.readouterr().err
    assert "node2: the measuring process ended with signal 9; " in said
    assert "what it was busy with goes to node1" in said


def test_without_any_node_the_stage_ends(tmp_path: Path) -> None:
    spec = recording(tmp_path / "r.json", [WINNER] * 3, sample_seconds=0.01)
    with opened(spec) as pool:
        answers = pool.run(requests(3), timeout=60)
        next(answers)
        for process in (*workers("node1"), *workers("node2")):
            process.send_signal(signal.SIGKILL)
        with pytest.raises(PrimusError, match=r"no node is left\. Fix: start again"):
            list(answers)


def test_a_node_that_says_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = recording(tmp_path / "r.json", [HANGS])
    monkeypatch.setattr(nodes_module, "_SILENT_SECONDS", -1e6)
    with opened(spec) as pool, pytest.raises(PrimusError, match="has not answered in time"):
        list(pool.run(requests(1), timeout=600))


def test_a_node_of_another_stack_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = recording(tmp_path / "r.json", [WINNER], stack={"device": "A"})
    recording(tmp_path / "other.json", [WINNER], stack={"device": "B"})
    monkeypatch.setenv("FAKE_SED", r"s/r\.json/other.json/")
    with pytest.raises(UnavailableError) as caught:
        tune([shape(0)], spec, SETTINGS, str(tmp_path / "store"))
    assert str(caught.value) == (
        "gemm_tuning.nodes: the nodes of this job differ from node1: "
        "node2: device = 'B' there, 'A' here. "
        "Fix: ask for equal nodes with slurm.constraint, or leave these out with slurm.exclude"
    )
    assert not (tmp_path / "store").exists()


def test_a_node_that_cannot_measure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = recording(tmp_path / "r.json", [WINNER])
    monkeypatch.setenv("FAKE_BROKEN", "node2")
    why = "node2: the measuring process ended at its start with status 7: the node is broken"
    with opened(spec) as pool, pytest.raises(PrimusError, match=why):
        list(pool.run(requests(1), timeout=60))


def test_nothing_is_started_for_nothing_and_everything_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock leaps over the deadline when the first problem has been handed out.
    leaps = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + leaps[-1])
    monkeypatch.setattr(nodes_module, "time", clock)
    spec = recording(tmp_path / "r.json", [HANGS])
    # Other tests of this process may have left some: a compiler's, multiprocessing's.
    before = set(psutil.Process().children(recursive=True))
    with opened(spec) as pool:
        assert list(pool.run([], timeout=60)) == []
        assert set(psutil.Process().children(recursive=True)) <= before
        started: list[psutil.Process] = []

        def late() -> Iterator[dict[str, Any]]:
            yield requests(1)[0]
            started.extend(set(psutil.Process().children(recursive=True)) - before)
            leaps.append(1e6)

        deadline = time.monotonic() + 1e5
        assert list(pool.run(late(), timeout=600, deadline=deadline)) == []
    assert len(started) >= 2
    assert psutil.wait_procs(started, timeout=60)[1] == []


def test_several_nodes_are_those_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    assert hosts_of_job(1) == ()
    with pytest.raises(UnavailableError, match=r"gemm_tuning\.nodes = 2: this is no SLURM job\."):
        hosts_of_job(2)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-3]")
    monkeypatch.setattr(nodes_module, "node_names", lambda listed: ["node1", "node2", "node3"])
    assert hosts_of_job(2) == ("node1", "node2")
    with pytest.raises(UnavailableError, match="the SLURM job has 3"):
        hosts_of_job(4)
