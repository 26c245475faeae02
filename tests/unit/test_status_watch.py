"""`python -m primus.status EXPERIMENT`: what it sees, what it shows, how it ends."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from damage import manifest
from terminal import terminal
from test_status import attempt, job, lease, metrics

from primus import run_status, status
from primus.artifacts import standing
from primus.artifacts.run import TrainManifest
from primus.artifacts.standing import Standing, read_standing, standing_path
from primus.artifacts.timing import stage_time, times_path
from primus.config.load import load
from primus.config.paths import artifact
from primus.config.schema.keys import Stage
from primus.dataset.progress import Progress as Tokenising
from primus.errors import ConfigError, PrimusError, run_main
from primus.gemm.progress import Progress as Tuning
from primus.slurm import queue
from primus.slurm.job import key_of
from primus.slurm.queue import Place, QueuedJob
from primus.stage_status import GRACE_SECONDS, Pipeline, StageStatus, look, verdict
from primus.status_view import shown, shown_text

EXPERIMENT = "llama3_8B_tiny"
ROOT = Path(__file__).parents[2]
ALL = ["tokenizer", "data", "samples", "shapes", "tune", "train", "export", "report"]


@pytest.fixture(scope="module")
def planned() -> Pipeline:
    values = {"hardware": "cpu", "train_iters": 50, "lr_decay_iters": 50, "lr_warmup_iters": 5}
    return Pipeline.of(load(EXPERIMENT, values, root=ROOT, stages=()).settings)


def _no_answer(*_: object) -> str:
    raise queue.QueueError("no answer")


@pytest.fixture
def pipeline(
    planned: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pipeline]:
    """The stages of an experiment, in a directory where nothing has been made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(queue, "ask", _no_answer)
    monkeypatch.setattr(status.shutil, "which", lambda _: "squeue")
    yield planned
    assert not list(tmp_path.rglob("*.tmp"))


def output(pipeline: Pipeline, stage: Stage) -> Path:
    return Path(artifact(pipeline.stages[stage]))


def made(pipeline: Pipeline, *stages: Stage, ago: float = 0.0) -> None:
    for stage in stages:
        path = output(pipeline, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        os.utime(path, (time.time() - ago,) * 2)


def note(pipeline: Pipeline, stage: Stage, **changes: object) -> None:
    me = psutil.Process()
    values: dict[str, object] = {"host": os.uname().nodename, "pid": me.pid, "job": None}
    values |= {"stage": stage, "began": me.create_time(), "started": time.time() - 10}
    path = standing_path(output(pipeline, stage))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Standing.model_validate(values | changes).model_dump_json())


def seen(pipeline: Pipeline, *jobs: QueuedJob) -> dict[str, StageStatus]:
    return {status.stage: status for status in look(pipeline, jobs).stages}


def states(pipeline: Pipeline, *jobs: QueuedJob) -> list[str]:
    return [status.state for status in seen(pipeline, *jobs).values()]


def test_a_stage_notes_how_far_it_is_and_takes_the_note_away(tmp_path: Path) -> None:
    made = tmp_path / "out" / "made.json"
    with stage_time("data", made):
        found = read_standing(made)
        assert found is not None
        assert (found.stage, found.pid, found.time) == ("data", os.getpid(), None)
        standing.say(0, 400, "bytes")
        standing.say(100, 400, "bytes")
        standing.say(400, 400, "bytes")
        found = read_standing(made)
        assert found is not None
        assert (found.done, found.total, found.first) == (400, 400, 0)
        standing_path(made).write_text('{"stage": "da')
        assert read_standing(made) is None
    assert not standing_path(made).exists()
    standing.say(1, 2, "bytes")
    with pytest.raises(RuntimeError), stage_time("data", made):
        raise RuntimeError
    assert not standing_path(made).exists()


def test_what_goes_wrong_with_the_note_does_not_touch_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(standing, "atomic_write", full)
    with stage_time("data", tmp_path / "made.json"):
        standing.say(1, 2, "bytes")
    assert json.loads(times_path(tmp_path / "made.json").read_text())["succeeded"] is True


def test_the_pace_is_that_since_the_first_word() -> None:
    values = {"stage": "data", "host": "h", "pid": 1, "began": 0.0, "job": None, "started": 0.0}
    resumed = {"first": 600, "first_time": 100.0, "time": 110.0, "unit": "bytes"}
    assert Standing(**values, **resumed, done=700, total=1000).seconds_left == 30.0
    assert Standing(**values, **resumed, done=600, total=1000).seconds_left is None
    assert Standing(**values, **resumed, done=700).seconds_left is None


