"""Tokens in the environment and in a token file are in nothing that the pipeline writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import EXPERIMENT, REPOSITORY, Project
from trainer_run import Bench

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

CANARY = "canary-5f1c0e7a9b"
NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN")


@pytest.fixture
def _tokens(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("huggingface")
    (home / "token").write_text(CANARY)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_TOKEN_PATH", str(home / "token"))
    for name in NAMES:
        monkeypatch.setenv(name, CANARY)


def holding(root: Path, text: str) -> list[str]:
    """Files below `root`, by name or content, that hold the text."""
    wanted = text.encode()
    return [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if wanted in str(path).encode() or (path.is_file() and wanted in path.read_bytes())
    ]


@pytest.fixture
def _private() -> Iterator[None]:
    """A umask that leaves others nothing."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def open_to_others(root: Path) -> list[str]:
    """Files and directories below `root` that others may read or write."""
    return [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if not path.is_symlink() and path.stat().st_mode & 0o077
    ]


@pytest.mark.fault(
    40,
    injected="tokens in the environment and in a token file, through the whole chain; umask 077",
    observed="no artefact, log or file of Snakemake holds them, and none is open to others",
)
@pytest.mark.usefixtures("_tokens", "_private")
def test_the_whole_chain_writes_no_token(untouched: Project) -> None:
    untouched.set({"env": {"NCCL_DEBUG": "WARN"}})
    done = untouched.snakemake("--cores", "2", f"train_{EXPERIMENT}", f"export_{EXPERIMENT}")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert CANARY not in done.stdout + done.stderr
    assert open_to_others(untouched.path / "output") == []
    # Snakemake gives some of its own files a mode of its own, in a directory that is closed.
    assert not (untouched.path / ".snakemake").stat().st_mode & 0o077
    # The search would find it.
    (untouched.path / "output/seeded.txt").write_text(f"token: {CANARY}\n")
    assert holding(untouched.path, CANARY) == ["output/seeded.txt"]
    made = {path.name for path in untouched.path.rglob("*") if path.is_file()}
    assert {"train.json", "report.html", "tuned.jsonl", "metrics.jsonl", "attempt.json"} <= made
    (manifest,) = untouched.path.glob("output/runs/*/*/train.json")
    assert '"NCCL_DEBUG": "WARN"' in manifest.read_text()


# Runs at the start of every Python: what is named fails with the token in its words.
HOOK = """
import os, sys
def fail(*_, **__):
    raise {kind}("the server said: bad token " + os.environ["HF_TOKEN"])
if {program!r} in sys.orig_argv:
    import warnings
    warnings.simplefilter("ignore")
    import {module} as module
    module.{function} = fail
"""
KINDS = [
    pytest.param("import primus.errors; raise primus.errors.DataError", id="our own"),
    pytest.param("ValueError", id="a defect"),
]


def hook(directory: Path, kind: str, program: str, module: str, function: str) -> str:
    """PYTHONPATH under which a function of a program fails."""
    prefix, _, name = kind.rpartition("raise ")
    text = HOOK.format(kind=name, program=program, module=module, function=function)
    if prefix:
        text = text.replace("    raise ", f"    {prefix}raise ", 1)
    (directory / "sitecustomize.py").write_text(text)
    return os.pathsep.join([str(directory), str(REPOSITORY)])


@pytest.mark.fault(
    40,
    injected="a stage, and a rank of two, that fail with the token in the error's own words",
    observed="the name of the variable stands there, in logs, records and on the terminal",
)
@pytest.mark.usefixtures("_tokens")
@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_that_fails_shows_no_token(
    untouched: Project, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    hooks = tmp_path_factory.mktemp("hooks")
    path = hook(hooks, kind, "primus.tokenizer", "primus.dataset.make_tokenizer", "make_tokenizer")
    done = untouched.run("snakemake", "--cores", "1", f"data_{EXPERIMENT}", PYTHONPATH=path)
    assert done.returncode == 1
    shown = done.stdout + done.stderr
    assert "the server said: bad token <HF_TOKEN>" in shown
    assert CANARY not in shown
    assert holding(untouched.path, CANARY) == []
    assert holding(untouched.path, "bad token <HF_TOKEN>")


@pytest.mark.usefixtures("_tokens")
@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_that_fails_shows_no_token(
    bench: Bench, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    run = bench.run(f"fails-{request.node.callspec.id}", nproc_per_node=2, train_iters=2)
    path = hook(tmp_path, kind, "primus.train_rank", "primus.trainer.lease", "lease")
    run.environment = {"PYTHONPATH": path}
    status, output = run.fail()
    assert status in (1, 65), output
    assert "bad token <HF_TOKEN>" in output
    assert CANARY not in output
    assert holding(run.directory, CANARY) == []
    assert holding(run.directory, "bad token <HF_TOKEN>")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))
