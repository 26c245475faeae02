"""A step on a GPU as far as a machine without one shows it: see fake_cuda.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import compile_library
from trainer_tiny import REPOSITORY

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a CUDA of its own"),
]

# The loss, which is logged, and the norm by which gradients are clipped.
LOSS, NORM = "copy from cuda to cpu in micro_batch_losses", "item of cuda in get_grad_norm_fp32"
UNSHARDED = {
    "use_distributed_optimizer": False,
    "overlap_grad_reduce": False,
    "overlap_param_gather": False,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fake_cuda")
    compile_library(directory)
    return directory


def step(library: Path, family: str, **changes: Any) -> dict[str, list[str]]:
    program = Path(__file__).with_name("fake_cuda.py")
    done = subprocess.run(
        [sys.executable, str(program), str(library), family, json.dumps(changes)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="sharded optimizer"),
        pytest.param(UNSHARDED, id="plain optimizer"),
        pytest.param({"recompute_granularity": "full"}, id="recomputed"),
        pytest.param({"untie_embeddings_and_output_weights": False}, id="tied"),
    ],
)
def test_a_step_waits_for_the_loss_and_the_norm_alone(
    library: Path, changes: dict[str, Any]
) -> None:
    if "recompute_granularity" in changes:
        changes |= {"recompute_method": "uniform", "recompute_num_layers": 1}
    found = step(library, "llama", **changes)
    assert found == {"waits": [LOSS, NORM], "mixed": [], "elsewhere": []}


def test_experts_and_latent_attention_lie_on_the_device(library: Path) -> None:
    found = step(library, "deepseek_v3")
    # Of balanced routing, which nobody trains with: every index comes from the host.
    waits = [wait for wait in found["waits"] if not wait.endswith(" in _index")]
    # Losses are divided by the tokens of all ranks.
    assert waits == ["item of cuda in finalize_model_grads", LOSS, NORM]
    assert (found["mixed"], found["elsewhere"]) == ([], [])


def test_with_a_loss_scale_an_overflow_is_asked_for(library: Path) -> None:
    found = step(library, "llama", bf16=False, fp16=True)
    overflow = "item of cuda in _unscale_main_grads_and_check_for_nan"
    assert found == {"waits": [LOSS, overflow], "mixed": [], "elsewhere": []}
