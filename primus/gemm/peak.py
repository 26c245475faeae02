"""The most FLOP/s that `torch.mm` reaches on this device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

_GROUPS = 3
_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
_GROUP_SECONDS = 0.15


def cpu_clock(threads: int) -> Callable[[], float]:
    """The clock for work on CPU threads, in seconds.

    Of one thread its processor time, which other processes on the machine do not lengthen; of
    several the wall time, because threads that wait for each other burn processor time.
    """
    return time.thread_time if threads == 1 else time.perf_counter


def measure_peak(
    dtype: torch.dtype, device: str = "cpu", sizes: Sequence[int] | None = None
) -> float:
    """Measured maximum of `torch.mm` in 10^12 FLOP/s, with the present number of threads.

    Square products of random data; per size the median over three groups of each group's best
    call, of which the fastest size counts. About two seconds on a CPU.

    Args:
        dtype: of the operands, a floating type of 16 bits or more.
        device: "cpu" or "cuda".
        sizes: rows of the products; None: those of which one has reached the peak on every
            machine so far.
    """
    return max(_peak_of_size(size, dtype, device) for size in sizes or _SIZES[device])


def _peak_of_size(size: int, dtype: torch.dtype, device: str) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    with torch.no_grad():
        _seconds(a, b)
        bests = [_best(a, b) for _ in range(_GROUPS)]
    return 2 * size**3 / statistics.median(bests) / 1e12


def _best(a: torch.Tensor, b: torch.Tensor) -> float:
    end = time.perf_counter() + _GROUP_SECONDS
    best = _seconds(a, b)
    while time.perf_counter() < end:
        best = min(best, _seconds(a, b))
    return best


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    clock = time.perf_counter if a.is_cuda else cpu_clock(torch.get_num_threads())
    _wait(a)
    start = clock()
    torch.mm(a, b)
    _wait(a)
    return clock() - start


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
