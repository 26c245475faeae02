"""What Snakemake's job scripts say, what sbatch is told, and what a job's end means."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from primus.errors import UserError
from primus.slurm import queue, states, status
from primus.slurm.job import Job, key_of
from primus.slurm.queue import JobState, QueueError
from primus.slurm.status import verdict


def script(path: Path, **properties: Any) -> Path:
    single = {
        "type": "single",
        "rule": "train",
        "wildcards": {"experiment": "mine", "key": "0" * 12},
        "output": ["output/runs/mine/000000000000/train.json"],
        "threads": 4,
        "resources": {"mem_mb": 100},
        "jobid": 3,
    }
    file = path / "job.sh"
    file.write_text(f"#!/bin/sh\n# properties = {json.dumps(single | properties)}\ntrue\n")
    return file


def test_a_job_says_what_it_needs(tmp_path: Path) -> None:
    resources = {
        "nodes": 2,
        "gres": "gpu:8",
        "mem_mb": 0,
        "runtime": 60,
        "sbatch": "--account=us --signal=USR1@300",
        "slurm_partition": "debug",
        "tmpdir": "<TBD>",
    }
    job = Job.read(script(tmp_path, resources=resources))
    options = job.options(Path("logs/x.%j.log"))
    assert {"--nodes=2", "--gres=gpu:8", "--mem=0", "--time=60", "--account=us"} <= set(options)
    assert options.index("--partition=debug") > options.index("--account=us")
    assert {"--job-name=train.mine", "--cpus-per-task=4", "--output=logs/x.%j.log"} <= set(options)


def test_what_is_not_asked_for_is_left_out(tmp_path: Path) -> None:
    job = Job.read(script(tmp_path, resources={"gres": "", "sbatch": "", "slurm_extra": ""}))
    assert not [o for o in job.options(Path("x")) if o.startswith(("--gres", "--partition"))]


def test_equal_work_has_an_equal_comment(tmp_path: Path) -> None:
    one = Job.read(script(tmp_path))
    assert one.comment == Job.read(script(tmp_path, jobid=9, threads=1)).comment
    assert one.key == key_of("train", ["output/runs/mine/000000000000/train.json"])
    assert one.key != Job.read(script(tmp_path, output=["other"])).key
    assert one.key != Job.read(script(tmp_path, rule="export")).key
    further = Job.read(script(tmp_path, input=["output/settings/mine/train.111111111111.json"]))
    assert (one.key, one.comment != further.comment) == (further.key, True)


def test_keys_on_the_command_line_alone_tell_jobs_apart(tmp_path: Path) -> None:
    """As `ab.rounds`, which no frozen settings hold; an option of the run is no such key."""
    params = {"options": "{}", "weights": [], "rounds": "6", "steps": "4"}
    one = Job.read(script(tmp_path, rule="ab", params=params))
    more = Job.read(script(tmp_path, rule="ab", params=params | {"rounds": "12"}))
    other = Job.read(script(tmp_path, rule="ab", params=params | {"options": '{"x": 1}'}))
    assert (one.key, one.inputs) == (other.key, other.inputs)
    assert (one.key, one.inputs != more.inputs) == (more.key, True)


def test_a_group_is_known_by_its_last_member(tmp_path: Path) -> None:
    group = {"type": "group", "groupid": "text", "rule": None, "wildcards": None, "jobid": "u-1"}
    all_three = Job.read(script(tmp_path, **group, output=["a", "b", "c"]))
    left = Job.read(script(tmp_path, **group, output=["b", "c"]))
    assert (all_three.name, all_three.comment) == ("text", left.comment)
    assert left.comment != Job.read(script(tmp_path, **(group | {"jobid": "u-2"}))).comment


def test_members_of_a_group_that_run_side_by_side_are_on_one_node(tmp_path: Path) -> None:
    """Snakemake adds up what they ask for, nodes among it."""
    asked = {"nodes": 3, "cpus_per_task": 3, "mem_mb": 300}
    group = {"type": "group", "groupid": "text", "rule": None, "resources": asked}
    options = Job.read(script(tmp_path, **group)).options(Path("x"))
    assert {"--nodes=1", "--cpus-per-task=3", "--mem=300"} <= set(options)
    alone = Job.read(script(tmp_path, resources=asked)).options(Path("x"))
    assert "--nodes=3" in alone


@pytest.mark.parametrize("text", ["", "#!/bin/sh\ntrue\n", "# properties = {torn\n"])
def test_a_script_of_somebody_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.sh"
    path.write_text(text)
    with pytest.raises(UserError, match="has no line of properties"):
        Job.read(path)


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the cluster says of the job."""
    monkeypatch.chdir(tmp_path)
    answer: dict[str, Any] = {"state": None}

    def state_of(job: str) -> JobState | None:
        if isinstance(answer["state"], Exception):
            raise answer["state"]
        return answer["state"] and JobState(state=answer["state"], reason=answer.get("reason", ""))

    monkeypatch.setattr(queue, "state_of", state_of)
    status.DIRECTORY.mkdir(parents=True)
    return answer


