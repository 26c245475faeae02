"""Submitting, asking and leaving, with fake programs of SLURM on PATH that say what they are told.

The real ones are asked in tests/slurm.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from primus import driver
from primus.errors import RunConflictError, UnavailableError
from primus.slurm import cancel, queue, states, status, submit
from primus.slurm.job import Job
from primus.slurm.queue import JobState, QueuedJob, QueueError

Fake = Callable[..., None]
QUEUE = "17|RUNNING|primus:abc:def|node[1-2]|train.mine"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Make a program of SLURM that answers `text`; each call is noted in calls."""
    programs = tmp_path / "fake"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    def make(name: str, text: str = "", *, status: int = 0, says: str = "") -> None:
        (programs / f"{name}.out").write_text(text)
        (programs / f"{name}.err").write_text(says)
        program = programs / name
        program.write_text(
            f'#!/bin/sh\necho "$0 $*" >> {tmp_path}/calls\ncat "$0.out"\n'
            f'cat "$0.err" >&2\nexit {status}\n'
        )
        program.chmod(0o755)

    for name in ("squeue", "sacct", "sbatch", "scancel"):
        make(name)
    return make


def calls(name: str) -> int:
    return Path("calls").read_text().count(f"/{name} ") if Path("calls").exists() else 0


def script(**properties: Any) -> Path:
    content = {"rule": "train", "output": ["train.json"], "input": ["one"], "resources": {}}
    path = Path("job.sh")
    path.write_text(f"#!/bin/sh\n# properties = {json.dumps(content | properties)}\ntrue\n")
    return path