def test_tokenising_and_tuning_say_how_far_they_are(tmp_path: Path) -> None:
    made = tmp_path / "made.json"
    with stage_time("data", made):
        with Tokenising("data demo", 1000) as tokens:
            tokens.update(250, 60)
        found = read_standing(made)
    assert found is not None
    assert (found.done, found.total, found.unit) == (250, 1000, "bytes")
    with stage_time("tune", made):
        with Tuning(1, io.StringIO()) as problems:
            problems.step("timed")
        found = read_standing(made)
    assert found is not None
    assert (found.done, found.total, found.unit, found.first) == (1, 1, "problems", 0)


def test_before_anything_is_there_all_stages_wait(pipeline: Pipeline) -> None:
    assert list(seen(pipeline)) == ALL
    assert set(states(pipeline)) == {"waiting"}
    assert verdict(look(pipeline, ())) is None


def test_stages_that_are_done_run_and_wait(pipeline: Pipeline) -> None:
    made(pipeline, "tokenizer")
    note(pipeline, "data", done=500, total=2000, first_time=100.0, time=110.0, unit="bytes")
    note(pipeline, "shapes")
    found = seen(pipeline)
    assert states(pipeline)[:4] == ["done", "running", "waiting", "running"]
    assert (found["data"].done, found["data"].total) == (500, 2000)
    assert found["data"].seconds_left == 30.0
    assert found["shapes"].done is None
    assert str(os.getpid()) in found["data"].why


def test_a_stage_whose_process_was_killed_has_stopped(pipeline: Pipeline) -> None:
    note(pipeline, "data", began=1.0, started=time.time() - GRACE_SECONDS - 1)
    assert seen(pipeline)["data"].state == "stopped"
    error = verdict(look(pipeline, ()))
    assert isinstance(error, PrimusError)
    assert (error.exit_code, "data: stopped" in str(error)) == (1, True)


def test_a_stage_in_a_job_lives_as_long_as_the_job(pipeline: Pipeline) -> None:
    note(pipeline, "data", host="node-7", job="17")
    assert seen(pipeline, job("text", "RUNNING", "k"))["data"].state == "running"
    assert seen(pipeline)["data"].state == "stopped"
    assert look(pipeline, None).stages[1].state == "running", "nobody can be asked for the job"


def test_a_queue_that_does_not_answer_ends_nothing(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt(run_of(pipeline), 1, status="preempted", reason="saved", finished=300.0)
    assert verdict(look(pipeline, None)) is not None
    assert status._asked_jobs() == ([], ""), "no job was ever submitted here"
    run_status.DIRECTORY.mkdir(parents=True)
    now = look(pipeline, *status._asked_jobs())
    assert now.remark == "jobs are not shown: no answer"
    assert verdict(now) is None
    with shown("mine") as show:
        show(now, {})
        show(now, {})
    assert capsys.readouterr().out.count("jobs are not shown: no answer") == 1


def test_a_stage_that_failed_ends_it_after_a_while(pipeline: Pipeline) -> None:
    made(pipeline, "tokenizer", ago=1000)
    with pytest.raises(RuntimeError), stage_time("data", output(pipeline, "data")):
        raise RuntimeError
    now = look(pipeline, ())
    assert states(pipeline)[:2] == ["done", "failed"]
    assert verdict(now) is None, "Snakemake may be about to start it again"
    path = times_path(output(pipeline, "data"))
    line = json.loads(path.read_text())
    path.write_text(json.dumps(line | {"started": time.time() - 1000}) + '\n{"torn')
    assert isinstance(verdict(look(pipeline, ())), PrimusError)


def run_of(pipeline: Pipeline) -> Path:
    (pipeline.run / "attempts").mkdir(parents=True)
    return pipeline.run


def test_a_training_is_as_its_run_is(pipeline: Pipeline) -> None:
    note(pipeline, "train")
    assert seen(pipeline)["train"].state == "starting"
    run = run_of(pipeline)
    attempt(run, 1)
    metrics(run, 5, 10)
    lease(run)
    train = seen(pipeline)["train"]
    assert (train.state, train.done, train.total, train.seconds_left) == ("running", 10, 50, 80.0)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"status": "failed", "reason": "rank 1: SIGSEGV"}, 1, "train: failed: rank 1: SIGSEGV"),
        ({"status": "failed", "reason": "lr = x", "mendable": True}, 2, "train: failed: lr = x"),
        ({"status": "preempted", "reason": "saved"}, 75, "train: preempted: saved"),
        ({"status": "running"}, 1, "train: stopped: the last attempt ended without a word"),
    ],
)
def test_a_training_that_has_ended_ends_it(
    pipeline: Pipeline, changes: dict[str, object], code: int, said: str
) -> None:
    attempt(run_of(pipeline), 1, **{"finished": 300.0} | changes)
    error = verdict(look(pipeline, ()))
    assert isinstance(error, PrimusError)
    assert (error.exit_code, str(error)) == (code, said)
    queued = job("train.mine", "PENDING", train_key(pipeline))
    assert verdict(look(pipeline, [queued])) is None, "its next turn waits"


