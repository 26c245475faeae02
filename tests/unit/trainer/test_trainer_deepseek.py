"""Whole models of the DeepSeek family learn, in both precisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from trainer_tiny import tiny_deepseek

from primus.trainer import parallel
from primus.trainer.forward_backward import forward_backward
from primus.trainer.model import model_config
from primus.trainer.optimizer import build_optimizer, take_step

pytestmark = [pytest.mark.usefixtures("single_rank", "eager")]

STEPS = 12


def train(settings: Any) -> tuple[list[float], Any]:
    """Losses of a few steps on one batch, and the model."""
    parallel.seed(settings)
    config = model_config(settings)
    chunks = parallel.wrap(settings, config, parallel.build_chunks(settings, config))
    optimizer = build_optimizer(settings, chunks)
    config.grad_scale_func = optimizer.scale_loss
    inputs = batch(settings)
    losses = []
    for _ in range(STEPS):
        for chunk in chunks:
            chunk.zero_grad_buffer()  # type: ignore[operator]
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3
        total, tokens = forward_backward(settings, chunks, iter([inputs]), num_microbatches=1)
        losses.append(float(total / tokens))
        updated, _ = take_step(optimizer, settings.clip_grad)
        assert updated
    return losses, chunks[0]


def batch(settings: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (settings.micro_batch_size, settings.seq_length)
    text = torch.randint(0, 64, (shape[0], shape[1] + 1), generator=generator)
    return {
        "tokens": text[:, :-1].contiguous(),
        "labels": text[:, 1:].contiguous(),
        "position_ids": torch.arange(shape[1]).expand(shape),
        "loss_mask": torch.ones(shape),
    }


@pytest.mark.parametrize("family", ["deepseek_v2_lite", "deepseek_v2", "deepseek_v3"])
def test_the_loss_falls_and_bfloat16_tracks_it(family: str) -> None:
    wide, _ = train(tiny_deepseek(family))
    assert wide[0] == pytest.approx(6.24, abs=0.05), "ln(512)"
    assert wide[-1] < wide[0] - 2
    half, _ = train(tiny_deepseek(family, bf16=True))
    assert half == pytest.approx(wide, rel=0.02)


def test_every_parameter_moves_and_so_does_the_bias_of_the_experts() -> None:
    settings = tiny_deepseek("deepseek_v3", bf16=True, moe_router_bias_update_rate=0.01)
    parallel.seed(settings)
    (start,) = parallel.build_chunks(settings, model_config(settings), float16_module=False)
    _, trained = train(settings)
    parameters = dict(trained.module.module.named_parameters())
    still = [n for n, p in start.named_parameters() if torch.equal(p, parameters[n])]
    assert not still
    biases = {n: b for n, b in trained.module.module.named_buffers() if n.endswith("expert_bias")}
    assert len(biases) == 2
    for bias in biases.values():
        # Whole steps of the update rate, up and down, in float32.
        assert bias.dtype == torch.float32
        assert bias.any()
        torch.testing.assert_close(bias, (bias / 0.01).round() * 0.01)
        assert bias.abs().max() <= 0.01 * STEPS + 1e-6
