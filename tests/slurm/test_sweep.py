"""A sweep with `--profile slurm` on the real SLURM: killed, one point cancelled, and ended."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml
from lab import Lab
from snakemake_call import Call, SlurmJob, cluster_project, slurm_jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

# The samples of both are made in one job, side by side; all before and the tuning is shared.
POINTS = [{"lr": 2e-3}, {"split": "60,40,0"}]
SHARED = {"text": 1, "shapes.llama3_8B_tiny": 1, "tune.llama3_8B_tiny": 1}
TRAIN = "train.llama3_8B_tiny"


def rate(job: SlurmJob, path: Path) -> float:
    """The peak learning rate of the point that a job trains."""
    name = job.fields["Comment"].removeprefix("primus:").replace(":", ".")
    script = (path / f".snakemake/slurm/{name}.jobscript.sh").read_text()
    (settings,) = set(re.findall(r"output/settings/\w+/train\.[0-9a-f]{12}\.json", script))
    return float(json.loads((path / settings).read_text())["identity"]["lr"])


@pytest.mark.fault(
    21,
    injected="kill -9 of Snakemake while the points of a sweep train, then scancel of one point",
    observed="the jobs are taken over; the other point ends, no report is made and the point that "
    "is missing is named; a further call trains it alone",
)
def test_every_point_is_a_job_and_nothing_runs_twice(lab: Lab, tmp_path: Path) -> None:
    project = cluster_project(tmp_path)
    project.set({"nproc_per_node": 1})
    sweep = {"experiment": "llama3_8B_tiny", "points": POINTS}
    (tmp_path / "configs/sweeps/points.yaml").write_text(yaml.safe_dump(sweep))
    command = ("sweep_points", "--keep-going")

    def training() -> list[SlurmJob]:
        return [job for job in slurm_jobs(project) if job.name == TRAIN]

    killed = Call(tmp_path, *command)
    killed.until(lambda: [job.state for job in training()] == ["RUNNING", "RUNNING"])
    # Both at once; they stand still until they are taken over, however fast they train.
    points = training()
    subprocess.run(["scontrol", "suspend", *(job.number for job in points)], check=True)
    killed.end(signal.SIGKILL)
    told = re.search(r"submitted as (\d+) jobs of the cluster: (.*)", killed.said())
    assert told is not None, killed.said()
    kinds = "1 text (tokenizer, data, samples), 1 shapes, 1 tune, 2 train, 2 results"
    assert told[2] == f"{kinds} (export, report)"
    (text,) = (job for job in slurm_jobs(project) if job.name == "text")
    assert text.fields["NumNodes"] == "1"
    assert len(list(tmp_path.glob("output/samples/*/*/manifest.json"))) == 2

    again = Call(tmp_path, *command)
    for job in points:
        again.says(f"job {job.number} SUSPENDED is at it already")
    (cancelled,) = (job for job in points if rate(job, tmp_path) == 2e-3)
    subprocess.run(["scancel", cancelled.number], check=True)
    (other,) = (job for job in points if job is not cancelled)
    subprocess.run(["scontrol", "resume", other.number], check=True)
    assert again.end() != 0
    assert f"job {cancelled.number} ({TRAIN}) failed: CANCELLED" in again.said()
    assert Counter(job.name for job in slurm_jobs(project)) == SHARED | {TRAIN: 2, "results": 1}
    assert not (tmp_path / "output/sweeps").exists()

    asked = project.run("python", "-m", "primus.sweep", "points")
    assert asked.returncode == 0, asked.stderr
    assert "1 of 2 points not finished: lr=0.002" in asked.stdout
    (partial,) = tmp_path.glob("output/sweeps/points/*.html")
    assert partial.name.endswith(".partial.html")

    back = Call(tmp_path, *command)
    assert back.end() == 0, back.said()
    jobs = slurm_jobs(project)
    assert Counter(job.name for job in jobs) == SHARED | {TRAIN: 3, "results": 2}
    states = Counter(job.state for job in jobs)
    assert states == {"COMPLETED": int(told[1]), "CANCELLED": 1}
    (page,) = tmp_path.glob("output/sweeps/points/*.html")
    assert page.name == partial.name.replace(".partial", "")
    found = json.loads(page.with_suffix(".json").read_text())["points"]
    assert [(point["finished"], point["iteration"]) for point in found] == [(True, 8)] * 2
    assert len({point["key"] for point in found}) == 2
