"""Whatever a configuration says, each rule's command is the words that the rule's text means.

Snakemake itself plans every target for every hostile value; bash itself runs each command that
comes of it, with a recorder in place of Python.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import EXPERIMENT, REPOSITORY, Project

from primus.artifacts.run import RunIdentity
from primus.config.families import nearest
from primus.config.families.config_json import content
from primus.config.load import load
from primus.reports.comparison.find import MOST
from tests.hostile_values import PAYLOADS, accepted
from tests.unit.damage import manifest

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(900)]

# What YAML or a command line cannot hold at all is refused, which test_config_security.py shows.
NAMES = {
    f"h{number:02d}": payload
    for number, (name, payload) in enumerate(PAYLOADS.items())
    if name not in ("null", "escape")
}
RECORDER = """#!/bin/bash
printf '%s\\0' "$@" > "$RECORD"
"""
KINDS = ("data", "shapes", "tune", "train", "export", "eval", "report", "ab", "preflight")


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as groups."""
    found: dict[str, Any] = {}
    for dotted, value in values.items():
        *groups, last = dotted.split(".")
        inner = found
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return found


def is_file_name(payload: str) -> bool:
    """Whether a file of that name can be, and one that a pattern of ours may match."""
    return "/" not in payload and len(payload) < 200 and not set("{}") & set(payload)


def write_model(directory: Path, experiment: str) -> None:
    """A Hugging Face model of the experiment's architecture, as far as a dry run looks."""
    directory.mkdir(parents=True)
    settings = load(experiment, {"hardware": "cpu"}, root=REPOSITORY, stages=()).settings
    family, _ = nearest(settings)
    entries = content(family.fields(settings)) | {"model_type": family.model_type}
    (directory / "config.json").write_text(json.dumps(entries))
    (directory / "model.safetensors").write_bytes(b"")


