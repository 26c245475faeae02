"""A run that starts from a Hugging Face model: here from what another run exported."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from project import EXPERIMENT, Project

from primus.artifacts.run import MetricsRow, TrainManifest
from primus.artifacts.weights import WeightsManifest
from primus.trainer.outcome import read_metrics

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

TARGET = f"train_{EXPERIMENT}"
ONLY = ("--until", "train")


@pytest.fixture
def model(project: Project) -> Path:
    """The export of the finished run, copied to where a user might keep a model."""
    (export,) = project.path.glob(f"output/runs/{EXPERIMENT}/*/hf")
    kept = project.path / "models/start"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(export, kept)
    return kept


def finetuned(project: Project) -> TrainManifest:
    """The run that started from a model."""
    manifests = map(TrainManifest.load, project.path.glob(f"output/runs/{EXPERIMENT}/*/train.json"))
    (found,) = [manifest for manifest in manifests if manifest.weights_fingerprint]
    return found


def test_a_run_starts_where_the_model_ended(project: Project, model: Path) -> None:
    project.set({"load_hf": "models/start", "lr": 1e-6, "min_lr": 0.0, "lr_warmup_iters": 0})
    plan = project.plan(TARGET)
    assert plan == {"weights": 1, "train": 1, "export": 1, "report": 1, "settings": 4}
    project.make(TARGET, *ONLY)
    manifest = finetuned(project)
    before = next(
        found
        for path in project.path.glob(f"output/runs/{EXPERIMENT}/*/train.json")
        if (found := TrainManifest.load(path)).key != manifest.key
    )
    # At a rate of almost 0 the loss stays where the other run left it.
    assert manifest.validation_loss == pytest.approx(before.validation_loss, rel=1e-3)
    rows = read_metrics(project.path / f"output/runs/{EXPERIMENT}/{manifest.key}")
    first = next(row for row in rows if isinstance(row, MetricsRow))
    assert first.loss == pytest.approx(before.loss, rel=0.1)
    (path,) = project.path.glob(f"output/weights/{EXPERIMENT}/*/manifest.json")
    weights = WeightsManifest.load(path)
    assert weights.fingerprint == manifest.weights_fingerprint
    assert set(weights.files) == {"config.json", "model.safetensors"}
    assert not {"weights", "train"} & set(project.plan(TARGET))

    # Another model under the same name is no silent change of the run.
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5}))
    assert project.plan(TARGET)["weights"] == 1
    result = project.snakemake("--cores", "2", TARGET, *ONLY)
    assert "the run there has weights_fingerprint" in result.stdout + result.stderr


def test_another_architecture_is_one_line_in_the_dry_run(project: Project, model: Path) -> None:
    project.set({"load_hf": "models/start"})
    result = project.snakemake(
        "--dry-run", TARGET, "--config", "norm_epsilon=0.5", "num_query_groups=1"
    )
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: --config: norm_epsilon = 0.5: config.json says 1e-05 for rms_norm_eps, the "
        "settings give 0.5. Fix: write norm_epsilon: 1e-05 in the model's file, or name another "
        "model",
        "error: --config: num_query_groups = 1: config.json says 2 for num_key_value_heads, the "
        "settings give 1. Fix: write num_query_groups: 2 in the model's file, or name another "
        "model",
    ]


def test_a_directory_that_is_not_there(project: Project) -> None:
    project.set({"load_hf": "./models/nowhere"})
    dry_run = project.snakemake("--dry-run", TARGET)
    check = project.run("python", "-m", "primus.config", "check", EXPERIMENT)
    for result in (dry_run, check):
        assert result.returncode == 2
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        (place,) = re.findall(rf"configs/{EXPERIMENT}.yaml:\d+", errors[0])
        assert errors == [
            f'error: {place}: load_hf = "./models/nowhere": there is no such directory. '
            "Fix: name one that is there"
        ]
