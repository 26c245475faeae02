"""One process as the whole job."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from trainer_tiny import TEXT, tiny

from primus.dataset.make_tokenizer import TokenizerRequest, make_tokenizer

with warnings.catch_warnings():
    # Of torch's and Megatron-core's own modules while they are imported.
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_utils import (
        MoEAuxLossAutoScaler,
        get_moe_layer_wise_logging_tracker,
    )

    from primus.trainer import parallel


@pytest.fixture(scope="module")
def single_rank() -> Iterator[None]:
    """A process group of one rank and Megatron's groups in it."""
    parallel.initialize(tiny(), timeout_minutes=1)
    yield
    parallel_state.destroy_model_parallel()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def saved(single_rank: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of one run; tests work on copies."""
    from test_trainer_checkpoint import ABOUT, Training

    from primus.trainer.checkpoint import save

    root, training = tmp_path_factory.mktemp("saved"), Training()
    for _ in range(2):
        training.steps(1)
        save(training.state, root, ABOUT)
    return root


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of a tokenizer with 300 ids at most."""
    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "text.txt").write_text(TEXT * 20)
    path = directory / "made/manifest.json"
    request = TokenizerRequest(data_path=[str(directory / "text.txt")], vocab_size=300)
    make_tokenizer(request, path)
    return path


@pytest.fixture
def eager() -> Iterator[None]:
    """Kernels uncompiled, where a test does not look at them: compilers take seconds."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture(autouse=True)
def unit_scale_of_balancing_losses() -> None:
    """Megatron-core keeps this factor for the whole process; its schedule sets it in this shape.

    It also keeps what it logged of them, by layer: a model with more layers has no place there.
    """
    MoEAuxLossAutoScaler.main_loss_backward_scale = torch.ones(1)
    get_moe_layer_wise_logging_tracker().clear()
