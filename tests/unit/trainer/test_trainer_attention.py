"""Grouped-query attention against a formulation with one head at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from trainer_tiny import tiny

from primus.trainer import parallel
from primus.trainer.attention import SdpaSelfAttention, _say_if_not_fused
from primus.trainer.model import model_config

pytestmark = [pytest.mark.usefixtures("single_rank", "eager")]


def attention(settings: Any) -> tuple[SdpaSelfAttention, Tensor]:
    """The first layer's, and the rotary angles (s, 1, 1, head)."""
    parallel.seed(settings)
    (chunk,) = parallel.build_chunks(settings, model_config(settings))
    found: Any = chunk.decoder.layers[0].self_attention  # type: ignore[union-attr]
    for parameter in found.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            nn.init.normal_(parameter, 0.0, 0.3)
    return found, chunk.rotary_pos_emb(settings.seq_length)  # type: ignore[operator]


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(
        torch.ones(len(angles), half), angles[:, 0, 0, :half]
    )
    return torch.cat((turned.real, turned.imag), -1)


def plain(own: Any, x: Tensor, angles: Tensor, groups: int, queries: int) -> Tensor:
    """One sequence (s, hidden)."""
    s, first = len(x), own.linear_qkv
    x = F.rms_norm(x, x.shape[-1:], first.layer_norm_weight, 1e-5)
    rows = F.linear(x, first.weight).view(s, groups, queries + 2, -1)
    causal = torch.full((s, s), float("-inf")).triu(1)

    def norm(head: Tensor, weight: Any) -> Tensor:
        return head if weight is None else F.rms_norm(head, head.shape[-1:], weight.weight, 1e-5)

    def named(name: str) -> Any:
        return getattr(own, name) if own.config.qk_layernorm else None

    heads = []
    for group in range(groups):
        key = rotate(norm(rows[:, group, -2], named("k_layernorm")), angles)
        for number in range(queries):
            query = rotate(norm(rows[:, group, number], named("q_layernorm")), angles)
            scores = query @ key.T / key.shape[-1] ** 0.5 + causal
            heads.append(scores.softmax(-1) @ rows[:, group, -1])
    return F.linear(torch.cat(heads, -1), own.linear_proj.weight)


@pytest.mark.parametrize("qk_layernorm", [False, True])
def test_output_and_gradients_are_those_of_single_heads(qk_layernorm: bool) -> None:
    settings = tiny(qk_layernorm=qk_layernorm)
    own, angles = attention(settings)
    x = torch.randn(settings.seq_length, 1, settings.hidden_size)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    result, _ = own(first, None, rotary_pos_emb=angles)
    grad = torch.randn_like(result)
    result.backward(grad)
    gradients = {name: p.grad.clone() for name, p in own.named_parameters()}  # type: ignore[union-attr]
    own.zero_grad()
    wanted = plain(own, second[:, 0], angles, groups=2, queries=2)
    wanted.backward(grad[:, 0])
    torch.testing.assert_close(result[:, 0], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-4)
    assert ("q_layernorm.weight" in gradients) is qk_layernorm
    for name, parameter in own.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_attention_without_a_fused_kernel_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    def choice(kernel: SDPBackend) -> int:
        asked.append(kernel)
        return int(kernel.value)

    fused, plain = ((torch.Size([1, 4, 8, size]),) * 3 + (torch.float16, True) for size in (8, 9))
    for _ in range(2):
        _say_if_not_fused(fused, lambda: choice(SDPBackend.FLASH_ATTENTION))
        _say_if_not_fused(plain, lambda: choice(SDPBackend.MATH))
    assert asked == [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("attention of (1, 4, 8, 9), (1, 4, 8, 9), (1, 4, 8, 9) in torch.float16")
