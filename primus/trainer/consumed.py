"""The samples that this rank's micro-batches really held, noted as they are read."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from megatron.core import parallel_state
from torch import Tensor

from primus.consumed import checksum
from primus.trainer.batches import SAMPLE_IDS


class Consumed:
    """This rank's micro-batches, which note the ids of their samples on the way.

    Attributes:
        ids: of the micro-batches of this iteration, in their order.
        seconds: for which all of them were waited for so far.
    """

    def __init__(self, batches: Iterator[dict[str, Tensor]]) -> None:
        self._batches = batches
        self.ids: list[list[int]] = []
        self.seconds = 0.0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        asked = time.monotonic()
        batch = next(self._batches)
        self.seconds += time.monotonic() - asked
        self.ids.append(batch[SAMPLE_IDS].tolist())
        return batch

    def forget(self) -> None:
        """A new iteration begins."""
        self.ids = []

    def checksum(self, consumed_samples: int) -> int:
        """What this rank adds to the number of the run for this iteration.

        Ranks that share a model read the same samples; one of them adds them.

        Args:
            consumed_samples: before this iteration.
        """
        if not _counts():
            return 0
        rank = parallel_state.get_data_parallel_rank()
        ranks = parallel_state.get_data_parallel_world_size()
        ids = np.array(self.ids, np.int64)
        batches, size = ids.shape
        first = (np.arange(batches) * ranks + rank) * size
        return checksum(consumed_samples + first[:, None] + np.arange(size), ids)


def _counts() -> bool:
    return bool(
        parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_context_parallel_rank() == 0
        and parallel_state.is_pipeline_last_stage()
    )
