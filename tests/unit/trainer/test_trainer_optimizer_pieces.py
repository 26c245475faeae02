"""Each rank's pieces of the optimizer's state: boxes that cover exactly its flat range."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_trainer_checkpoint import ABOUT, KINDS, Training

# All of it: each test is quick.
pytestmark = pytest.mark.slow


@given(st.data(), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_boxes_are_the_flat_range_in_order(data: st.DataObject, shape: list[int]) -> None:
    from primus.trainer.optimizer_pieces import boxes

    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    whole = torch.arange(size).view(shape)
    found, at_most = [], 2 * len(shape) - 1
    for offset, sizes, at in boxes(shape, start, stop):
        window = tuple(slice(o, o + n) for o, n in zip(offset, sizes, strict=True))
        values = whole[window].flatten().tolist()
        assert values[0] == at
        assert len(values) == math.prod(sizes)
        found += values
        at_most -= 1
    assert found == list(range(start, stop))
    assert at_most >= 0


@pytest.mark.usefixtures("single_rank", "eager")
@pytest.mark.parametrize("changes", KINDS)
def test_the_same_tensors_as_megatron_gathers(
    tmp_path: Path, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core.dist_checkpointing.serialization import load_plain_tensors

    from primus.trainer import optimizer_pieces
    from primus.trainer.checkpoint import snapshot
    from primus.trainer.checkpoint_write import write_files

    training = Training(**changes)  # type: ignore[arg-type]
    training.steps(2)
    loaded = {}
    for name in ("pieces", "gathered"):
        (tmp_path / name).mkdir()
        if name == "gathered":

            def gather(optimizer: Any, models: Any, metadata: Any, **_: object) -> Any:
                return optimizer.sharded_state_dict(models, metadata=metadata)

            monkeypatch.setattr(optimizer_pieces, "sharded_state", gather)
        write_files(snapshot(training.state), tmp_path / name)
        loaded[name] = load_plain_tensors(str(tmp_path / name))
    assert loaded["pieces"].keys() == loaded["gathered"].keys()
    for key, tensor in loaded["gathered"].items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(loaded["pieces"][key], tensor), key
    common = [torch.load(tmp_path / name / "common.pt", weights_only=True) for name in loaded]
    assert str(common[0]) == str(common[1])


OTHERS = [
    *((changes.values[0], changes.values[0], changes.id) for changes in KINDS),
    ({"use_distributed_optimizer": False}, {}, "plain float32 into sharded float32"),
    ({"use_distributed_optimizer": False}, {"bf16": True}, "plain float32 into sharded bf16"),
    ({"use_distributed_optimizer": False, "bf16": True}, {"bf16": True}, "plain bf16 into sharded"),
    ({"bf16": True}, {}, "sharded bf16 into sharded float32"),
    ({}, {"bf16": True}, "sharded float32 into sharded bf16"),
    ({"bf16": True}, {"use_distributed_optimizer": False, "bf16": True}, "sharded bf16 into plain"),
]


def held_by(training: Training) -> list[torch.Tensor]:
    """Weights, master weights and moments."""
    found = [weight for chunk in training.state.chunks for weight in chunk.parameters()]
    optimizer = training.state.optimizer
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in part.optimizer.param_groups:
            for weight in group["params"]:
                state = part.optimizer.state[weight]
                found += [weight, state["exp_avg"], state["exp_avg_sq"]]
    return [tensor.detach().clone() for tensor in found]


@pytest.mark.usefixtures("single_rank", "eager")
@pytest.mark.parametrize(
    ("saver", "loader"), [pytest.param(*two, id=name) for *two, name in OTHERS]
)
def test_a_load_into_pieces_is_megatrons(
    tmp_path: Path,
    saver: dict[str, Any],
    loader: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every tensor, and the losses that follow."""
    from primus.trainer import optimizer_pieces
    from primus.trainer.checkpoint import load_other, save

    first = Training(**saver)
    first.steps(2)
    path = save(first.state, tmp_path, ABOUT)
    whole, losses = [], []
    for in_pieces in (True, False):
        if not in_pieces:

            def refuse(*_: object) -> None:
                raise optimizer_pieces._NotInPieces

            monkeypatch.setattr(optimizer_pieces, "_param_state", refuse)
        training = Training(**loader)
        load_other(training.state, path, {"tensor_model_parallel_size": 1})
        whole.append(held_by(training))
        losses.append(training.steps(2))
    assert all(torch.equal(one, other) for one, other in zip(*whole, strict=True))
    assert losses[0] == losses[1]
