"""Experts: who is chosen, with what weight, and what comes out of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import sort_chunks_by_idxs as sort_chunks
from megatron.core.transformer.moe.token_dispatcher import (
    MoEAllGatherTokenDispatcher,
    MoEAlltoAllTokenDispatcher,
)
from torch import Tensor, nn
from torch.nn import functional as F
from trainer_tiny import tiny, tiny_deepseek

from primus.trainer import experts, parallel
from primus.trainer.experts import Dispatcher, ExpertLayer, SharedExperts
from primus.trainer.linear import TorchGemm
from primus.trainer.model import ModelConfig, model_config
from primus.trainer.routing import Router, choose_experts, limit_to_groups

pytestmark = [pytest.mark.usefixtures("single_rank", "eager")]

MIXTRAL: dict[str, Any] = {
    "num_experts": 4,
    "moe_ffn_hidden_size": 96,
    "moe_router_topk": 2,
    "moe_router_load_balancing_type": "aux_loss",
}


def routing(**changes: Any) -> SimpleNamespace:
    values: dict[str, Any] = {
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": False,
        "moe_router_topk": 2,
        "moe_router_topk_scaling_factor": None,
        "moe_router_num_groups": None,
        "moe_router_group_topk": None,
        "moe_router_group_score": "top2_sum",
        "balanced_routing": False,
    }
    return SimpleNamespace(**values | changes)


def expert_layer(settings: Any, **changes: Any) -> ExpertLayer:
    """The last layer's experts, with weights that make a difference."""
    parallel.seed(settings)
    config = model_config(settings)
    for name, value in changes.items():
        setattr(config, name, value)
    (chunk,) = parallel.build_chunks(settings, config, float16_module=False)
    found: Any = chunk.decoder.layers[-1].mlp  # type: ignore[union-attr]
    assert isinstance(found, ExpertLayer)
    for parameter in found.parameters():
        nn.init.normal_(parameter, 0.0, 0.2)
    return found


def dense_weights(weights: Tensor, experts: Tensor, count: int) -> Tensor:
    return torch.zeros(len(weights), count, dtype=weights.dtype).scatter(1, experts, weights)


def plain_layer(layer: ExpertLayer, x: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    """Every expert over every token, then the chosen ones' weighted sum and the shared experts'."""
    rows = x.reshape(-1, x.shape[-1])
    scale = dense_weights(weights, experts, len(layer.experts.local_experts))

    def feed_forward(mlp: Any) -> Tensor:
        gate, up = F.linear(rows, mlp.linear_fc1.weight).chunk(2, -1)
        return F.linear(F.silu(gate) * up, mlp.linear_fc2.weight)

    outputs = [feed_forward(expert) for expert in layer.experts.local_experts]
    out = sum(scale[:, [n]] * output for n, output in enumerate(outputs))
    if layer.shared_experts is not None:
        out = out + feed_forward(layer.shared_experts)
    return torch.as_tensor(out).view_as(x)


def test_post_softmax_weighs_the_chosen_logits_only() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    weights, experts = choose_experts(logits, routing())
    assert experts.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, torch.tensor([[3.0, 2.0]]).softmax(-1))


def test_pre_softmax_takes_shares_of_all_experts_and_scales_them() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    settings = routing(moe_router_pre_softmax=True, moe_router_topk_scaling_factor=16.0)
    weights, experts = choose_experts(logits, settings)
    assert experts.tolist() == [[1, 3]]
    torch.testing.assert_close(weights, 16 * logits.softmax(-1)[:, [1, 3]])


def test_a_bias_moves_the_choice_and_not_the_weights() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    bias = torch.tensor([1.0, 0.0, 0.0, -1.0])
    settings = routing(moe_router_score_function="sigmoid", moe_router_topk_scaling_factor=2.5)
    weights, experts = choose_experts(logits, settings, bias)
    assert sorted(experts.tolist()[0]) == [0, 1]
    scores = logits.sigmoid().gather(1, experts)
    torch.testing.assert_close(weights, 2.5 * scores / scores.sum())


