"""What is told of memory and of experts, against what was really held and routed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from trainer_tiny import tiny, tiny_deepseek

from primus.artifacts.run import ExpertRow, MemoryRow
from primus.trainer import parallel
from primus.trainer.model import model_config
from primus.trainer.resources import Resources, busiest, peak_bytes
from primus.trainer.routing import Router

pytestmark = [pytest.mark.usefixtures("single_rank", "eager")]
CPU = torch.device("cpu")


def chunks_of(settings: Any) -> list[Any]:
    parallel.seed(settings)
    return list(parallel.build_chunks(settings, model_config(settings), float16_module=False))


def resources(chunks: list[Any], every: int = 10) -> Resources:
    return Resources(chunks, CPU, attempt=3, iteration=0, every=every)


def step(chunk: Any, settings: Any, seed: int = 0) -> None:
    shape = (settings.micro_batch_size, settings.seq_length)
    ids = torch.randint(0, settings.vocab_size, shape, generator=torch.manual_seed(seed))
    places = torch.arange(settings.seq_length).expand(shape)
    chunk(ids, places, None, labels=ids).sum().backward()


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the router of the last layer chose in training, as it says it to the dispatcher."""
    seen: list[Tensor] = []
    forward = Router.forward

    def noting(self: Router, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        weights, choice = forward(self, *args, **kwargs)
        if torch.is_grad_enabled() and not self.of_prediction:
            seen.append(choice.sum(0))
        return weights, choice

    monkeypatch.setattr(Router, "forward", noting)
    monkeypatch.setattr(Router, "of_prediction", False, raising=False)
    return seen


def test_tokens_of_experts_are_those_that_were_routed(chosen: list[Tensor]) -> None:
    settings = tiny_deepseek("deepseek_v3")
    (chunk,) = chunks = chunks_of(settings)
    # The layer that predicts a further token has experts too, and a number of its own.
    (further,) = (
        one for name, one in chunk.named_modules() if name.endswith("router") and "mtp" in name
    )
    further.of_prediction = True
    found = resources(chunks)
    step(chunk, settings, seed=1)
    load, rows = found.end_window(5, last=False)
    assert load == pytest.approx([float(chosen[0].max() / chosen[0].float().mean())])
    assert [type(row) for row in rows] == [MemoryRow]
    with torch.no_grad():
        # What validation routes is nobody's training.
        chunk(torch.zeros(2, 32, dtype=torch.int64), torch.arange(32).expand(2, 32), None)
    step(chunk, settings, seed=2)
    load, rows = found.end_window(10, last=False)
    assert load == pytest.approx([float(chosen[1].max() / chosen[1].float().mean())])
    memory, experts = rows
    assert isinstance(memory, MemoryRow)
    assert isinstance(experts, ExpertRow)
    assert (experts.attempt, experts.iteration, experts.layers) == (3, 10, [2])
    assert experts.tokens == [(chosen[0] + chosen[1]).tolist()]
    step(chunk, settings, seed=3)
    _, (_, experts) = found.end_window(12, last=True)
    assert experts.tokens == [chosen[2].tolist()]


def test_without_experts_there_is_nothing_to_tell() -> None:
    settings = tiny()
    (chunk,) = chunks = chunks_of(settings)
    found = resources(chunks)
    step(chunk, settings)
    load, rows = found.end_window(1, last=True)
    assert load == []
    assert [type(row) for row in rows] == [MemoryRow]


def test_memory_is_the_most_that_the_process_has_held() -> None:
    before = peak_bytes(CPU)
    size = max(before - psutil.Process().memory_info().rss, 0) + (64 << 20)
    held = np.ones(size, np.uint8)
    found = resources(chunks_of(tiny()))
    _, (row,) = found.end_window(1, last=False)
    (peak,) = row.peak_bytes
    assert peak >= before + (32 << 20)
    assert peak >= psutil.Process().memory_info().rss - (1 << 20)
    assert row.device_bytes == [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    del held
    _, rows = found.end_window(2, last=False)
    assert rows == []
    _, (row,) = found.end_window(10, last=False)
    assert row.peak_bytes[0] >= peak


def test_even_and_uneven_experts() -> None:
    counts = torch.tensor([[0, 0, 0, 0], [5, 5, 5, 5], [20, 0, 0, 0], [1, 2, 3, 2]])
    assert busiest(counts.double()) == [1.0, 4.0, 1.5]
