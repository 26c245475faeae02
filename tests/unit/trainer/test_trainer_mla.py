"""Multi-latent attention computes what transformers' does, with its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainer_tiny import tiny_deepseek

from primus.trainer import parallel
from primus.trainer.mla import LatentSelfAttention, RotaryTable
from primus.trainer.model import build_model, model_config

pytestmark = [pytest.mark.usefixtures("single_rank", "eager")]

FAMILIES = ["deepseek_v2_lite", "deepseek_v2", "deepseek_v3"]


def attention(settings: Any) -> LatentSelfAttention:
    """The first layer's, with weights that make sharp scores and norms that are not all ones."""
    parallel.seed(settings)
    (chunk,) = parallel.build_chunks(settings, model_config(settings))
    found: Any = chunk.decoder.layers[0].self_attention  # type: ignore[union-attr]
    assert isinstance(found, LatentSelfAttention)
    for name, parameter in found.named_parameters():
        if name.endswith("layer_norm_weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            nn.init.normal_(parameter, 0.0, 0.3)
    return found


def transformers_attention(settings: Any, own: LatentSelfAttention) -> tuple[nn.Module, Any]:
    """transformers' module with the weights of `own`, and its rotary embedding."""
    if settings.mtp_num_layers:
        from transformers.models.deepseek_v3 import configuration_deepseek_v3 as configurations
        from transformers.models.deepseek_v3 import modeling_deepseek_v3 as models

        prefix = "DeepseekV3"
    else:
        from transformers.models.deepseek_v2 import configuration_deepseek_v2 as configurations
        from transformers.models.deepseek_v2 import modeling_deepseek_v2 as models

        prefix = "DeepseekV2"
    config = getattr(configurations, f"{prefix}Config")(
        hidden_size=settings.hidden_size,
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_attention_heads,
        q_lora_rank=settings.q_lora_rank,
        kv_lora_rank=settings.kv_lora_rank,
        qk_nope_head_dim=settings.qk_head_dim,
        qk_rope_head_dim=settings.qk_pos_emb_head_dim,
        v_head_dim=settings.v_head_dim,
        head_dim=settings.qk_pos_emb_head_dim,
        max_position_embeddings=settings.max_position_embeddings,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": settings.rotary_base,
            "factor": settings.rotary_scaling_factor,
            "original_max_position_embeddings": settings.original_max_position_embeddings,
            "beta_fast": settings.beta_fast,
            "beta_slow": settings.beta_slow,
            "mscale": settings.mscale,
            "mscale_all_dim": settings.mscale_all_dim,
        },
        attn_implementation="eager",
    )
    module = getattr(models, f"{prefix}Attention")(config, layer_idx=0)
    theirs = {
        "linear_q_proj.weight": "q_proj.weight",
        "linear_q_down_proj.weight": "q_a_proj.weight",
        "linear_q_up_proj.weight": "q_b_proj.weight",
        "linear_q_up_proj.layer_norm_weight": "q_a_layernorm.weight",
        "linear_kv_down_proj.weight": "kv_a_proj_with_mqa.weight",
        "linear_kv_up_proj.weight": "kv_b_proj.weight",
        "linear_kv_up_proj.layer_norm_weight": "kv_a_layernorm.weight",
        "linear_proj.weight": "o_proj.weight",
    }
    state = {theirs[name]: p.detach().clone() for name, p in own.named_parameters()}
    module.load_state_dict(state)
    module.names = theirs  # type: ignore[assignment]
    return module, getattr(models, f"{prefix}RotaryEmbedding")(config)


