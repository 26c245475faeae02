"""The most FLOP/s that `torch.mm` reaches on this device."""

from __future__ import annotations

import statistics
import time

import torch

_GROUPS = 3
_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
_GROUP_SECONDS = 0.15


def measure_peak(dtype: torch.dtype, device: str = "cpu") -> float:
    """Measured maximum of `torch.mm` in 10^12 FLOP/s, with the present number of threads.

    Square products of random data; per size the median over three groups of each group's best
    call, of which the fastest size counts. About two seconds on a CPU.

    Args:
        dtype: of the operands, a floating type of 16 bits or more.
        device: "cpu" or "cuda".
    """
    return max(_peak_of_size(size, dtype, device) for size in _SIZES[device])


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
    _wait(a)
    start = time.perf_counter()
    torch.mm(a, b)
    _wait(a)
    return time.perf_counter() - start


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
