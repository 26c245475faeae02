"""python -m primus.checkpoint: what it lists, what it deletes and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_checkpoint_directory import KEY, flip_a_bit, write

from primus import checkpoint
from primus.artifacts.run import RunIdentity
from primus.errors import CheckpointError, RunConflictError, UserError
from primus.trainer.lease import lease, writer_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with checkpoints 10 to 50; the current directory holds its output/."""
    monkeypatch.chdir(tmp_path)
    return made(tmp_path / "output/runs/small" / KEY)


def made(path: Path) -> Path:
    RunIdentity(
        experiment="small",
        key=path.name,
        settings={},
        samples_fingerprint="s",
        tokenizer_fingerprint="t",
        tuned_sha256=None,
    ).save(path / "run.json")
    for iteration in range(10, 60, 10):
        write(path / "checkpoints", iteration, key=path.name)
    return path


def saved(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("name", ["small", f"small/{KEY}", "."])
def test_a_run_is_found_by_experiment_key_and_path(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == ".":
        monkeypatch.chdir(run)
    assert checkpoint.find_run(name).resolve() == run


def test_a_run_that_is_not_clear_is_one_line(run: Path) -> None:
    made(run.with_name("ffffffffffff"))
    with pytest.raises(UserError, match=rf"RUN = small: has 2 runs. Fix: .*small/{KEY}, small/ff"):
        checkpoint.main(["list", "small"])
    with pytest.raises(UserError, match=r"RUN = none: no run.json .*Fix: "):
        checkpoint.main(["list", "none"])


def test_list(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "iter_0000020/common.pt").write_bytes(b"")
    (checkpoints / "iter_0000030/manifest.json").write_text("{")
    (checkpoints / "damaged-iter_0000040-0").mkdir()
    checkpoint.main(["list", "small"])
    head, *lines, others = capsys.readouterr().out.splitlines()
    assert head.split() == ["iteration", "size", "saved", "state", "tokens", "attempt"]
    assert [line.split()[0] for line in lines] == ["10", "20", "30", "40", "50"]
    assert "good" in lines[0]
    assert "common.pt: has 0 bytes, not 120" in lines[1]
    assert "not a checkpoint" in lines[2]
    assert others == "no checkpoints, set aside or unfinished: damaged-iter_0000040-0"
    checkpoint.main(["list", "--json", "small"])
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (first["iteration"], first["state"], first["attempt"]) == (10, "good", 1)
    assert first["bytes"] == sum(
        path.stat().st_size for path in checkpoints.glob("iter_0000010/**/*") if path.is_file()
    )


@pytest.mark.fault(
    8,
    injected="one bit of one checkpoint of five",
    observed="verify names it and ends with status 74",
)
def test_verify_reads_everything(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.main(["verify", "small"])
    assert capsys.readouterr().out.count(": good\n") == 5
    flip_a_bit(run / "checkpoints/iter_0000030/inner/0.distcp")
    with pytest.raises(
        CheckpointError, match=r"1 of 5 checkpoints are bad: iter_0000030\. Fix"
    ) as caught:
        checkpoint.main(["verify", "small"])
    assert caught.value.exit_code == 74
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2][:4] for line in said] == [
        "good",
        "good",
        "bad:",
        "good",
        "good",
    ]
    assert "SHA-256" in said[2]


def test_prune(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, command = saved(run), ["prune", "small", "--keep-last", "1", "--keep-every", "20"]
    checkpoint.main([*command, "--dry-run"])
    would = capsys.readouterr().out.replace("would delete", "deleted")
    assert saved(run) == before
    checkpoint.main(command)
    assert capsys.readouterr().out == would
    assert saved(run) == ["iter_0000020", "iter_0000040", "iter_0000050"]
    assert writer_of(run) is None


@pytest.mark.fault(
    23,
    injected="prune while a living process holds the lease",
    observed="refused, nothing is deleted",
)
def test_prune_while_a_trainer_writes_is_refused(run: Path) -> None:
    before = saved(run)
    with lease(run), pytest.raises(RunConflictError, match="is writing to this run"):
        checkpoint.main(["prune", "small", "--keep-last", "1"])
    assert saved(run) == before


def test_export_of_what_is_not_there(run: Path) -> None:
    for options, message in (
        (["--iteration", "15"], r"--iteration: .*Fix: one of these: 10, 20, 30, 40, 50"),
        ([], "--tokenizer: none under output/tokenizer has the run's fingerprint t"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.main(["export", "small", "--output", "hf", *options])
    assert not Path("hf").exists()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("mine", r"mine: holds notes\.txt, which is not of an export.*Fix: "),
        (".", r"\.: is the directory of this command. Fix: "),
        ("..", r"\.\.: is the directory of this command. Fix: "),
        ("mine/notes.txt", r"mine/notes\.txt: is no directory. Fix: "),
    ],
)
def test_an_export_replaces_nothing_of_the_users(run: Path, output: str, message: str) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("a note")
    with pytest.raises(UserError, match=message):
        checkpoint.main(["export", "small", "--output", output])
    assert Path("mine/notes.txt").read_text() == "a note"
    assert len(saved(run)) == 5


@pytest.mark.parametrize(
    "arguments", [["prune", "small"], ["prune", "small", "--keep-last", "0"], ["shred", "small"]]
)
def test_wrong_arguments_have_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        checkpoint.main(arguments)
    assert end.value.code == 2


def test_help_is_quick_and_an_error_is_one_line(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('primus.checkpoint', run_name='__main__')\n"
        "finally:\n"
        "    assert not {'torch', 'transformers', 'megatron'} & set(sys.modules)\n"
    )
    for arguments, status, text in (
        (["--help"], 0, "python -m primus.checkpoint prune llama3_8B_tiny --keep-last 2"),
        (["verify", "nothing"], 2, "error: RUN = nothing: no run.json"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status
        assert text in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
