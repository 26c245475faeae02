"""Ranks that train tiny models in one layout after the other: what test_layouts.py starts.

    python layout_ranks.py RANKS ITERATIONS RESULTS.json [FAMILY ...]

Rank 0 writes, per case, the loss and the gradient norm of each iteration, the number of
parameters, and the tokens of each expert in the first iteration.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from layout_cases import CASES, FAMILIES, name_of
from layout_run import fork_ranks
from torch import Tensor, distributed
from torch.utils.data import Dataset

from primus.config.frozen import StageSettings
from primus.config.identity import identities
from primus.config.load import load


def settings_of(family: str, **changes: Any) -> StageSettings:
    """The train settings of a family's tiny experiment, shrunken and changed."""
    experiment, smaller = FAMILIES[family]
    root = Path(__file__).parents[2]
    resolved = load(experiment, smaller | changes, root=root, stages=())
    made = identities(resolved.settings)["train"]
    return StageSettings.of_key(made, family)


class Sentences(Dataset[dict[str, Tensor]]):
    """A dozen sequences of random tokens: few enough to be learned by heart."""

    def __init__(self, settings: StageSettings) -> None:
        generator = torch.Generator().manual_seed(9)
        self.rows = torch.randint(
            0, settings.vocab_size, (12, settings.seq_length + 1), generator=generator
        )

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        row = self.rows[number]
        return {
            "tokens": row[:-1],
            "labels": row[1:],
            "position_ids": torch.arange(len(row) - 1),
            "loss_mask": torch.ones(len(row) - 1),
        }

    def __len__(self) -> int:
        return len(self.rows)


class Training:
    """A model in one layout that trains on `Sentences`, through the trainer's own functions."""

    def __init__(self, settings: StageSettings) -> None:
        from megatron.core import parallel_state

        from primus.trainer import parallel
        from primus.trainer.checkpoint import TrainingState
        from primus.trainer.model import model_config
        from primus.trainer.optimizer import build_optimizer, build_scheduler
        from primus.trainer.resources import ExpertLoad

        self.settings = settings
        self._groups = parallel_state
        parallel.initialize_groups(settings)
        config = model_config(settings)
        chunks = parallel.wrap(settings, config, parallel.build_chunks(settings, config))
        optimizer = build_optimizer(settings, chunks)
        config.grad_scale_func = optimizer.scale_loss
        self.state = TrainingState(
            chunks=chunks, optimizer=optimizer, scheduler=build_scheduler(settings, optimizer)
        )
        self.parameters = parallel.count_parameters(chunks)
        self._load = ExpertLoad(chunks, torch.device("cpu"))
        self.experts: list[list[float]] = []

    def train(self, iterations: int) -> list[tuple[float, float | None]]:
        """Loss and gradient norm of further iterations; the same on every rank."""
        from primus.trainer import parallel
        from primus.trainer.batches import micro_batches
        from primus.trainer.forward_backward import forward_backward
        from primus.trainer.optimizer import take_step

        settings, state = self.settings, self.state
        rank, ranks = parallel.data_parallel()
        dataset = Sentences(settings)

        def order(consumed: int) -> Sequence[int]:
            return [(consumed + n) % len(dataset) for n in range(settings.global_batch_size)]

        batches = micro_batches(
            dataset,
            order,
            consumed_samples=state.consumed_samples,
            global_batch_size=settings.global_batch_size,
            micro_batch_size=settings.micro_batch_size,
            rank=rank,
            ranks=ranks,
            device=torch.device("cpu"),
        )
        found = []
        for _ in range(iterations):
            for chunk in state.chunks:
                chunk.zero_grad_buffer()
            state.optimizer.zero_grad()
            total = forward_backward(
                settings,
                state.chunks,
                batches,
                num_microbatches=settings.global_batch_size // (settings.micro_batch_size * ranks),
            )
            distributed.all_reduce(total)
            if state.iteration == 0:
                self.experts = self._load.take().tolist()
            _, norm = take_step(state.optimizer, settings.clip_grad)
            state.scheduler.step(increment=settings.global_batch_size)
            state.iteration += 1
            state.consumed_samples += settings.global_batch_size
            found.append((float(total[0] / total[1]), norm))
        return found

    def close(self) -> None:
        """Give the process groups back."""
        self._groups.destroy_model_parallel()


def main(iterations: int, output: Path, families: list[str]) -> None:
    """Train every case of this number of processes, on one rank."""
    world = distributed.get_world_size()
    results: dict[str, Any] = {}
    for family, cases in CASES[world].items():
        for changes in cases if world > 1 else [{}, *cases]:
            if family not in (families or CASES[world]):
                continue
            started = time.monotonic()
            training = Training(settings_of(family, nproc_per_node=world, **changes))
            name = name_of(changes) if changes or world > 1 else "alone"
            results[f"{family}: {name}"] = {
                "curve": training.train(iterations),
                "parameters": training.parameters,
                "experts": training.experts,
                "seconds": time.monotonic() - started,
            }
            training.close()
    if distributed.get_rank() == 0:
        output.write_text(json.dumps(results))


if __name__ == "__main__":
    ranks, count, path, *only = sys.argv[1:]
    fork_ranks(int(ranks), partial(main, int(count), Path(path), only))
