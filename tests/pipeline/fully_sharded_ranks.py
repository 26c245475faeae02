"""Two ranks that train by FSDP2 and by data parallelism: what test_fully_sharded.py starts.

    torchrun --nproc-per-node=2 fully_sharded_ranks.py RESULTS.json

Rank 0 writes, per case, loss and gradient norm of each iteration under both.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import layout_ranks
import torch
from layout_ranks import Sentences, Training, settings_of
from torch import Tensor, distributed

from primus.trainer.platform import install

ITERATIONS = 10
PLAIN = {"nproc_per_node": 2, "use_distributed_optimizer": False}
CASES: dict[str, dict[str, Any]] = {
    "mean of micro-batches": {},
    "mean of tokens": {"eod_mask_loss": True},
    "bf16": {"bf16": True},
}


class Masked(Sentences):
    """Sequences of which other numbers of tokens count."""

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        row = super().__getitem__(number)
        row["loss_mask"][: number * 5 % 13] = 0
        return row


@dataclass(frozen=True)
class _Rule:
    megatron: str


def start(training: Training) -> None:
    """Give the model weights that depend on their name and place only, as a start model would."""
    from primus.trainer.fully_sharded import holder
    from primus.trainer.start_weights import _name, _shards, load_weights

    def fill(rule: _Rule, target: Tensor, offset: tuple[int, ...]) -> None:
        rows = torch.arange(target.shape[0]) + offset[0]
        values = 0.03 * torch.sin(rows * 1.7 + len(rule.megatron))
        with torch.no_grad():
            target.copy_(values.view(-1, *[1] * (target.ndim - 1)).expand_as(target))

    module = holder(training.state.chunks[0])
    rules: Iterator[Any] = (_Rule(name) for name in {_name(shard) for shard in _shards(module)})
    load_weights([module], rules, fill)  # type: ignore[arg-type]
    training.state.optimizer.reload_model_params()


def main() -> None:
    """Train every case twice."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    install("cpu")
    torch.compiler.set_stance("force_eager")
    layout_ranks.Sentences = Masked  # type: ignore[misc]
    distributed.init_process_group("gloo")
    found: dict[str, dict[str, Any]] = {}
    for case, changes in {**CASES, "start weights": {}}.items():
        found[case] = {}
        for sharded in (False, True):
            wanted = PLAIN | {"use_torch_fsdp2": sharded} | changes
            training = Training(settings_of("dense", **wanted))
            if case == "start weights":
                start(training)
            curve = training.train(ITERATIONS)
            assert all(math.isfinite(loss) for loss, _ in curve)
            found[case]["sharded" if sharded else "plain"] = curve
            training.close()
    if distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