def test_groups_are_ranked_by_their_best_or_their_two_best() -> None:
    scores = torch.tensor([[0.9, 0.0, 0.5, 0.6, 0.1, 0.2]])
    out = float("-inf")
    best = limit_to_groups(scores, groups=3, group_topk=1, group_score="max")
    assert best.tolist() == [[pytest.approx(0.9), 0.0, out, out, out, out]]
    two = limit_to_groups(scores, groups=3, group_topk=1, group_score="top2_sum")
    assert two.tolist() == [[out, out, pytest.approx(0.5), pytest.approx(0.6), out, out]]


def test_routing_is_that_of_transformers_deepseek_v2() -> None:
    from transformers.models.deepseek_v2 import modeling_deepseek_v2 as models
    from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config

    theirs = models.DeepseekV2TopkRouter(
        DeepseekV2Config(
            hidden_size=32,
            n_routed_experts=16,
            num_experts_per_tok=4,
            n_group=4,
            topk_group=2,
            topk_method="group_limited_greedy",
            routed_scaling_factor=16.0,
        )
    )
    nn.init.normal_(theirs.weight)
    logits, weights, experts = theirs(torch.randn(1, 200, 32))
    settings = routing(
        moe_router_pre_softmax=True,
        moe_router_topk=4,
        moe_router_topk_scaling_factor=16.0,
        moe_router_num_groups=4,
        moe_router_group_topk=2,
        moe_router_group_score="max",
    )
    own = dense_weights(*choose_experts(logits, settings), 16)
    torch.testing.assert_close(own, dense_weights(weights, experts, 16))
    settings.moe_router_group_score = "top2_sum"
    other = dense_weights(*choose_experts(logits, settings), 16)
    assert not torch.equal(own != 0, other != 0)


def test_routing_is_that_of_transformers_deepseek_v3() -> None:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as models
    from transformers.models.deepseek_v3.configuration_deepseek_v3 import DeepseekV3Config

    theirs = models.DeepseekV3TopkRouter(
        DeepseekV3Config(
            hidden_size=32,
            n_routed_experts=16,
            num_experts_per_tok=4,
            n_group=4,
            topk_group=2,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
        )
    )
    nn.init.normal_(theirs.weight, std=0.3)
    nn.init.normal_(theirs.e_score_correction_bias, std=0.3)
    logits, weights, experts = theirs(torch.randn(1, 200, 32))
    settings = routing(
        moe_router_score_function="sigmoid",
        moe_router_topk=4,
        moe_router_topk_scaling_factor=2.5,
        moe_router_num_groups=4,
        moe_router_group_topk=2,
    )
    own = choose_experts(logits, settings, theirs.e_score_correction_bias)
    torch.testing.assert_close(dense_weights(*own, 16), dense_weights(weights, experts, 16))


