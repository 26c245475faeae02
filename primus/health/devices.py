"""A rank's device: its memory, and whether it computes what the others do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_SIZE = {"cpu": 256, "cuda": 2048}
_REPEATS = 5


def memory_gib(device: torch.device) -> tuple[float, float]:
    """Free memory of a GPU and all of it; this process's own share counts as taken."""
    free, total = torch.cuda.mem_get_info(device)
    return free / 2**30, total / 2**30


def product(
    dtype: torch.dtype,
    device: torch.device,
    multiply: Callable[[Tensor, Tensor], Tensor] = torch.mm,
) -> tuple[str, bool]:
    """SHA-256 of a product of fixed random matrices, and whether it had the same bits each time.

    Devices of one kind with one build of torch take the same kernel, so that their bits must be
    equal; one that computes wrongly now and then differs from the others, or from itself.

    Args:
        multiply: what is checked.
    """
    generator = torch.Generator().manual_seed(1)
    size = _SIZE[device.type]
    a, b = (torch.randn(size, size, generator=generator).to(dtype).to(device) for _ in range(2))
    with torch.no_grad():
        digests = [_digest(multiply(a, b)) for _ in range(_REPEATS)]
    return digests[0], len(set(digests)) == 1


def _digest(tensor: Tensor) -> str:
    content: Sequence[int] = tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(bytes(content)).hexdigest()