def train_key(pipeline: Pipeline) -> str:
    return key_of("train", [artifact(pipeline.stages["train"])])


def script(key: str, **properties: object) -> None:
    path = run_status.DIRECTORY / f"{key}.-.jobscript.sh"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n# properties = {json.dumps(properties)}\nexec true\n")


def test_jobs_of_the_queue_are_those_of_stages(pipeline: Pipeline) -> None:
    """Of a group of jobs Snakemake names only what no member reads."""
    made(pipeline, "tokenizer")
    script("t", type="group", output=[str(output(pipeline, "samples"))])
    script("u", type="single", output=[str(output(pipeline, "tune"))])
    script("torn", output=3)
    text, tune = job("text", "PENDING", "t", "(Priority)"), job("tune.x", "RUNNING", "u")
    found = seen(pipeline, text, tune, job("other", "PENDING", "torn"))
    expected = ["done", "queued", "queued", "waiting", "starting", "waiting", "waiting", "waiting"]
    assert [status.state for status in found.values()] == expected
    assert (found["data"].why, found["data"].number) == ("job 17 PENDING (Priority)", "17")
    assert verdict(look(pipeline, [text])) is None


def test_the_place_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"%T|%P|%S": "PENDING|gpu|2026-12-01T10:00:00\n", "%i": "3\n17\n20_[1-5]\n"}

    def ask(command: list[str], _seconds: float) -> str:
        assert "--partition=gpu" in command or "--jobs=17" in command
        return answers[next(w for w in command if w.startswith("--format=")).partition("=")[2]]

    monkeypatch.setattr(queue, "ask", ask)
    assert queue.place_of("17") == Place(place=2, waiting=3, start="2026-12-01T10:00:00")
    answers["%T|%P|%S"] = "PENDING|gpu|N/A\n"
    assert queue.place_of("17") == Place(place=2, waiting=3, start="")
    for gone in ("RUNNING|gpu|2026-12-01T10:00:00\n", ""):
        answers["%T|%P|%S"] = gone
        assert queue.place_of("17") is None
    answers["%T|%P|%S"] = "something else\n"
    with pytest.raises(queue.QueueError):
        queue.place_of("17")


