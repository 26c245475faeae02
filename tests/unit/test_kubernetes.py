"""What a job of Snakemake is as a job of Kubernetes, and what its state means."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from primus import kubernetes
from primus.errors import UserError
from primus.slurm.job import Job

ARGS = argparse.Namespace(image="i:1", claim="c", mount=Path("/shared"), gpu="amd.com/gpu")


def job(**resources: Any) -> Job:
    return Job(name="train.llama3_8B", key="k" * 16, inputs="-", threads=4, resources=resources)


def test_gpus_memory_and_time_are_asked_for() -> None:
    made = kubernetes.manifest(
        job(gres="gpu:h100:8", mem_mb=0, runtime=60, nodes=1, cpus_per_task=64), Path("s.sh"), ARGS
    )
    assert made["metadata"]["name"] == f"train-llama3-8b-{'k' * 16}"
    assert made["spec"]["activeDeadlineSeconds"] == 3600
    container = made["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "64", "amd.com/gpu": "8"}
    assert container["command"] == ["sh", "s.sh"]


def test_several_nodes_are_refused() -> None:
    with pytest.raises(UserError, match="nodes = 2: a pod is one node"):
        kubernetes.manifest(job(nodes=2), Path("s.sh"), ARGS)


@pytest.mark.parametrize(
    ("status", "text", "word"),
    [
        (0, {"conditions": [{"type": "Complete", "status": "True"}]}, "success"),
        (0, {"conditions": [{"type": "Failed", "status": "True", "reason": "Late"}]}, "failed"),
        (0, {"conditions": [{"type": "Complete", "status": "False"}]}, "running"),
        (0, {}, "running"),
        (0, None, "failed"),
        (0, {"conditions": "many"}, "running"),
        (1, None, "running"),
    ],
)
def test_only_complete_is_success(
    status: int, text: Any, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "" if text is None else json.dumps({"status": text})
    done = subprocess.CompletedProcess([], status, answer, "no answer\n")
    monkeypatch.setattr(kubernetes, "_kubectl", lambda *_: done)
    assert kubernetes.verdict("x") == word
