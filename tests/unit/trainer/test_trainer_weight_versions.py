"""Why no kernel keeps a packed copy of a weight from one call to the next."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from trainer_tiny import tiny

from primus.trainer import dry_steps
from primus.trainer.optimizer import build_optimizer

pytestmark = pytest.mark.usefixtures("single_rank", "eager")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("distributed", [False, True])
def test_the_optimizer_changes_a_weight_behind_its_version(
    monkeypatch: pytest.MonkeyPatch, distributed: bool, bf16: bool
) -> None:
    """Should this fail, packed weights may be kept over the micro-batches of a step."""
    chunks: list[Any] = []

    def build(settings: Any, built: list[Any]) -> Any:
        chunks.extend(built)
        return build_optimizer(settings, built)

    monkeypatch.setattr(dry_steps, "build_optimizer", build)
    seen: list[tuple[int, int, torch.Tensor]] = []

    def around() -> Any:
        named = dict(chunks[0].named_parameters())
        weight = next(named[name] for name in named if name.endswith("linear_fc1.weight"))
        seen.append((weight.data_ptr(), weight._version, weight.detach().clone()))
        return nullcontext()

    settings = tiny(use_distributed_optimizer=distributed, bf16=bf16)
    dry_steps.train_steps(settings, torch.device("cpu"), 2, around)
    (place, version, before), (other_place, other_version, after) = seen
    assert not torch.equal(before, after)
    assert (place, version) == (other_place, other_version)
