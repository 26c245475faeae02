"""Global batches dealt to data-parallel ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from primus.trainer.batches import micro_batches


class Numbers(Dataset[dict[str, Tensor]]):
    """Sample i holds i."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"tokens": torch.tensor([index, index])}


def order(consumed: int) -> Sequence[int]:
    """Twelve samples of each global batch, shuffled the same on every rank."""
    generator = torch.Generator().manual_seed(consumed)
    return [consumed + int(i) for i in torch.randperm(12, generator=generator)]


def dealt(
    rank: int, ranks: int, micro: int, *, start: int = 0, workers: int = 0
) -> list[list[int]]:
    """The micro-batches of two global batches."""
    batches = micro_batches(
        Numbers(),
        order,
        consumed_samples=start,
        global_batch_size=12,
        micro_batch_size=micro,
        rank=rank,
        ranks=ranks,
        device=torch.device("cpu"),
        num_workers=workers,
    )
    found = [batch["tokens"] for batch in islice(batches, 2 * 12 // (micro * ranks))]
    assert all(tokens.shape == (micro, 2) for tokens in found)
    return [tokens[:, 0].tolist() for tokens in found]


@pytest.mark.parametrize(("ranks", "micro"), [(1, 1), (1, 4), (2, 2), (2, 3), (3, 4), (6, 1)])
def test_each_sample_of_a_global_batch_goes_to_one_rank(ranks: int, micro: int) -> None:
    parts = [dealt(rank, ranks, micro) for rank in range(ranks)]
    rounds = 12 // (micro * ranks)
    for number in range(2):
        wanted = list(order(12 * number))
        mine = slice(number * rounds, (number + 1) * rounds)
        rows = zip(*(part[mine] for part in parts), strict=True)
        assert [sample for row in rows for batch in row for sample in batch] == wanted


def test_a_start_in_the_middle_gives_the_rest() -> None:
    assert dealt(1, 2, 3, start=12)[:2] == dealt(1, 2, 3)[2:]


def test_worker_processes_keep_the_order() -> None:
    assert dealt(0, 2, 3, workers=1) == dealt(0, 2, 3)
