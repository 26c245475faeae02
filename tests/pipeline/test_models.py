"""Every tiny sibling in configs/ trains through the whole pipeline, and its loss falls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from project import REPOSITORY, Project

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(1500)]

TINIES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*_tiny.yaml"))
# One rank each, so that two models train at a time. Shapes have their own test.
SHORT = {
    "hardware": "cpu",
    "nproc_per_node": 1,
    "data_path": "[corpus/*.txt]",
    "tokenizer_data_path": "[corpus/*.txt]",
    "tokenizer_vocab_size": 1024,
    "split": "90,10,0",
    "seq_length": 128,
    "global_batch_size": 8,
    "train_iters": 40,
    "lr_decay_iters": 40,
    "lr_warmup_iters": 4,
    "eval_interval": 40,
    "eval_iters": 1,
    "save_interval": 40,
    "gemm_tuning": "{enabled: false}",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which all of them have trained, on uncompiled kernels.

    Those of a whole compiled chain are in the project that other tests share.
    """
    project = Project(tmp_path_factory.mktemp("models"))
    targets = [f"train_{name}" for name in TINIES]
    keys = [f"{key}={value}" for key, value in SHORT.items()]
    project.make(*targets, "--config", *keys, TORCHDYNAMO_DISABLE="1")
    return project.path


def test_all_nine_models_are_there() -> None:
    llamas = {"llama2_7B", "llama2_70B", "llama3_8B", "llama3_70B", "llama3.1_8B", "llama3.1_70B"}
    deepseeks = {"deepseek_v2_lite", "deepseek_v2", "deepseek_v3"}
    assert {f"{name}_tiny" for name in llamas | deepseeks} <= set(TINIES)
    assert all((REPOSITORY / f"configs/{name}.yaml").exists() for name in llamas | deepseeks)


@pytest.mark.parametrize("name", TINIES)
def test_the_loss_falls(trained: Path, name: str) -> None:
    (directory,) = (trained / f"output/runs/{name}").iterdir()
    manifest = json.loads((directory / "train.json").read_text())
    assert manifest["iteration"] == 40
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "lr" in row]
    # The first row is of iteration 5: a uniform guess has ln 2048 = 7.6.
    assert losses[0] > 7.0
    assert losses[-1] < 6.2
    assert losses[-1] < losses[0] - 1.0
    assert (directory / "report.html").exists()
    export = json.loads((directory / "hf/manifest.json").read_text())
    # Published files hold the embedding once more for multi-token prediction, and expert biases.
    more = export["parameters"] - manifest["parameters"]
    assert (more > 0) if name == "deepseek_v3_tiny" else (more == 0)
    assert any(file.endswith(".safetensors") for file in export["files"])
