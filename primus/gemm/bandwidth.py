"""The most bytes per second that a kernel may move on this device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from primus.gemm.peak import cpu_clock

_GROUPS = 3
_GROUP_SECONDS = 0.1
# What the operands of a measurement fill. On a CPU caches may hold those of a small problem: what
# they deliver is the bound then, and as bounds must hold for every problem, for all of them.
_MIB = {"cpu": (1, 32, 256), "cuda": (512, 2048)}


def measure_bandwidth(device: str = "cpu") -> float:
    """Measured maximum in 10^9 bytes per second, with the present number of threads.

    The best of reading (a sum) and copying (each byte counts twice), per size the median over
    three groups of each group's best call; of all sizes the fastest. Two seconds on a CPU.

    Args:
        device: "cpu" or "cuda".
    """
    return max(_of_size(mib << 20, device) for mib in _MIB[device])


def _of_size(size: int, device: str) -> float:
    source = torch.ones(size // 4, device=device)
    # Half of the size each, so that both uses touch equally many bytes.
    half, target = source.chunk(2)
    with torch.no_grad():
        return max(
            _rate(size, source, lambda: source.sum()),
            _rate(size, source, lambda: target.copy_(half)),
        )


def _rate(size: int, tensor: Tensor, work: Callable[[], object]) -> float:
    _seconds(tensor, work)
    return size / statistics.median(_best(tensor, work) for _ in range(_GROUPS)) / 1e9


def _best(tensor: Tensor, work: Callable[[], object]) -> float:
    end = time.perf_counter() + _GROUP_SECONDS
    best = _seconds(tensor, work)
    while time.perf_counter() < end:
        best = min(best, _seconds(tensor, work))
    return best


def _seconds(tensor: Tensor, work: Callable[[], object]) -> float:
    clock = time.perf_counter if tensor.is_cuda else cpu_clock(torch.get_num_threads())
    _wait(tensor)
    start = clock()
    work()
    _wait(tensor)
    return clock() - start


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
