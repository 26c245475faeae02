"""The rules on another engine than SLURM: pods, whose cluster is a fake kubectl on this machine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from project import REPOSITORY, Project

pytestmark = pytest.mark.pipeline

FAKE = REPOSITORY / "tests/pipeline/fake_kubectl.py"
PROFILE = ("--profile", "profiles/kubernetes")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project")


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment in which kubectl is the fake."""
    programs = tmp_path / "programs"
    programs.mkdir()
    kubectl = programs / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    kubectl.chmod(0o755)
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    return {"FAKE_KUBECTL": str(jobs), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def jobs(cluster: dict[str, str]) -> dict[str, Any]:
    found = sorted(Path(cluster["FAKE_KUBECTL"]).glob("*.json"))
    return {path.stem.rpartition("-")[0]: json.loads(path.read_text()) for path in found}


def test_the_whole_plan_shows_without_a_cluster(project: Project) -> None:
    plan = project.plan(*PROFILE, "train_llama3_8B_tiny")
    assert {"tokenizer", "data", "samples", "shapes", "tune", "train", "export", "report"} <= {
        *plan
    }


def test_stages_run_as_pods_and_are_there_only_once(
    project: Project, cluster: dict[str, str]
) -> None:
    command = ("snakemake", *PROFILE, "data_llama3_8B_tiny")
    done = project.run(*command, **cluster)
    assert done.returncode == 0, done.stderr
    (job,) = jobs(cluster).values()
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "1", "memory": "16000M"}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "primus"}
    assert job["spec"]["activeDeadlineSeconds"] > 0
    again = project.run(*command, **cluster)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_pod_that_fails_is_a_failure(project: Project, cluster: dict[str, str]) -> None:
    (project.path / "corpus/persuasion.txt").write_text("")
    done = project.run("snakemake", *PROFILE, "data_llama3_8B_tiny", **cluster)
    assert done.returncode != 0
    assert "Its log: kubectl logs job/text-" in done.stdout + done.stderr
