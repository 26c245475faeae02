"""Which rank is slower than the others, though all of them wait for it and so take the same time.

A rank's own time is that from the start of an iteration to the end of its last backward pass,
before the gradients are summed. Ranks that exchange activations wait for each other within it;
only such groups as a whole can be told apart: a data-parallel replica, or the replicas whose
experts lie on ranks of each other. With FSDP2 all ranks wait for each other at every layer.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, median_low
from typing import Any

import torch
from megatron.core import parallel_state
from torch import distributed

from primus.trainer.not_finite import listed

# Slower than the median by a quarter: below it are differences between good devices and
# placements, which nobody can mend.
SLOW_RATIO = 1.25
# And by so much time per iteration: below it is what the operating system takes now and then,
# which is a large ratio of a small iteration.
SLOW_SECONDS = 0.05
# In so many log windows in a row: one of them may hold a compilation, or another's burst of I/O.
SLOW_WINDOWS = 3

_NAMED = 8


class OwnTime:
    """This rank's own time in each iteration; asks nothing of the device in an iteration."""

    def __init__(self, device: torch.device) -> None:
        self._now: Callable[[], Any] = _event if device.type == "cuda" else time.monotonic
        self._begun: Any = None
        self._spans: list[tuple[Any, Any]] = []

    def begin(self) -> None:
        """An iteration begins."""
        self._begun = self._now()

    def ends_before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that first notes that the own part of the iteration is over."""

        def note_and_call(*args: Any, **kwargs: Any) -> Any:
            if self._begun is not None:
                self._spans.append((self._begun, self._now()))
                self._begun = None
            return function(*args, **kwargs)

        return note_and_call

    def take(self) -> float:
        """Median seconds since the last call; the device must have finished those iterations."""
        spans, self._spans = self._spans, []
        return median(_seconds(begin, end) for begin, end in spans) if spans else math.nan


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds(begin: Any, end: Any) -> float:
    return float(end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1e3)


@dataclass(frozen=True, kw_only=True)
class Change:
    """A group that is slow now, or no longer: `ranks` of it, and what to say."""

    ranks: list[int]
    message: str


@dataclass
class Laggards:
    """Judges the own times of all ranks, one log window after the other.

    Args:
        groups: by rank the number of its group.
        nodes: by rank where it runs.
    """

    groups: Sequence[int]
    nodes: Sequence[str]
    _in_a_row: dict[int, int] = field(default_factory=dict)
    _slow: set[int] = field(default_factory=set)

    def judge(self, seconds: Sequence[float]) -> list[Change]:
        """What has changed with a window whose own times per iteration these are, by rank."""
        own: dict[int, float] = {}
        for group, value in zip(self.groups, seconds, strict=True):
            # Within a group the one that is waited for takes no longer than those that wait.
            own[group] = max(own.get(group, -math.inf), value)
        if len(own) < 2 or not all(map(math.isfinite, own.values())):
            return []
        # Of two the faster one: there is no middle.
        usual, changes = median_low(own.values()), []
        for group, value in sorted(own.items()):
            lags = value > SLOW_RATIO * usual and value - usual > SLOW_SECONDS
            self._in_a_row[group] = self._in_a_row.get(group, 0) + 1 if lags else 0
            if self._in_a_row[group] >= SLOW_WINDOWS and group not in self._slow:
                self._slow.add(group)
                changes.append(self._slow_now(group, value, usual))
            elif not lags and group in self._slow:
                self._slow.discard(group)
                changes.append(self._even_again(group))
        return changes

    def _members(self, group: int) -> tuple[list[int], str]:
        ranks = [rank for rank, own in enumerate(self.groups) if own == group]
        nodes = list(dict.fromkeys(self.nodes[rank] for rank in ranks))
        named = f"{listed(ranks, _NAMED)} on {listed(nodes, _NAMED)}"
        if len(ranks) == 1:
            return ranks, f"rank {named}"
        return ranks, f"one of ranks {named}, which wait for each other,"

    def _slow_now(self, group: int, value: float, usual: float) -> Change:
        ranks, who = self._members(group)
        return Change(
            ranks=ranks,
            message=f"{who} is slow: {value:.3f} s of its own per iteration, where {usual:.3f} s "
            f"are usual, in {SLOW_WINDOWS} log windows in a row; all others wait for it",
        )

    def _even_again(self, group: int) -> Change:
        ranks, who = self._members(group)
        return Change(ranks=ranks, message=f"{who} is no longer slow")


def group_of_rank(*, fully_sharded: bool) -> int:
    """Number of the group of ranks that wait for each other within an iteration; of this rank."""
    if fully_sharded:
        return 0
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    context = parallel_state.get_context_parallel_world_size()
    experts = (
        parallel_state.get_expert_model_parallel_world_size()
        * parallel_state.get_expert_tensor_parallel_world_size()
    )
    # Ranks of a pipeline stage are numbered by tensor, context, then data rank; those that share
    # experts are neighbours.
    place = (
        parallel_state.get_data_parallel_rank() * context
        + parallel_state.get_context_parallel_rank()
    ) * tensor + parallel_state.get_tensor_model_parallel_rank()
    return int(place // math.lcm(tensor * context, experts))


class SlowRanks:
    """Measures on every rank, gathers once per log window, judges on the first rank.

    Costs two clock readings (on a GPU two events) per iteration, and per window one sum over all
    ranks of as many numbers as there are.
    """

    def __init__(self, config: Any, device: torch.device, *, fully_sharded: bool) -> None:
        self.own = OwnTime(device)
        config.finalize_model_grads_func = self.own.ends_before(config.finalize_model_grads_func)
        self._device = device
        mine = (group_of_rank(fully_sharded=fully_sharded), os.uname().nodename)
        told: list[Any] = [mine] * distributed.get_world_size()
        distributed.all_gather_object(told, mine)
        self._laggards = Laggards([group for group, _ in told], [node for _, node in told])
        self._apart = len({group for group, _ in told}) > 1

    def end_window(self) -> list[Change]:
        """What has changed, the same on all ranks; collective."""
        own = self.own.take()
        if not self._apart:
            return []
        seconds = torch.zeros(distributed.get_world_size(), dtype=torch.float64)
        seconds[distributed.get_rank()] = own
        seconds = seconds.to(self._device)
        distributed.all_reduce(seconds)
        return self._laggards.judge(seconds.tolist())
