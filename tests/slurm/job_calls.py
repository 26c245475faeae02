"""Jobs as Snakemake hands them over: submitted, and asked about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab import wait

Submit = Callable[..., str]


def call(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"primus.slurm.{module}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def script(directory: Path, command: str, output: str, **resources: Any) -> Path:
    """What Snakemake writes for a job of training."""
    properties = {
        "rule": "train",
        "wildcards": {"experiment": "llama3_8B_tiny"},
        "output": [output],
        "threads": 1,
        "resources": {"mem_mb": 100, "runtime": 5, **resources},
    }
    path = directory / "snakejob.sh"
    path.write_text(f"#!/bin/sh\n# properties = {json.dumps(properties)}\n{command}\n")
    return path


def submitter(directory: Path) -> Submit:
    def function(command: str, output: str = "out.json", **resources: Any) -> str:
        done = call("submit", str(script(directory, command, output, **resources)))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return function


def status(job: str) -> str:
    done = call("status", job)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def ends(job: str, word: str, seconds: float = 60.0) -> None:
    wait(lambda: status(job) != "running", f"job {job} does not end", seconds=seconds)
    assert status(job) == word


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def state(job: str) -> str:
    return run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T %r")


def fake(directory: Path, name: str, text: str) -> None:
    """A fake program of SLURM."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{text}\n")
    (directory / name).chmod(0o755)


def path_with(directory: Path) -> str:
    return f"{directory}{os.pathsep}{os.environ['PATH']}"
