"""The analytic FLOPs against those that torch counts while a model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from trainer_tiny import tiny, tiny_deepseek

from primus.config.frozen import StageSettings
from primus.trainer import attention_blocks

pytestmark = pytest.mark.usefixtures("single_rank", "eager", "whole_attention")

AT = torch.ops.aten


@pytest.fixture
def whole_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores at once, by torch, whose products are counted."""
    monkeypatch.setattr(attention_blocks, "serves", lambda *_: False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_query_groups": 4, "ffn_hidden_size": 160},
        {"kv_channels": 32, "num_layers": 3},
        {"untie_embeddings_and_output_weights": False},
    ],
    ids=str,
)
def test_products_of_weights_and_scores(changes: dict[str, Any]) -> None:
    from primus.config.flops import flops_per_token

    settings = tiny(**changes)
    counted = counted_flops(settings)
    assert set(counted) == {AT.mm, AT.bmm}
    # Plain attention computes the whole square of scores; the causal mask leaves half of it.
    tokens = settings.micro_batch_size * settings.seq_length
    assert counted[AT.mm] + counted[AT.bmm] / 2 == flops_per_token(settings) * tokens


@pytest.mark.parametrize("family", ["deepseek_v2_lite", "deepseek_v2", "deepseek_v3"])
def test_products_of_experts_and_latent_attention(family: str) -> None:
    from primus.config.flops import flops_per_token

    settings = tiny_deepseek(family)
    counted = counted_flops(settings)
    tokens = settings.micro_batch_size * settings.seq_length
    query = settings.qk_head_dim + settings.qk_pos_emb_head_dim
    layers = settings.num_layers + (settings.mtp_num_layers or 0)
    per_width = 3 * layers * settings.num_attention_heads * settings.seq_length
    # The values are padded to the width of queries, which the formula does not count.
    assert counted[AT.bmm] == 2 * per_width * 2 * query * tokens
    scores = per_width * (query + settings.v_head_dim)
    assert counted[AT.mm] == (flops_per_token(settings) - scores) * tokens


def counted_flops(settings: StageSettings) -> dict[Any, int]:
    """FLOPs of one forward and backward pass by operator."""
    from primus.trainer import parallel
    from primus.trainer.model import model_config

    (model,) = parallel.build_chunks(settings, model_config(settings))
    shape = (settings.micro_batch_size, settings.seq_length)
    tokens = torch.randint(0, settings.vocab_size, shape)
    positions = torch.arange(settings.seq_length).expand(shape)
    # Fused attention on CPU is not counted; plain attention is two products, four backward.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, positions, None, labels=tokens).sum().backward()
    return dict(counter.get_flop_counts()["Global"])
