"""Tests on a real SLURM, which `make test-slurm` starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_run import SETTINGS, Bench, Run
from job_calls import Submit, submitter
from lab import Lab

# Compiling takes a third of a short run's time. Jobs inherit this, as do the runs on this machine
# that they are compared with.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The cluster, all nodes idle before and after the test."""
    if "SLURM_LAB" not in os.environ:
        pytest.skip("no SLURM here: run make test-slurm")
    here = Lab.here()
    here.wait_ready()
    yield here
    here.cancel_all()
    here.wait_ready()


@pytest.fixture
def submit(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submit:
    """Submit a job of a working directory of its own."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    monkeypatch.chdir(tmp_path)
    return submitter(tmp_path)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A directory that all nodes see, with samples."""
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Run:
    """Two ranks on this machine, which nothing hurts."""
    run = bench.run("undisturbed", nproc_per_node=2, **SETTINGS)
    run.finish()
    return run