class Hostile:
    """A project with one experiment, or two, for each payload."""

    def __init__(self, path: Path) -> None:
        self.project = Project(path)
        self.path = path
        shutil.rmtree(path / "corpus")
        self.values: dict[str, dict[str, Any]] = {}
        for name, payload in NAMES.items():
            file = payload if is_file_name(payload) else "plain"
            corpus = path / "corpus" / name
            corpus.mkdir(parents=True)
            (corpus / f"{file}.txt").write_text("some text\n")
            write_model(path / "models" / name / file, EXPERIMENT)
            values = accepted(payload, EXPERIMENT) | {"load_hf": f"models/{name}/{file}"}
            values.pop("gemm_tuning.replay_file", None)
            values.pop("evaluation.lm_eval_tasks", None)  # asks for an extra
            for pattern in ("data_path", "tokenizer_data_path", "evaluation.texts"):
                values[pattern] = [f"corpus/{name}/*.txt"]
            self.values[name] = values
            self.write(name, values)
            bare = {key: value for key, value in values.items() if "container" not in key}
            self.write(f"{name}_bare", bare | {"container.runtime": "none"})
            self.sweep(name, {"env": {"NOTE": payload}, "lr": 7e-3})
        self.sweep(EXPERIMENT, {})

    def runs(self) -> list[str]:
        """Directories of hostile names that look like runs, as far as a plan looks."""
        names = [f"elsewhere/{payload}" for payload in NAMES.values() if is_file_name(payload)]
        for name in names:
            run = self.path / name
            run.mkdir(parents=True, exist_ok=True)
            (run / "run.json").write_bytes(manifest(RunIdentity))
            (run / "metrics.jsonl").write_text("{}\n")
        return names

    def write(self, name: str, values: dict[str, Any]) -> None:
        shutil.copy(self.project.file(), self.project.file(name))
        self.project.set(nested(values), name)

    def sweep(self, name: str, point: dict[str, Any]) -> None:
        """A sweep of the experiment of the same name."""
        values = {"experiment": name, "points": [point]}
        (self.path / f"configs/sweeps/{name}.yaml").write_text(yaml.safe_dump(values))

    def planned(self, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What Snakemake plans, one entry for each set of targets."""
        program = Path(__file__).with_name("planned_commands.py")
        done = subprocess.run(
            [sys.executable, str(program)],
            cwd=self.path,
            input=json.dumps(asked),
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found = [self.path / f"planned-{number}.json" for number in range(len(asked))]
        return [json.loads(path.read_text()) for path in found]

    def files(self) -> set[str]:
        """Everything that is there but for what Snakemake and this test keep."""
        own = re.compile(r"\.snakemake|planned-|bin|output$|output/logs|.*__pycache__")
        every = (str(path.relative_to(self.path)) for path in self.path.rglob("*"))
        return {name for name in every if not own.match(name)}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path := tmp_path_factory.mktemp("hostile"))
        return Hostile(path)


def run_by_bash(hostile: Hostile, command: str) -> list[str]:
    """The words with which Python is called when Snakemake's shell runs the command."""
    programs, record = hostile.path / "bin", hostile.path / "bin/record"
    programs.mkdir(exist_ok=True)
    (programs / "python").write_text(RECORDER)
    (programs / "python").chmod(0o755)
    for log in re.findall(r"output/logs/\S+/", command):
        (hostile.path / log).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; {command}"],
        cwd=hostile.path,
        env={"PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record), "HOME": "/"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return ["python", *record.read_bytes().decode().split("\0")[:-1]]


def check(hostile: Hostile, jobs: list[dict[str, Any]]) -> None:
    """Each command is what its rule means, for bash, and does nothing else."""
    before = hostile.files()
    for job in jobs:
        *words, redirect, pipe, tee, ignores, log = job["expected"]
        assert (redirect, pipe, tee, ignores) == ("2>&1", "|", "tee", "-i"), job["rule"]
        assert re.fullmatch(r"output/logs/[\w/.-]+\.log", log)
        assert run_by_bash(hostile, job["command"]) == words, job["rule"]
    assert hostile.files() == before


def reached(jobs: list[dict[str, Any]]) -> set[str]:
    """Names of rules; a check of nodes has one for each experiment."""
    return {re.sub(r"^preflight_.*", "preflight", job["rule"]) for job in jobs}


@pytest.mark.fault(
    40,
    injected="shell syntax, options, globs, wildcards under every text key and in names of text "
    "files and models, through every rule; what Snakemake plans is run by bash",
    observed="each command is exactly the words of its rule, nothing else runs",
)
@pytest.mark.parametrize("profile", [False, True], ids=["this machine", "slurm"])
def test_every_rule_for_every_value(hostile: Hostile, profile: bool) -> None:
    runs = hostile.runs()
    before = hostile.files()
    experiments = [*NAMES, *(f"{name}_bare" for name in NAMES)]
    targets = [f"{kind}_{name}" for name in experiments for kind in KINDS]
    targets += [f"sweep_{name}" for name in NAMES]
    compared = [runs[i : i + MOST] for i in range(0, len(runs), MOST)]
    found, *comparisons = hostile.planned(
        [{"targets": targets, "config": {}, "profile": profile}]
        + [{"targets": ["compare"], "config": {"runs": few}, "profile": False} for few in compared]
    )
    assert hostile.files() == before, "a dry run makes nothing"
    jobs = found["jobs"] + [job for comparison in comparisons for job in comparison["jobs"]]
    assert {w for job in jobs for w in job["expected"] if w.startswith("elsewhere/")} == set(runs)
    rules = {re.sub(r"^preflight_.*", "preflight", rule) for rule in found["rules"]}
    written = {
        match[1]
        for path in (REPOSITORY / "rules").glob("*.smk")
        for match in re.finditer(r"^rule (\w+):", path.read_text(), re.MULTILINE)
    }
    assert reached(jobs) == rules == written | {"preflight"}, "every rule is reached"
    check(hostile, jobs)
    for name, payload in NAMES.items():
        own = [job for job in jobs if any(f"/{name}/" in word for word in job["expected"])]
        words = {word for job in own for word in job["expected"]}
        # What is not part of the settings alone stands in the words, whole.
        quoted = json.dumps(payload)[1:-1]
        assert any(quoted in word for word in words), name
        noted = json.dumps({"NOTE": payload})[1:-1]
        assert any(noted in w for w in words if '"lr": 0.007' in w), "the point's own values"
        options = {w for job in own for w in shlex.split(job["resources"].get("sbatch", ""))}
        if "slurm.account" in hostile.values[name]:
            assert f"--account={payload}" in options


def test_every_value_by_the_command_line(hostile: Hostile) -> None:
    """The same values by --config, which the rule of the settings hands on."""
    asked = [
        {
            "targets": [f"{kind}_{EXPERIMENT}" for kind in (*KINDS, "sweep")],
            "config": nested(hostile.values[name]),
            "profile": False,
        }
        for name in NAMES
    ]
    for name, found in zip(NAMES, hostile.planned(asked), strict=True):
        check(hostile, found["jobs"])
        given = [word for job in found["jobs"] for word in job["expected"] if '"load_hf"' in word]
        assert given
        assert all(json.loads(word) == nested(hostile.values[name]) for word in given)


def test_cheap_stages_really_run(tmp_path: Path) -> None:
    """Text of hostile names, to tokens and samples; nothing is made but what is declared."""
    project = Project(tmp_path)
    text = (tmp_path / "corpus/persuasion.txt").read_text()
    shutil.rmtree(tmp_path / "corpus")
    (tmp_path / "corpus").mkdir()
    names = [payload for payload in NAMES.values() if is_file_name(payload)]
    assert len(names) > 8
    for name in names:
        (tmp_path / "corpus" / f"{name}.txt").write_text(text)
    project.set(
        {"data_version": "$(touch made); `touch made`\n'\"", "env": {"NOTE": "; touch made"}}
    )
    before = {path.name for path in tmp_path.iterdir()}
    project.make(f"data_{EXPERIMENT}")
    assert {path.name for path in tmp_path.iterdir()} == {*before, "output", ".snakemake"}
    assert {path.name for path in (tmp_path / "output").iterdir()} == {
        *("settings", "tokenizer", "data", "samples", "logs"),
    }
    assert not list(tmp_path.rglob("made"))
    (manifest,) = (tmp_path / "output/data").glob("*/*/manifest.json")
    read = json.dumps(json.loads(manifest.read_text()))
    for name in names:
        assert json.dumps(f"corpus/{name}.txt")[1:-1] in read
    assert yaml.safe_load(project.file().read_text())["env"]["NOTE"] == "; touch made"


@pytest.mark.fault(
    40,
    injected="quotation marks, $() and backslashes in --config and in names of text files, on the "
    "way into the script of a cluster's job",
    observed="refused in one line before the job is submitted; Snakemake would not quote them",
)
@pytest.mark.parametrize("way", ["value", "file"])
def test_a_jobs_script_runs_nothing_else(tmp_path: Path, way: str) -> None:
    project = Project(tmp_path)
    given = ["--config", 'env={"A": "\'; touch made; \'"}'] if way == "value" else []
    if way == "file":
        text = tmp_path / "corpus/persuasion.txt"
        text.rename(text.with_name("it's $(touch made).txt"))
    submit = ["--executor", "cluster-generic", "--cluster-generic-submit-cmd"]
    submit += ["python -m primus.slurm.submit", "--jobs", "1"]
    done = project.snakemake(*submit, f"data_{EXPERIMENT}", *given)
    assert done.returncode == 1
    shown = done.stdout + done.stderr
    assert "does not quote for a shell" in shown, shown[-3000:]
    assert not list(tmp_path.rglob("made"))
    assert not list(tmp_path.glob("output/tokenizer/*/*/manifest.json"))