def test_lines_come_when_there_is_something_new(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(pipeline)
    attempt(run, 1, status="failed", finished=1.0)
    attempt(run, 2)
    lease(run)
    metrics(run, 10)
    script("t", type="single", output=[str(output(pipeline, "data"))])
    jobs = [job("data", "PENDING", "t", "(\x1b[2JPriority)")]
    places = {"17": Place(place=2, waiting=9, start="")}
    with shown("mine") as show:
        show(look(pipeline, jobs), places)
        first = capsys.readouterr().out.splitlines()
        show(look(pipeline, jobs), places)
        assert capsys.readouterr().out == ""
        metrics(run, 10, 20)
        show(look(pipeline, jobs), places)
        (line,) = capsys.readouterr().out.splitlines()
    assert first[0] == "mine"
    assert len(first) == 1 + len(ALL)
    assert all(text.isprintable() for text in first)
    assert "queued    job 17 PENDING (\\x1b[2JPriority), place 2 of 9 that wait" in first[2]
    assert "20/50 iterations | ETA 0:01:00 | loss 3.0000, 1,000 tokens/s, attempt 2" in line


def test_a_terminal_is_written_in_place(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    run = run_of(pipeline)
    attempt(run, 1)
    lease(run)
    metrics(run, 10)
    with terminal() as written:
        with shown("mine") as show:
            show(look(pipeline, []), {})
            first = written()
            metrics(run, 10, 20)
            show(look(pipeline, []), {})
            second = written()
        with shown_text(again=True) as show_text:
            show_text(["one", "\x1b]0;title\x07"])
            third = written()
        written()
        monkeypatch.setenv("TERM", "dumb")
        with shown("mine") as show:
            show(look(pipeline, []), {})
        dumb = written()
    assert "10/50 iterations" in first
    assert "━" in first
    assert "20/50 iterations" in second
    assert second.count("\x1b[1A") >= len(ALL), "the cursor goes up over what was there"
    assert "\\x1b]0;title\\x07" in third
    assert dumb.count("\r\n") == 1 + len(ALL)
    assert "\x1b" not in dumb


def watched(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], None]) -> int:
    """The exit status of a watch between whose looks these things happen; then comes Ctrl-C."""
    left = list(steps)

    def sleep(_: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr(status.time, "sleep", sleep)
    try:
        run_main(lambda: status.watch(pipeline, 1.0))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def trained(pipeline: Pipeline) -> None:
    pipeline.run.mkdir(parents=True, exist_ok=True)
    output(pipeline, "train").write_bytes(manifest(TrainManifest))
    metrics(pipeline.run, 50)


def test_it_ends_when_all_is_done(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = ALL[:5], ALL[6:]
    steps = [lambda stage=stage: made(pipeline, stage) for stage in before]
    steps.append(lambda: output(pipeline, "train").parent.mkdir(parents=True))
    steps.append(lambda: output(pipeline, "train").write_text('{"kind": "tr'))
    steps.append(lambda: trained(pipeline))
    steps += [lambda stage=stage: made(pipeline, stage) for stage in after]
    assert watched(pipeline, monkeypatch, *steps) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in shown[-3:]] == [
        [name, "done"] for name in ("train", "export", "report")
    ]


def test_a_run_without_a_report_has_ended_when_nothing_follows(pipeline: Pipeline) -> None:
    made(pipeline, "tokenizer", "data", "samples", "shapes", "tune", ago=1000)
    trained(pipeline)
    assert verdict(look(pipeline, ())) is not None
    metrics(pipeline.run, 40)
    assert seen(pipeline)["train"].state == "waiting", "train_iters was raised"


def test_ctrl_c_ends_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(pipeline, monkeypatch, lambda: made(pipeline, "tokenizer")) == 130


def test_the_end_of_the_training_ends_it(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(pipeline)
    attempt(run, 1)
    lease(run)

    def fail() -> None:
        attempt(run, 1, status="failed", reason="rank 1: SIGSEGV", finished=300.0)
        lease(run, released=True)

    assert watched(pipeline, monkeypatch, lambda: metrics(run, 10), fail) == 1
    said = capsys.readouterr()
    assert "10/50 iterations" in said.out
    assert said.err.splitlines()[0] == "error: train: failed: rank 1: SIGSEGV"


def test_the_command_watches_what_it_is_asked_for(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("configs").symlink_to(ROOT / "configs")

    def sleep(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        status.main([EXPERIMENT, "--watch", "--config", "hardware=cpu", "lr=0.5"])
    heading, first, *_ = capsys.readouterr().out.splitlines()
    assert heading.startswith(f"{EXPERIMENT}/")
    assert heading != f"{EXPERIMENT}/{pipeline.run.name}"
    assert first.split()[1:] == ["tokenizer", "waiting"]
    with pytest.raises(KeyboardInterrupt):
        status.main(["--watch"])
    assert capsys.readouterr().out == "no runs below output/runs\n"
    for wrong in (["--watch", "0"], ["--config", "lr=1"]):
        with pytest.raises(SystemExit):
            status.main(wrong)


def test_one_look_shows_runs_and_stages_and_ends(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("configs").symlink_to(ROOT / "configs")
    config = [
        "--config",
        "hardware=cpu",
        "train_iters=50",
        "lr_decay_iters=50",
        "lr_warmup_iters=5",
    ]
    status.main([EXPERIMENT, *config])
    heading, *rest = capsys.readouterr().out.splitlines()
    assert heading == f"{EXPERIMENT}/{pipeline.run.name}"
    assert [line.split()[1:] for line in rest] == [[name, "waiting"] for name in ALL]
    run = run_of(pipeline)
    metrics(run, 10)
    other = run.with_name("0" * 12)
    other.mkdir()
    script("t", type="single", output=[str(output(pipeline, "data"))])
    monkeypatch.setattr(queue, "mine", lambda: [job("data", "PENDING", "t", "(Priority)")])
    status.main([EXPERIMENT, *config])
    table, stages = capsys.readouterr().out.split("\n\n")
    runs = {f"{EXPERIMENT}/{one.name}" for one in (run, other)}
    assert {line.split()[0] for line in table.splitlines()} == {"run", *runs, "job"}
    assert stages.startswith(heading)
    assert "data      queued    job 17 PENDING (Priority)" in stages
    assert "10/50 iterations" in stages


def test_a_look_says_once_that_the_queue_does_not_answer(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("configs").symlink_to(ROOT / "configs")
    run_status.DIRECTORY.mkdir(parents=True)
    status.main([EXPERIMENT, "--config", "hardware=cpu"])
    said = capsys.readouterr()
    assert said.err == "jobs are not shown: no answer\n"
    assert "not shown" not in said.out


def test_with_a_mistake_in_the_configuration_a_look_still_shows_the_runs(
    pipeline: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("configs").symlink_to(ROOT / "configs")
    metrics(run_of(pipeline), 10)
    with pytest.raises(ConfigError, match="did you mean lr"):
        status.main([EXPERIMENT, "--config", "lrr=1"])
    assert f"{EXPERIMENT}/{pipeline.run.name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], [EXPERIMENT, "llama3_8B"], [EXPERIMENT, "--json"]])
def test_config_of_the_status_is_for_stages_alone(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        status.main([*words, "--config", "lr=1"])
    assert caught.value.code == 2