def relative_error(value: Tensor | None, wanted: Tensor | None) -> float:
    assert value is not None
    assert wanted is not None
    assert value.shape == wanted.shape
    return float(((value - wanted).abs().max() / wanted.abs().max()).detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_output_and_gradients_are_those_of_transformers(family: str) -> None:
    settings = tiny_deepseek(family)
    own = attention(settings)
    theirs, rotary = transformers_attention(settings, own)
    s, b = settings.seq_length, settings.micro_batch_size
    x = torch.randn(s, b, settings.hidden_size)
    first, second = x.clone().requires_grad_(), x.transpose(0, 1).clone().requires_grad_()
    positions = torch.arange(s).expand(b, s)
    mask = torch.full((s, s), float("-inf")).triu(1).view(1, 1, s, s)
    result, bias = own(first, None)
    wanted, _ = theirs(second, attention_mask=mask, position_embeddings=rotary(second, positions))
    assert bias is None
    assert relative_error(result, wanted.transpose(0, 1)) < 1e-5
    grad = torch.randn_like(result)
    result.backward(grad)
    wanted.backward(grad.transpose(0, 1))
    assert first.grad is not None
    assert second.grad is not None
    assert relative_error(first.grad, second.grad.transpose(0, 1)) < 1e-5
    parameters = dict(theirs.named_parameters())
    for name, parameter in own.named_parameters():
        expected = parameters[theirs.names[name]]  # type: ignore[index]
        assert relative_error(parameter.grad, expected.grad) < 1e-5, name


def test_without_yarn_the_angles_are_the_plain_ones() -> None:
    config = model_config(
        tiny_deepseek("deepseek_v3", rope_type="rope", rotary_scaling_factor=1.0, rotary_base=100)
    )
    cos, sin = RotaryTable()(config, 5, None)
    frequencies = 100.0 ** -(torch.arange(0, 8, 2) / 8)
    angles = torch.arange(5.0)[:, None] * frequencies
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())


def test_layers_share_one_table_that_is_made_once() -> None:
    settings = tiny_deepseek("deepseek_v2")
    model = build_model(settings, model_config(settings))
    tables = {id(layer.self_attention.rotary) for layer in model.decoder.layers}
    assert len(tables) == 1
    table = model.decoder.layers[0].self_attention.rotary
    tokens = torch.zeros(1, 8, dtype=torch.long)
    model(tokens, tokens, None)
    cos, _ = table.made[8]
    model(tokens, tokens, None)
    assert table.made[8][0] is cos


@pytest.mark.parametrize("rank", [None, 40])
def test_without_qk_layernorm_there_are_no_norms(rank: int | None) -> None:
    settings = tiny_deepseek("deepseek_v3", qk_layernorm=False, q_lora_rank=rank)
    names = [name for name, _ in attention(settings).named_parameters()]
    assert not [name for name in names if "norm" in name]
    assert ("linear_q_proj.weight" in names) is (rank is None)


def test_inference_is_refused() -> None:
    own = attention(tiny_deepseek("deepseek_v2"))
    with pytest.raises(NotImplementedError, match="inference"):
        own(torch.zeros(4, 1, 64), None, inference_context=object())


ATTENTION = [
    "input_layernorm.weight",
    "self_attention.linear_kv_down_proj.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight",
    "self_attention.linear_kv_up_proj.weight",
    "self_attention.linear_proj.weight",
    "self_attention.linear_q_down_proj.weight",
    "self_attention.linear_q_up_proj.layer_norm_weight",
    "self_attention.linear_q_up_proj.weight",
]
DENSE = ["mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"]
EXPERTS = [
    "pre_mlp_layernorm.weight",
    "mlp.router.weight",
    "mlp.router.expert_bias",
    "mlp.experts.experts.linear_fc1.weight",
    "mlp.experts.experts.linear_fc2.weight",
    "mlp.shared_experts.linear_fc1.weight",
    "mlp.shared_experts.linear_fc2.weight",
]


def test_checkpoints_have_the_names_that_transformer_engine_gives() -> None:
    settings = tiny_deepseek("deepseek_v3")
    model = build_model(settings, model_config(settings))
    state = model.sharded_state_dict()
    names = {value.key for name, value in state.items() if "_extra_state" not in name}
    layers = {
        "decoder.layers.0.": ATTENTION + DENSE,
        "decoder.layers.1.": ATTENTION + EXPERTS,
        "mtp.layers.0.transformer_layer.": ATTENTION + EXPERTS,
        "mtp.layers.0.": [f"{n}.weight" for n in ("enorm", "hnorm", "eh_proj", "final_layernorm")],
        "decoder.": ["final_layernorm.weight"],
        "": ["embedding.word_embeddings.weight", "output_layer.weight"],
    }
    assert names == {place + name for place, inner in layers.items() for name in inner}
