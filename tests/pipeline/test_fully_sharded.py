"""Training with torch's FSDP2: the numbers of data parallelism, from shares of everything."""

from __future__ import annotations

import json
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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[list[float]]]]:
    """Per case, loss and gradient norm of each iteration, sharded and plain."""
    path = tmp_path_factory.mktemp("ranks") / "found.json"
    program = Path(__file__).with_name("fully_sharded_ranks.py")
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", str(program), str(path)),
        ],
        check=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [
        ("mean of micro-batches", 1e-5),
        ("mean of tokens", 1e-5),
        ("start weights", 1e-5),
        # Data parallelism adds each weight gradient in float32; here it is rounded to bfloat16
        # once per micro-batch.
        ("bf16", 2e-3),
    ],
)
def test_unequal_ranks(
    ranks: dict[str, dict[str, list[list[float]]]], case: str, tolerance: float
) -> None:
    """Of the sequences other numbers of tokens count, so that the ranks weigh differently."""
    plain, sharded = ranks[case]["plain"], ranks[case]["sharded"]
    assert len(plain) == len(sharded) == 10
    for (loss, norm), (ours, own_norm) in zip(plain, sharded, strict=True):
        assert ours == pytest.approx(loss, rel=tolerance)
        assert own_norm == pytest.approx(norm, rel=10 * tolerance)


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
