"""In which order training walks over the samples: any number of passes, each one shuffled anew.

The order depends on the seed, the number of samples and the position alone, so a run may be
extended, or resumed with another number of ranks, and sees the same samples.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=2)
def sample_order(seed: int, pass_number: int, size: int) -> NDArray[np.int64]:
    """The permutation of `range(size)` that pass `pass_number` (from 0) follows; read-only.

    numpy promises the same stream within a version only: a test holds some of its values.

    Returns:
        int64 array of shape (size,).
    """
    if size < 1:
        raise ValueError(f"no samples to order: size = {size}")
    stream = np.random.PCG64(np.random.SeedSequence([seed, pass_number]))
    order: NDArray[Any] = np.random.Generator(stream).permutation(size).astype(np.int64)
    order.setflags(write=False)
    return order


def batch_indices(
    consumed_samples: int, global_batch_size: int, size: int, seed: int
) -> NDArray[np.int64]:
    """The samples of the global batch that follows `consumed_samples`.

    A batch may straddle passes: the rest of one is used before the next begins.

    Returns:
        int64 array of shape (global_batch_size,), values in [0, size).
    """
    pieces, needed = [], global_batch_size
    position = consumed_samples
    while needed > 0:
        pass_number, start = divmod(position, size)
        piece = sample_order(seed, pass_number, size)[start : start + needed]
        pieces.append(piece)
        needed -= len(piece)
        position += len(piece)
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)