def ended(number: int) -> None:
    (status.DIRECTORY / "7.end").write_text(f"{number}\n")


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("COMPLETED", "success"),
        ("RUNNING", "running"),
        ("PENDING", "running"),
        ("COMPLETING", "running"),
        ("REQUEUED", "running"),
        ("SOMETHING_NEW", "running"),
        ("UNKNOWN", "running"),
        *((state, "failed") for state in sorted(states.FAILED)),
    ],
)
def test_a_state_means_success_only_when_it_says_so(
    said: dict[str, Any], state: str, word: str
) -> None:
    said["state"] = state
    assert verdict("7") == word


def test_a_cluster_that_does_not_answer_ends_nothing(said: dict[str, Any]) -> None:
    said["state"] = QueueError("squeue: Unable to contact slurm controller")
    ended(0)
    assert verdict("7") == "running"


def test_completed_with_another_status_has_failed(said: dict[str, Any]) -> None:
    said["state"] = "COMPLETED"
    ended(1)
    assert verdict("7") == "failed"


def test_a_forgotten_job_is_what_it_noted(said: dict[str, Any]) -> None:
    ended(0)
    assert verdict("7") == "success"
    ended(3)
    assert verdict("7") == "failed"


@pytest.mark.parametrize("state", [None, "PREEMPTED"])
def test_what_may_come_back_gets_a_minute(
    said: dict[str, Any], state: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said["state"] = state
    assert verdict("7") == "running"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 59)
    assert verdict("7") == "running"
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert verdict("7") == "failed"


def test_one_that_came_back_starts_anew(
    said: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verdict("7") == "running"
    said["state"] = "RUNNING"
    assert verdict("7") == "running"
    said["state"] = None
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert verdict("7") == "running"


def test_a_held_job_has_failed_and_says_how_to_release_it(
    said: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    said |= {"state": "PENDING", "reason": "launch failed requeued held"}
    assert verdict("7") == "failed"
    assert "scontrol release 7" in capsys.readouterr().err


def test_a_job_that_would_wait_for_ever_has_failed(
    said: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    said |= {"state": "PENDING", "reason": "PartitionTimeLimit"}
    assert verdict("7") == "failed"
    assert "Fix: scancel 7, lower slurm.time" in capsys.readouterr().err


def test_the_last_lines_of_its_log_are_shown(
    said: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status.LOGS.mkdir(parents=True)
    (status.LOGS / "train.mine.7.log").write_text("\n".join(f"line {i}" for i in range(100)))
    said |= {"state": "OUT_OF_MEMORY"}
    assert verdict("7") == "failed"
    told = capsys.readouterr().err
    assert "OUT_OF_MEMORY" in told
    assert "line 99" in told
    assert "line 50" not in told


LINE = "cd /x && python -m snakemake --wait-for-files {} --config {} --mode 'remote' && exit 0"


@pytest.mark.parametrize(
    ("value", "fine"),
    [
        ("lr=2e-5", True),
        ('env={"A": "$(touch made); `touch made`"}', True),
        ("note=$HOME; touch made", True),
        ("Alice's Adventures.txt", True),
        ("both \" and '", False),
        ("it's $(touch made)", False),
        ("it's `touch made`", False),
        ('env={"A": "\'; touch made; \'"}', False),
        ("back\\slash", False),
        ("two\nlines", False),
        ("\u202egnp.exe", False),
    ],
)
def test_what_snakemake_does_not_quote_for_a_shell(tmp_path: Path, value: str, fine: bool) -> None:
    """Snakemake writes values as Python does; the shell of the job's script reads them."""
    for places in ((repr(value), "a=1"), ("'b.txt'", repr(value))):
        file = script(tmp_path)
        file.write_text(file.read_text() + LINE.format(*places) + "\n")
        if fine:
            assert Job.read(file).name == "train.mine"
            line = LINE.format(*places)
            assert value in shlex.split(line)
            continue
        with pytest.raises(UserError, match="does not quote for a shell"):
            Job.read(file)
