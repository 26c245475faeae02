"""The bandwidth of all-reduces: over the ranks of one node, and of each of several pairs of nodes.

Every group has a store of its own inside the job's, and a time limit: a link that is broken costs
the two nodes at its ends a measurement, and nobody else anything.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store

# Bytes of each all-reduce: enough for the bandwidth to count and not the latency.
_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
_BACKEND = {"cpu": "gloo", "cuda": "nccl"}
_SECONDS = 0.3
_MOST = 20


def rounds(nodes: int, most: int) -> list[list[tuple[int, ...]]]:
    """Pairs of nodes that are measured at the same time, round after round.

    Every node meets another one in each round (of an odd number one rests), and never the same
    one twice: the circle method of tournaments.

    Args:
        most: number of rounds at most; all pairs take `nodes` - 1 of them, or `nodes` if odd.
    """
    players: list[int | None] = [*range(nodes), *([None] if nodes % 2 else [])]
    found: list[list[tuple[int, ...]]] = []
    for _ in range(min(most, len(players) - 1)):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None])
        players = [players[0], players[-1], *players[1:-1]]
    return found


def bus_bandwidth(size: int, ranks: int, seconds: float) -> float:
    """What each rank's link carries in an all-reduce, in 10^9 bytes per second.

    size / seconds · 2 (ranks - 1) / ranks: "busbw" in the PERFORMANCE.md of nccl-tests. It does
    not depend on the number of ranks where links are what limits.
    """
    return size / seconds * 2 * (ranks - 1) / ranks / 1e9


def measure(
    store: Store, name: str, rank: int, ranks: Sequence[int], device: torch.device, limit: float
) -> float:
    """Bus bandwidth of all-reduces over `ranks`; collective for them alone.

    Args:
        store: the job's.
        name: of the group; used once.
        rank: this process's; one of `ranks`.
        limit: seconds after which a connection or an all-reduce has failed.

    Raises:
        RuntimeError: the ranks do not reach each other within `limit`, or add up wrongly.
    """
    seconds = timedelta(seconds=limit)
    distributed.init_process_group(
        _BACKEND[device.type],
        store=PrefixStore(name, store),
        rank=ranks.index(rank),
        world_size=len(ranks),
        timeout=seconds,
    )
    try:
        size = _BYTES[device.type]
        # The first one makes connections.
        _all_reduce(torch.zeros(1024, device=device), seconds)
        tensor = torch.ones(size // 4, device=device)
        once = torch.tensor([_all_reduce(tensor, seconds)], device=device)
        if not bool((tensor == len(ranks)).all()):
            raise RuntimeError("the sum of an all-reduce is wrong")
        # All of them must agree on how often.
        distributed.all_reduce(once, op=distributed.ReduceOp.MAX, async_op=True).wait(seconds)
        repeats = max(1, min(_MOST, int(_SECONDS / once.item())))
        tensor.zero_()
        taken = [once.item(), *(_all_reduce(tensor, seconds) for _ in range(repeats))]
        return bus_bandwidth(size, len(ranks), statistics.median(taken))
    finally:
        _leave(device)


def _all_reduce(tensor: torch.Tensor, limit: timedelta) -> float:
    start = time.perf_counter()
    distributed.all_reduce(tensor, async_op=True).wait(limit)
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter() - start


def _leave(device: torch.device) -> None:
    if device.type == "cuda" and distributed.group.WORLD is not None:
        # One that hangs would otherwise be waited for.
        distributed.group.WORLD.abort()
    distributed.destroy_process_group()
