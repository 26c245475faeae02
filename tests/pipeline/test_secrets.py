"""Tokens in the environment and in a token file are in nothing that the pipeline writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from project import EXPERIMENT, Project

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


@pytest.mark.usefixtures("_tokens")
def test_the_whole_chain_writes_no_token(untouched: Project) -> None:
    untouched.set({"env": {"NCCL_DEBUG": "WARN"}})
    done = untouched.snakemake("--cores", "2", f"train_{EXPERIMENT}", f"export_{EXPERIMENT}")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert CANARY not in done.stdout + done.stderr
    # The search would find it.
    (untouched.path / "output/seeded.txt").write_text(f"token: {CANARY}\n")
    assert holding(untouched.path, CANARY) == ["output/seeded.txt"]
    made = {path.name for path in untouched.path.rglob("*") if path.is_file()}
    assert {"train.json", "report.html", "tuned.jsonl", "metrics.jsonl", "attempt.json"} <= made
    (manifest,) = untouched.path.glob("output/runs/*/*/train.json")
    assert '"NCCL_DEBUG": "WARN"' in manifest.read_text()
