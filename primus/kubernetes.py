"""Snakemake's jobs as pods of a Kubernetes cluster, by kubectl: an example of another engine.

`profiles/kubernetes` names these commands. The working directory lies on a volume that all pods
mount at the same path. A job is named after its work, so that it cannot be there twice.

Examples:
    python -m primus.kubernetes submit --image primus:1 --claim work --mount /work jobscript.sh
    python -m primus.kubernetes status primus-train-0123456789ab
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from primus.command_line import Command, add_subcommand
from primus.errors import UnavailableError, UserError, run_main
from primus.files import atomic_write
from primus.slurm.job import Job
from primus.slurm.submit import lasting_text

# Snakemake removes its own scripts when it ends; pods may start later.
SCRIPTS = Path(".snakemake") / "kubernetes"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the name of the job, or how it is.

    Raises:
        UserError: the job takes several nodes.
        UnavailableError: the cluster refuses it, or does not answer.
    """
    args = command_parser().parse_args(argv)
    if args.command == "status":
        print(verdict(args.job), flush=True)
        return
    job = Job.read(args.jobscript)
    print(_create(manifest(job, _kept(job, args.jobscript), args)), flush=True)


def command_parser() -> Command:
    """The arguments of the command."""
    parser = Command("primus.kubernetes", __doc__)
    commands = parser.add_subcommands()
    submit = add_subcommand(commands, "submit", "start a job, or find the one that is at it")
    submit.add_argument("jobscript", type=Path, help="written by Snakemake")
    submit.add_argument("--image", required=True, help="image with this repository's environment")
    submit.add_argument("--claim", required=True, help="volume claim with the working directory")
    submit.add_argument("--mount", type=Path, required=True, help="where it is mounted, everywhere")
    submit.add_argument("--gpu", default="nvidia.com/gpu", help="resource that a GPU is")
    status = add_subcommand(commands, "status", "running, success or failed")
    status.add_argument("job", help="its name, as submit printed it")
    return parser


def manifest(job: Job, script: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The job as kubectl takes it.

    Raises:
        UserError: it takes several nodes, and a pod is one.
    """
    asked = job.resources
    if int(asked.get("nodes") or 1) > 1:
        raise UserError(
            f"{job.name}: nodes = {asked['nodes']}: a pod is one node. "
            "Fix: nodes: 1, or a cluster with SLURM"
        )
    limits = {"cpu": str(asked.get("cpus_per_task") or job.threads)}
    if asked.get("mem_mb"):
        limits["memory"] = f"{asked['mem_mb']}M"
    gpus = re.fullmatch(r"gpu(?::[\w.-]+)?:(\d+)", str(asked.get("gres") or ""))
    if gpus:
        limits[args.gpu] = gpus[1]
    container = {
        "name": "stage",
        "image": args.image,
        "command": ["sh", str(script)],
        "workingDir": str(Path.cwd()),
        "resources": {"requests": limits, "limits": limits},
        "volumeMounts": [{"name": "shared", "mountPath": str(args.mount)}],
    }
    volume = {"name": "shared", "persistentVolumeClaim": {"claimName": args.claim}}
    pod = {"restartPolicy": "Never", "containers": [container], "volumes": [volume]}
    spec: dict[str, Any] = {"backoffLimit": 0, "template": {"spec": pod}}
    if asked.get("runtime"):
        spec["activeDeadlineSeconds"] = 60 * int(asked["runtime"])
    rule = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")[:40]
    name = f"{rule}-{job.key}"
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


def verdict(name: str) -> str:
    """Snakemake's word for how a job is; success only where Kubernetes says so."""
    done = _kubectl("get", "job", name, "--ignore-not-found", "--output=json")
    if done.returncode != 0:
        print(f"{name}: {_last(done.stderr)}; asked again later", file=sys.stderr)
        return "running"
    try:
        status = _status(done.stdout)
    except (ValueError, KeyError, AttributeError, TypeError):
        print(f"{name}: kubectl's answer is not understood; asked again later", file=sys.stderr)
        return "running"
    if status is None:
        print(f"{name}: no such job; it was deleted", file=sys.stderr)
        return "failed"
    if status.get("Complete"):
        return "success"
    if status.get("Failed"):
        print(
            f"{name} failed: {status['Failed']}. Its log: kubectl logs job/{name}", file=sys.stderr
        )
        return "failed"
    return "running"


def _create(job: dict[str, Any]) -> str:
    """Make the job unless one by its name is at it; one that has failed makes room."""
    name = str(job["metadata"]["name"])
    before = _status(_kubectl("get", "job", name, "--ignore-not-found", "--output=json").stdout)
    if before is not None and not before.get("Failed") and not before.get("Complete"):
        print(f"{name} is at it already", file=sys.stderr)
        return name
    if before is not None:
        _kubectl("delete", "job", name, "--wait=true")
    done = _kubectl("create", "--filename=-", text=json.dumps(job))
    if done.returncode != 0 and "AlreadyExists" not in done.stderr:
        raise UnavailableError(
            f"{name}: kubectl refuses it: {_last(done.stderr)}. Fix: the options of "
            "cluster-generic-submit-cmd in profiles/kubernetes/config.yaml"
        )
    return name


def _status(text: str) -> dict[str, str] | None:
    """Reasons by condition; None where there is no such job."""
    if not text.strip():
        return None
    conditions = json.loads(text).get("status", {}).get("conditions") or []
    return {c["type"]: c.get("reason") or c["type"] for c in conditions if c["status"] == "True"}


def _kept(job: Job, jobscript: Path) -> Path:
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    path = SCRIPTS.resolve() / f"{job.key}.sh"
    with atomic_write(path) as stream:
        stream.write(lasting_text(job, jobscript, SCRIPTS.resolve()))
    return path


def _kubectl(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = ["kubectl", *arguments]
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UnavailableError("kubectl is not installed. Fix: install it, and log in") from error


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


if __name__ == "__main__":
    run_main(main)