@pytest.mark.parametrize("dispatcher", ["alltoall", "allgather"])
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "mixtral"])
def test_a_layer_is_the_weighted_sum_of_its_experts(family: str, dispatcher: str) -> None:
    changes = {"moe_token_dispatcher_type": dispatcher}
    if family == "mixtral":
        settings = tiny(**MIXTRAL | changes)
    else:
        settings = tiny_deepseek(family, moe_aux_loss_coeff=0.0, **changes)
    layer = expert_layer(settings)
    x = torch.randn(32, 2, 64)
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    result, _ = layer(first)
    grad = torch.randn_like(result)
    result.backward(grad)
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters()}  # type: ignore[union-attr]
    layer.zero_grad()
    logits = F.linear(second.view(-1, 64), layer.router.weight)
    wanted = plain_layer(layer, second, *choose_experts(logits, layer.config))
    wanted.backward(grad)
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-4, atol=1e-4)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_dispatcher_of_one_rank_gives_upstreams_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = torch.randn(32, 2, 64), torch.randn(32, 2, 64)

    def run(layer: ExpertLayer) -> list[Tensor]:
        mine = x.clone().requires_grad_()
        result, _ = layer(mine)
        result.backward(grad)
        return [result, mine.grad, *(p.grad for p in layer.parameters())]

    settings = tiny_deepseek("deepseek_v3")
    layer = expert_layer(settings)
    assert isinstance(layer.token_dispatcher, Dispatcher)
    pieces: list[int] = []

    def watched(rows: Tensor, sizes: Tensor, *args: Any, **kwargs: Any) -> Any:
        pieces.append(len(sizes))
        return sort_chunks(rows, sizes, *args, **kwargs)

    sorting = "megatron.core.transformer.moe.token_dispatcher.sort_chunks_by_idxs"
    monkeypatch.setattr(sorting, watched)
    own = run(layer)
    assert not pieces
    monkeypatch.setattr(experts, "Dispatcher", MoEAlltoAllTokenDispatcher)
    theirs = run(expert_layer(settings))
    assert pieces == [8, 8]
    assert all(torch.equal(*pair) for pair in zip(own, theirs, strict=True))


def test_the_other_dispatcher_can_be_chosen() -> None:
    settings = tiny_deepseek("deepseek_v3", moe_token_dispatcher_type="allgather")
    assert isinstance(expert_layer(settings).token_dispatcher, MoEAllGatherTokenDispatcher)


def test_an_expert_without_tokens_gets_a_gradient_of_zero() -> None:
    layer = expert_layer(tiny_deepseek("deepseek_v3"))
    layer.router.expert_bias[0] = -100.0
    result, _ = layer(torch.randn(4, 1, 64))
    result.sum().backward()
    idle, busy = layer.experts.local_experts[0], layer.experts.local_experts[1:]
    assert not idle.linear_fc1.weight.grad.any()
    assert not idle.linear_fc2.weight.grad.any()
    assert any(expert.linear_fc1.weight.grad.any() for expert in busy)


def test_a_layer_without_shared_experts_has_none() -> None:
    assert expert_layer(tiny(**MIXTRAL)).shared_experts is None
    assert isinstance(expert_layer(tiny_deepseek("deepseek_v2")).shared_experts, SharedExperts)


def test_tokens_are_counted_in_training_only_and_exactly() -> None:
    layer = expert_layer(tiny_deepseek("deepseek_v3"))
    router: Any = layer.router
    x = torch.randn(32, 2, 64)
    with torch.no_grad():
        layer(x)
    assert not router.local_tokens_per_expert.any()
    layer(x)
    layer(x)
    assert router.local_tokens_per_expert.sum() == 2 * 64 * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bias_and_counts_stay_exact_in_half_precision(dtype: torch.dtype) -> None:
    router: Any = expert_layer(tiny_deepseek("deepseek_v3")).router
    router.expert_bias.fill_(0.123456789)
    router.local_tokens_per_expert.fill_(4097)
    router.to(dtype)
    assert router.weight.dtype == dtype
    assert router.expert_bias.dtype == router.local_tokens_per_expert.dtype == torch.float32
    assert torch.equal(router.expert_bias, torch.full((8,), 0.123456789))
    assert router.local_tokens_per_expert.tolist() == [4097.0] * 8


def test_the_bias_of_a_busy_expert_falls_after_a_step() -> None:
    from megatron.core.distributed.finalize_model_grads import _update_router_expert_bias

    settings = tiny_deepseek("deepseek_v3", moe_router_bias_update_rate=0.25)
    layer = expert_layer(settings)
    layer.router.local_tokens_per_expert[:] = torch.tensor([9.0, 1, 5, 5, 5, 5, 5, 5])
    _update_router_expert_bias([layer], layer.config)
    assert layer.router.expert_bias.tolist() == [-0.25, 0.25, 0, 0, 0, 0, 0, 0]


