"""Training with torch's FSDP2: the numbers of data parallelism, from shares of everything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from trainer_run import REPOSITORY, Bench, Run, settings_of

from primus.trainer.checkpoint_directory import verify

pytestmark = [pytest.mark.pipeline, pytest.mark.slow, pytest.mark.timeout(600)]

LAST = 12
RANKS = {"nproc_per_node": 2, "train_iters": LAST, "eval_interval": 6, "save_interval": 6}
SHARDED = {"use_torch_fsdp2": True, "use_distributed_optimizer": False}
BLOCK = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def plain(bench: Bench) -> Run:
    run = bench.run("plain", **RANKS)
    run.finish()
    return run


@pytest.fixture(scope="module")
def sharded(bench: Bench) -> Run:
    """Two ranks that each hold half; layers are recomputed, as in the 70B recipes."""
    run = bench.run("sharded", **RANKS, **SHARDED, **BLOCK)
    run.finish()
    return run


def export(run: Run) -> Path:
    """The run's Hugging Face directory."""
    settings = run.bench.path / f"{run.directory.name}.export.json"
    settings_of("export", **run.changes).save(settings)
    output = run.directory / "hf/manifest.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "primus.export", "--settings", str(settings)),
            *("--train", str(run.directory / "train.json")),
            *("--tokenizer", str(run.bench.tokenizer), "--output", str(output)),
        ],
        check=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    return output.parent


def test_losses_are_those_of_data_parallelism(plain: Run, sharded: Run) -> None:
    ours, theirs = sharded.curve(), plain.curve()
    assert list(ours) == list(range(1, LAST + 1))
    for iteration, (loss, lr, norm) in ours.items():
        assert lr == theirs[iteration][1]
        assert loss == pytest.approx(theirs[iteration][0], rel=1e-5)
        assert norm == pytest.approx(theirs[iteration][2], rel=1e-4)
    assert sharded.manifest().parameters == plain.manifest().parameters
    assert sharded.manifest().validation_loss == pytest.approx(
        plain.manifest().validation_loss, rel=1e-5
    )


def test_a_resumed_run_is_the_same_bit_by_bit(sharded: Run) -> None:
    manifest = sharded.manifest()
    assert [c.iteration for c in manifest.checkpoints] == [6, 12]
    for checkpoint in sharded.checkpoints():
        verify(checkpoint, manifest.key)
    again = sharded.copy("again", until=6)
    assert "resuming from iter_0000006" in again.finish()
    assert again.curve() == sharded.curve()
    assert again.manifest().loss == manifest.loss


def test_the_exported_model_is_the_same(plain: Run, sharded: Run) -> None:
    ours, theirs = (load_file(export(run) / "model.safetensors") for run in (sharded, plain))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).abs().max() < 1e-4, name
