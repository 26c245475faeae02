"""What ranks hold in memory and how much experts get to do, gathered at log lines."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from megatron.core.utils import get_model_config
from torch import Tensor, distributed

from primus.artifacts.run import ExpertRow, MemoryRow
from primus.trainer.routing import Router


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held so far: of the GPU's memory, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_bytes(device: torch.device) -> int:
    """What there is of it in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _gathered(value: int, device: torch.device) -> list[int]:
    # A sum of numbers of which all but one are 0; exact, because bytes are below 2**53.
    values = torch.zeros(distributed.get_world_size(), dtype=torch.float64)
    values[distributed.get_rank()] = value
    values = values.to(device)
    distributed.all_reduce(values)
    return [int(one) for one in values.tolist()]


class ExpertLoad:
    """Tokens per expert of all layers, from the counts that the routers keep.

    Args:
        chunks: of this rank; layers of other pipeline stages come with the sum.
    """

    def __init__(self, chunks: Sequence[torch.nn.Module], device: torch.device) -> None:
        config = get_model_config(chunks[0])
        self._shape = (config.num_layers, config.num_moe_experts or 0)
        self._device = device
        # Layers that predict further tokens are numbered anew, and are no part of the model's.
        self._routers = [
            module
            for chunk in chunks
            for name, module in chunk.named_modules()
            if isinstance(module, Router) and "mtp" not in name.split(".")
        ]

    def take(self) -> Tensor:
        """(layers, experts) float64 since the last call, of dense layers 0; collective."""
        counts = torch.zeros(self._shape, dtype=torch.float64)
        if self._shape[1] == 0:
            return counts
        for router in self._routers:
            assert router.layer_number is not None
            counts[router.layer_number - 1] += router.load.cpu()
            router.load.zero_()
        counts = counts.to(self._device)
        distributed.all_reduce(counts)
        return counts.cpu()


def busiest(counts: Tensor) -> list[float]:
    """By layer with experts, the tokens of its busiest one over their mean; 1: perfectly even.

    Args:
        counts: (layers, experts).
    """
    rows = [row for row in counts if row.sum() > 0]
    return [float(row.max() / row.mean()) for row in rows]


@dataclass
class Resources:
    """Made and called on all ranks together; the rows are for the first one.

    Attributes:
        every: iterations between two rows of memory and experts, which are long.
    """

    chunks: Sequence[Any]
    device: torch.device
    attempt: int
    iteration: int
    every: int
    _sum: Tensor | None = None
    _first: bool = True
    _load: ExpertLoad = field(init=False)

    def __post_init__(self) -> None:
        self._load = ExpertLoad(self.chunks, self.device)

    def end_window(self, iteration: int, *, last: bool) -> tuple[list[float], list[Any]]:
        """By layer how uneven its experts are since the last call, and rows to write."""
        counts = self._load.take()
        self._sum = counts if self._sum is None else self._sum + counts
        due = last or iteration // self.every > self.iteration // self.every
        rows: list[Any] = []
        if due or self._first:
            rows.append(self._memory(iteration))
        if due:
            rows += self._experts(iteration, self._sum)
            self.iteration, self._sum = iteration, None
        self._first = False
        return busiest(counts), rows

    def _memory(self, iteration: int) -> MemoryRow:
        return MemoryRow(
            attempt=self.attempt,
            iteration=iteration,
            time=time.time(),
            peak_bytes=_gathered(peak_bytes(self.device), self.device),
            device_bytes=_gathered(device_bytes(self.device), self.device),
        )

    def _experts(self, iteration: int, counts: Tensor) -> list[ExpertRow]:
        layers = torch.nonzero(counts.sum(-1)).flatten().tolist()
        if not layers:
            return []
        return [
            ExpertRow(
                attempt=self.attempt,
                iteration=iteration,
                time=time.time(),
                layers=[layer + 1 for layer in layers],
                tokens=[[int(count) for count in counts[layer].tolist()] for layer in layers],
            )
        ]
