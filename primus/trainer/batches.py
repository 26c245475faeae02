"""This rank's share of each global batch, in an order that depends on nothing but its number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

# The id of each sample of a micro-batch: (b,) int64, on the host.
SAMPLE_IDS = "sample_ids"
# (consumed_samples) → indices of the next global batch, shape (global_batch_size,).
Order = Callable[[int], Sequence[int]]


class _Numbered(Dataset[dict[str, Tensor]]):
    """Samples that carry their number, from where they are read."""

    def __init__(self, dataset: Dataset[dict[str, Tensor]]) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {**self._dataset[index], SAMPLE_IDS: torch.tensor(index)}


class _MicroBatchSampler:
    """Indices of this rank's micro-batches from `consumed_samples` on, without end."""

    def __init__(
        self,
        order: Order,
        *,
        consumed_samples: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        ranks: int,
    ) -> None:
        self._order, self._consumed = order, consumed_samples
        self._global, self._micro = global_batch_size, micro_batch_size
        self._rank, self._ranks = rank, ranks

    def __iter__(self) -> Iterator[list[int]]:
        consumed = self._consumed
        while True:
            indices = self._order(consumed)
            for start in range(0, self._global, self._micro * self._ranks):
                first = start + self._rank * self._micro
                yield [int(index) for index in indices[first : first + self._micro]]
            consumed += self._global


def micro_batches(
    dataset: Dataset[dict[str, Tensor]],
    order: Order,
    *,
    consumed_samples: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int,
    ranks: int,
    device: torch.device,
    num_workers: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Micro-batches of one data-parallel rank, from the sample `consumed_samples` on.

    Micro-batch j of rank r holds the samples j·ranks + r of the global batch, in units of
    micro_batch_size, as Megatron-LM deals them.

    Yields:
        tokens, labels, position_ids (b, s) int64 and loss_mask (b, s) float32, on `device`, and
        the ids of the samples.
    """
    sampler = _MicroBatchSampler(
        order,
        consumed_samples=consumed_samples,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        rank=rank,
        ranks=ranks,
    )
    loader: DataLoader[Any] = DataLoader(
        _Numbered(dataset),
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
    )
    for batch in loader:
        ids = batch.pop(SAMPLE_IDS)
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        yield on_device | {SAMPLE_IDS: ids}