def submitted(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    submit.main([str(path)])
    return capsys.readouterr().out.strip()


def test_jobs_of_others_are_passed_over(fake: Fake) -> None:
    others = "18_[1-3%2]|PENDING|some|thing|a|b\n19|COMPLETING|primus:x:-|node1|text\n"
    fake("squeue", f"{QUEUE}\n{others}")
    assert queue.mine() == [
        QueuedJob(
            number="17",
            state="RUNNING",
            name="train.mine",
            where="node[1-2]",
            key="abc",
            inputs="def",
        )
    ]


@pytest.mark.parametrize("text", ["slurm is down for maintenance\n", "17 RUNNING\n", "|||||\n"])
def test_an_answer_that_makes_no_sense_is_none(fake: Fake, text: str) -> None:
    fake("squeue", text)
    with pytest.raises(QueueError, match="is not understood"):
        queue.mine()
    assert status.verdict("17") == "running"


def test_a_program_that_hangs_or_is_not_there_is_no_answer(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fake" / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(QueueError, match="has not answered for 0 s"):
        queue.mine(0.2)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QueueError, match="not found"):
        queue.state_of("17")


UNKNOWN = {"status": 1, "says": "slurm_load_jobs error: Invalid job id specified\n"}


def test_the_accounts_are_asked_for_what_the_controller_has_forgotten(fake: Fake) -> None:
    fake("squeue", **UNKNOWN)
    fake("sacct", "CANCELLED by 0|None|01:00:00|node3|4G\n")
    found = JobState(state="CANCELLED", by="root", limit="01:00:00", nodes="node3", memory="4G")
    assert queue.state_of("17") == found
    fake("sacct", "RUNNING|None|01:00:00|node3|4G\n")
    assert queue.state_of("17") is None, "the accounts never heard of its end"
    fake("sacct", status=1, says="Slurm accounting storage is disabled\n")
    assert queue.state_of("17") is None


def test_a_traceback_is_shown_to_its_last_line() -> None:
    lines = ["Traceback", "ImportError: x", "RuleException:", "CalledProcessError in file", "[now]"]
    assert status._of_the_stage([*lines, "Error in rule train:"]) == lines[:2]


@pytest.mark.parametrize(
    ("state", "name", "words"),
    [
        ("TIMEOUT", "tune.mine", ("60:00 is over", "raise slurm.time")),
        ("TIMEOUT", "text", ("raise slurm.cpu_time",)),
        ("TIMEOUT", "ab.mine", ("raise slurm.time",)),
        ("TIMEOUT", "preflight_mine", ("raise preflight.seconds",)),
        ("OUT_OF_MEMORY", "evaluate.mine", ("slurm.mem_mib",)),
        ("CANCELLED", "ab.mine", ("the same command begins it again",)),
        ("TIMEOUT", "train.mine", ("raise slurm.warning_seconds",)),
        ("OUT_OF_MEMORY", "train.mine", ("8G per node", "slurm.mem_mib", "micro_batch_size")),
        ("OUT_OF_MEMORY", "data.mine", ("slurm.cpu_mem_mib",)),
        ("NODE_FAIL", "train.mine", ("a node of node[1-2] failed", "slurm.exclude")),
        ("CANCELLED", "train.mine", ("CANCELLED by mary",)),
        ("DEADLINE", "train.mine", ("DEADLINE (Because)",)),
    ],
)
def test_an_end_is_told_in_words(state: str, name: str, words: tuple[str, ...]) -> None:
    given = {"by": "mary", "limit": "60:00", "nodes": "node[1-2]", "memory": "8G"}
    said = states.why(state, name=name, reason="Because", **given)
    assert all(word in said for word in words), said


def test_the_cause_comes_before_the_last_lines_and_without_snakemakes_own(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("squeue", "FAILED|NonZeroExitCode|60:00|node1|8G\n")
    status.LOGS.mkdir(parents=True)
    noise = "[Mon Nov 23 2026]\nError in rule train:\n    message: None\nWorkflowError:\n"
    (status.LOGS / "train.mine.17.log").write_text(f"step 7\nerror: rank 1: SIGSEGV\n{noise}")
    assert status.verdict("17") == "failed"
    assert capsys.readouterr().err.splitlines() == [
        "job 17 (train.mine) failed: its command failed",
        "    error: rank 1: SIGSEGV",
        "  last lines of its log, output/logs/slurm/train.mine.17.log:",
        "    step 7",
        "    error: rank 1: SIGSEGV",
    ]


def test_work_that_waits_or_runs_is_taken_over(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job.read(script())
    fake("squeue", f"9|PENDING|{job.comment}|Priority|x\n17|RUNNING|{job.comment}|node1|x\n")
    assert submitted(script(), capsys) == "9"
    with pytest.raises(RunConflictError, match="job 9 PENDING is at it with other settings"):
        submit.main([str(script(input=["another"]))])
    assert calls("sbatch") == 0


def group(*members: str) -> Path:
    """A group; Snakemake numbers it by one of its last members, and not by the same each time."""
    path = script(type="group", groupid="text", rule=None, jobid=f"u-{members[0]}", output=[])
    words = " ".join(f"'{member}'" for member in members)
    path.write_text(
        f"{path.read_text()}python -m snakemake --target-jobs {words} --allowed-rules\n"
    )
    return path


def test_a_group_that_runs_is_found_by_any_of_its_members(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a Snakemake that was killed: what has ended is asked for no more."""
    fake("sbatch", "20\n")
    queued = Job.read(group("data:key=1", "samples:key=2", "samples:key=3"))
    assert submitted(Path("job.sh"), capsys) == "20"
    fake("squeue", f"20|RUNNING|{queued.comment}|node1|text\n")
    for left in (("samples:key=2", "samples:key=3"), ("samples:key=2",), ("samples:key=3",)):
        assert submitted(group(*left), capsys) == "20"
    with pytest.raises(
        RunConflictError, match=r"text: job 20 RUNNING is at a part of it\. Fix: wait"
    ):
        submit.main([str(group("samples:key=3", "samples:key=4"))])
    assert calls("sbatch") == 1
    fake("sbatch", "21\n")
    assert submitted(group("samples:key=4"), capsys) == "21"


def test_what_has_ended_since_snakemake_began_is_not_done_again(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked at what is there before; the job of one before it ended a moment later."""
    fake("sbatch", "20\n")
    for wanted in (script, lambda: group("samples:key=2", "samples:key=3")):
        path = wanted()
        assert submitted(path, capsys) == "20"
        job = Job.read(path)
        done = submit.DIRECTORY / f"{job.key}.{job.inputs}.done"
        assert f"> {done.resolve()}.tmp" in done.with_suffix(".sh").read_text()
        done.write_text("20\n")
    fake("sbatch", "21\n")
    ended = done.stat().st_mtime
    for began, number in ((ended - 1, "20"), (ended + 1, "21"), (None, "21")):
        monkeypatch.setattr(driver, "began", lambda began=began: began)
        assert submitted(script(), capsys) == number
        assert submitted(group("samples:key=3"), capsys) == number
        assert submitted(script(input=["another"]), capsys) == "21"
        assert submitted(group("samples:key=4"), capsys) == "21"


def test_of_two_that_were_submitted_at_once_the_older_one_stays(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither saw the other's when it asked; both see both after sbatch has answered."""
    comment = Job.read(script()).comment
    both = f"17|PENDING|{comment}|None|x\n16|PENDING|{comment}|None|x\n"
    fake("sbatch", "17\n")
    program = tmp_path / "fake" / "sbatch"
    program.write_text(
        program.read_text().replace("exit", f"printf '{both}' > {tmp_path}/now\nexit")
    )
    squeue = tmp_path / "fake" / "squeue"
    squeue.write_text(f"#!/bin/sh\ncat {tmp_path}/now 2>/dev/null\nexit 0\n")
    assert submitted(script(), capsys) == "16"
    assert "scancel 17" in Path("calls").read_text()


def test_a_job_waits_for_no_file_that_goes_when_snakemake_is_left(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("sbatch", "20\n")
    temporary = tmp_path / ".snakemake" / "tmp.ab12"
    temporary.mkdir(parents=True)
    jobscript = temporary / "snakejob.train.3.sh"
    names = Path(f"{jobscript}.waitforfilesfile.txt")
    names.write_text(f"{temporary}\ninput.json\n")
    text = script().read_text() + f"--wait-for-files {temporary} x --wait-for-files-file {names}\n"
    jobscript.write_text(text)
    submit.main([str(jobscript)])
    directory = tmp_path / ".snakemake" / "slurm"
    (kept,) = directory.glob("*.jobscript.sh")
    assert "tmp.ab12" not in kept.read_text()
    (listed,) = directory.glob("*.inputs.txt")
    assert listed.read_text() == f"{directory}\ninput.json\n"
    assert str(listed) in kept.read_text()


def test_a_refusal_of_sbatch_is_one_line(fake: Fake) -> None:
    fake("sbatch", status=1, says="sbatch: error: invalid partition specified: nowhere\n")
    with pytest.raises(UnavailableError, match=r"sbatch refuses it: .*nowhere.*Fix: correct"):
        submit.main([str(script())])


def test_who_leaves_is_told_what_runs_on(fake: Fake) -> None:
    fake("squeue", f"{QUEUE}\n18|PENDING|primus:x:-|(Resources)|text\n")
    assert cancel.farewell(["17", "18", "99"]) == [
        "The jobs run on; one that waits will start:",
        "  17  train.mine  RUNNING  node[1-2]",
        "  18  text  PENDING  (Resources)",
        "Come back: type the same command; it finds them. Stop them: scancel 17 18",
    ]
    fake("squeue", status=1, says="Unable to contact slurm controller\n")
    assert cancel.farewell(["17"])[-1].endswith("scancel 17")
    fake("squeue")
    assert cancel.farewell(["17"]) == ["no job is left in the queue"]
    assert calls("scancel") == 0
