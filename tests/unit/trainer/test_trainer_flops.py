"""The analytic FLOPs against those that torch counts while a model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from trainer_tiny import tiny

pytestmark = pytest.mark.usefixtures("single_rank", "eager")

AT = torch.ops.aten


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
    from primus.trainer import parallel
    from primus.trainer.flops import flops_per_token
    from primus.trainer.model import model_config

    settings = tiny(**changes)
    (model,) = parallel.build_chunks(settings, model_config(settings))
    shape = (settings.micro_batch_size, settings.seq_length)
    tokens = torch.randint(0, settings.vocab_size, shape)
    positions = torch.arange(settings.seq_length).expand(shape)
    # Fused attention on CPU is not counted; plain attention is two products, four backward.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, positions, None, labels=tokens).sum().backward()
    counted = counter.get_flop_counts()["Global"]
    assert set(counted) == {AT.mm, AT.bmm}
    # Plain attention computes the whole square of scores; the causal mask leaves half of it.
    assert counted[AT.mm] + counted[AT.bmm] / 2 == flops_per_token(settings) * tokens.numel()