def router_gradient(settings: Any, x: Tensor) -> Tensor:
    router = expert_layer(settings).router
    weights, _ = router(x)
    (weights.sum() * 0).backward()
    gradient: Tensor = router.weight.grad
    return gradient


@pytest.mark.parametrize("kind", ["aux_loss", "seq_aux_loss"])
def test_the_balancing_loss_is_that_of_the_switch_transformer(kind: str) -> None:
    settings = tiny_deepseek(
        "deepseek_v2", moe_router_load_balancing_type=kind, moe_aux_loss_coeff=0.5
    )
    x = torch.randn(32, 2, 64)
    gradient = router_gradient(settings, x)
    weight = expert_layer(settings).router.weight.detach().clone().requires_grad_()
    scores = F.linear(x, weight).softmax(-1)
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(4).indices, 1.0)
    sequences = [(scores[:, n], chosen[:, n]) for n in range(2)]
    if kind == "aux_loss":
        sequences = [(scores.flatten(0, 1), chosen.flatten(0, 1))]
    losses = [0.5 * 8 * ((c.mean(0) / 4) * p.mean(0)).sum() for p, c in sequences]
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-7)


def test_the_z_loss_is_the_mean_squared_logsumexp() -> None:
    settings = tiny_deepseek("deepseek_v2", moe_z_loss_coeff=0.5, moe_aux_loss_coeff=0.0)
    x = torch.randn(32, 2, 64)
    gradient = router_gradient(settings, x)
    weight = expert_layer(settings).router.weight.detach().clone().requires_grad_()
    (0.5 * F.linear(x, weight).logsumexp(-1).square().mean()).backward()
    torch.testing.assert_close(gradient, weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "wanted"), [("fp32", torch.float32), ("fp64", torch.float64), (None, torch.bfloat16)]
)
def test_the_router_computes_in_its_own_precision(dtype: str | None, wanted: torch.dtype) -> None:
    router = expert_layer(tiny_deepseek("deepseek_v2", bf16=True, moe_router_dtype=dtype)).router
    assert router.weight.dtype == torch.bfloat16
    weights, choice = router(torch.randn(4, 1, 64, dtype=torch.bfloat16))
    assert weights.dtype == wanted
    assert choice.sum(-1).tolist() == [4] * 4


def test_forced_balance_ignores_the_scores() -> None:
    router = expert_layer(tiny_deepseek("deepseek_v2", moe_router_force_load_balancing=True)).router
    choices = {tuple(router(torch.ones(1, 1, 64))[1].flatten().tolist()) for _ in range(20)}
    assert len(choices) > 1


class Watched(TorchGemm):
    """Rows of every product."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        self.rows.append(a.shape[0])
        return super().mm(a, b)


def test_balanced_routing_gives_every_expert_its_share() -> None:
    settings = tiny_deepseek("deepseek_v2", moe_aux_loss_coeff=0.0)
    layer = expert_layer(settings, balanced_routing=True)
    x = torch.randn(11, 1, 64)
    layer.config.gemm = layer.experts.config.gemm = watched = Watched()
    result, _ = layer(x)
    # Router, 44 = 11 · 4 places for 8 experts, and then each expert's second product.
    assert watched.rows[-16:] == [6, 6, 6, 6, 5, 5, 5, 5] * 2
    logits = F.linear(x.view(-1, 64), layer.router.weight)
    wanted = plain_layer(layer, x, *choose_experts(logits, layer.config))
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)


def test_a_copy_of_the_configuration_multiplies_with_the_same_object() -> None:
    from copy import deepcopy

    config: ModelConfig = model_config(tiny_deepseek("deepseek_v2"), Watched())
    assert deepcopy(config).gemm is config.gemm
    layer = expert_layer(tiny_deepseek("deepseek_v2"))
    assert layer.experts.config.gemm is layer.config.gemm


def test_the_router_replaces_upstreams() -> None:
    assert isinstance(expert_layer(tiny_deepseek("deepseek_v3")).router, Router)
