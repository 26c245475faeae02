"""Lower precision: float16 with a loss scale, bfloat16 with master weights, no float8 here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer_checkpoint import ABOUT, Training
from trainer_tiny import tiny

from primus.errors import UnavailableError
from primus.trainer.optimizer import _share_loss_scale, take_step

pytestmark = pytest.mark.usefixtures("single_rank", "eager")

OPTIMIZERS = [
    pytest.param({"use_distributed_optimizer": True}, id="distributed"),
    pytest.param({"use_distributed_optimizer": False}, id="plain"),
]


class HalfTraining(Training):
    """Steps through `take_step`; keeps the gradient norms, None where the step was skipped."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        self.norms: list[float | None] = []

    def steps(self, count: int) -> list[float]:
        self.state.optimizer.step = lambda: self.norms.append(
            take_step(self.state.optimizer, self.settings.clip_grad)[1]
        )
        return super().steps(count)

    @property
    def scale(self) -> float:
        return float(self.state.optimizer.get_loss_scale())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loss_scale_changes_nothing_but_the_range(optimizer: dict[str, Any]) -> None:
    whole = HalfTraining(**optimizer)
    scaled = HalfTraining(fp16=True, initial_loss_scale=2.0**12, **optimizer)
    constant = HalfTraining(fp16=True, loss_scale=2.0**10, **optimizer)
    wanted = whole.steps(5)
    for half in (scaled, constant):
        assert half.steps(5) == pytest.approx(wanted, rel=2e-3)
        # The norm is the unscaled one: clipping would be wrong by the scale otherwise.
        assert half.norms == pytest.approx(whole.norms, rel=2e-2)
    assert (scaled.scale, constant.scale) == (2.0**12, 2.0**10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_overflow_skips_the_step_and_lowers_the_scale(optimizer: dict[str, Any]) -> None:
    half = HalfTraining(fp16=True, initial_loss_scale=2.0**40, hysteresis=2, **optimizer)
    before = [p.clone() for chunk in half.state.chunks for p in chunk.parameters()]
    half.steps(3)
    assert half.norms == [None] * 3
    assert half.scale == 2.0**38, "the first overflow of two is borne with"
    after = [p for chunk in half.state.chunks for p in chunk.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_scale_rises_after_a_window_without_overflow() -> None:
    half = HalfTraining(fp16=True, initial_loss_scale=2.0**8, loss_scale_window=3)
    half.steps(7)
    assert half.scale == 2.0**10


def test_the_scale_does_not_fall_below_its_bound() -> None:
    half = HalfTraining(fp16=True, initial_loss_scale=2.0**40, min_loss_scale=2.0**39, hysteresis=1)
    half.steps(4)
    assert half.scale == 2.0**39


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_scale_is_part_of_a_checkpoint(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    from primus.trainer.checkpoint import load_newest, save

    changes = {"fp16": True, "initial_loss_scale": 2.0**30, "hysteresis": 1, **optimizer}
    whole = HalfTraining(**changes)
    wanted = whole.steps(24)
    assert {norm is None for norm in whole.norms} == {True, False}
    first = HalfTraining(**changes)
    first.steps(9)
    save(first.state, tmp_path, ABOUT)
    second = HalfTraining(**changes)
    load_newest(second.state, tmp_path, ABOUT["key"])  # type: ignore[arg-type]
    assert second.scale == first.scale < 2.0**30
    assert second.steps(15) == wanted[9:]
    assert second.scale == whole.scale


class Part:
    """A part of a chained optimizer."""

    def __init__(self) -> None:
        from megatron.core.optimizer.grad_scaler import DynamicGradScaler

        self.grad_scaler: Any = DynamicGradScaler(2.0**8, 1.0, 2.0, 0.5, 2, 1)


def test_parts_of_a_chain_share_one_scale() -> None:
    class Chain:
        def __init__(self) -> None:
            self.chained_optimizers = [Part(), Part()]

    chain = Chain()
    _share_loss_scale(chain)
    dense, experts = (part.grad_scaler for part in chain.chained_optimizers)
    dense.update(False)
    assert float(experts.scale) == 2.0**8, "not before every part has spoken"
    experts.update(True)
    assert float(dense.scale) == float(experts.scale) == 2.0**7
    assert float(dense.inv_scale) == 2.0**-7
    for _ in range(2):
        dense.update(False)
        experts.update(False)
    assert float(dense.scale) == 2.0**8, "one step counts once, however many parts there are"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bfloat16_is_trained_in_float32(optimizer: dict[str, Any]) -> None:
    """Steps below bfloat16's resolution add up in the master weights."""
    training = HalfTraining(bf16=True, lr=1e-6, min_lr=0.0, weight_decay=0.0, **optimizer)
    (norm,) = [
        p
        for n, p in training.state.chunks[0].named_parameters()
        if n.endswith("final_layernorm.weight")
    ]
    training.steps(6)
    assert norm.dtype == torch.bfloat16
    assert torch.equal(norm, torch.ones_like(norm)), "one step is below the resolution at 1"
    masters = [
        p
        for part in training.state.optimizer.chained_optimizers
        for group in part.optimizer.param_groups
        for p in group["params"]
    ]
    assert {p.dtype for p in masters} == {torch.float32}
    moved = torch.cat([p.flatten() for p in masters])
    near_one = moved[(moved - 1).abs() < 1e-3]
    assert len(near_one) >= norm.numel()
    assert not torch.equal(near_one, torch.ones_like(near_one))


def test_float8_without_transformer_engine_names_the_extra() -> None:
    from primus.trainer.model import use_transformer_engine

    class Asked:
        transformer_impl, platform, fp8 = "auto", "cuda", "hybrid"

    with pytest.raises(UnavailableError, match=r"fp8 = hybrid: .*extra 'gpu', or set fp8: null"):
        use_transformer_engine(Asked())  # type: ignore[arg-type]


def test_the_types_of_the_settings() -> None:
    from primus.trainer.model import params_dtype

    assert params_dtype(tiny(fp16=True)) == torch.float16
    assert params_dtype(tiny(bf16=True)) == torch.bfloat16
    assert params_dtype(tiny()) == torch.float32
