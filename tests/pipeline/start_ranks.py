"""One rank that starts models from Hugging Face directories and saves them as they are.

    python start_ranks.py CASES.json

The file lists cases: `experiment`, `changes`, the weights manifest `weights` and where the
checkpoint goes, `checkpoints`. RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from start_cases import ABOUT, settings_of
from torch import distributed

from primus.trainer.platform import install


def start(case: dict[str, Any]) -> None:
    """Import, take a step, save."""
    from megatron.core import parallel_state

    from primus import train_setup
    from primus.trainer import parallel
    from primus.trainer.checkpoint import TrainingState, save
    from primus.trainer.model import model_config
    from primus.trainer.optimizer import build_optimizer, build_scheduler

    settings = settings_of(case["experiment"], **case["changes"])
    parallel.initialize_groups(settings)
    config = model_config(settings)
    chunks = parallel.wrap(settings, config, parallel.build_chunks(settings, config))
    optimizer = build_optimizer(settings, chunks)
    scheduler = build_scheduler(settings, optimizer)
    state = TrainingState(chunks=chunks, optimizer=optimizer, scheduler=scheduler)
    train_setup.load_start_weights(settings, state, Path(case["weights"]))
    # A step of length 0: it copies the master weights, which then hold the start weights, too.
    for chunk in chunks:
        chunk.zero_grad_buffer()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert optimizer.step()[0]
    save(state, Path(case["checkpoints"]), ABOUT)
    parallel_state.destroy_model_parallel()


def main() -> None:
    """Every case, one after the other."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    install("cpu")
    torch.compiler.set_stance("force_eager")
    distributed.init_process_group("gloo")
    for case in json.loads(Path(sys.argv[1]).read_text()):
        start(case)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
