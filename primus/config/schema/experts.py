"""Mixture of experts and multi-token prediction. Names are Megatron's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from primus.config.schema.keys import Keys, Stage, key

_SHAPES_AND_TRAIN: tuple[Stage, ...] = ("shapes", "train")

_TERM = r"\[[01](,[01])*\](\*\d{1,4})?"
LayerPattern = Annotated[str, StringConstraints(pattern=rf"^\(?{_TERM}(\+{_TERM})*\)?$")]


class Experts(Keys):
    """Keys of mixture-of-experts layers and of the heads that predict further tokens."""

    num_experts: int | None = key(
        None, doc="Routed experts per layer; null: dense layers.", identity=_SHAPES_AND_TRAIN, ge=2
    )
    moe_layer_freq: int | LayerPattern = key(
        1,
        doc="Every how many layers one has experts, or Megatron's pattern: ([0]*3+[1]*58).",
        identity=_SHAPES_AND_TRAIN,
    )
    moe_ffn_hidden_size: int | None = key(
        None, doc="Width of one routed expert.", identity=_SHAPES_AND_TRAIN, ge=8
    )
    moe_shared_expert_intermediate_size: int | None = key(
        None, doc="Width of all shared experts together.", identity=_SHAPES_AND_TRAIN, ge=8
    )
    moe_router_topk: int = key(
        2, doc="Experts that a token is sent to.", identity=_SHAPES_AND_TRAIN, ge=1
    )
    moe_router_num_groups: int | None = key(
        None, doc="Groups of experts for group-limited routing.", identity="train", ge=1
    )
    moe_router_group_topk: int | None = key(
        None, doc="Groups that a token may be sent to.", identity="train", ge=1
    )
    moe_router_group_score: Literal["top2_sum", "max"] = key(
        "top2_sum",
        doc="What ranks a group: its best experts' sum (DeepSeek-V3) or its best expert (V2).",
        identity="train",
    )
    moe_router_score_function: Literal["softmax", "sigmoid"] = key(
        "softmax", doc="From logits to scores.", identity="train"
    )
    moe_router_pre_softmax: bool = key(
        False, doc="Softmax over all experts, before the choice.", identity="train"
    )
    moe_router_topk_scaling_factor: float | None = key(
        None, doc="Factor of the chosen experts' scores.", identity="train", gt=0
    )
    moe_router_enable_expert_bias: bool = key(
        False,
        doc="Balance by a bias on the choice, without a loss (arXiv:2408.15664).",
        identity="train",
    )
    moe_router_bias_update_rate: float = key(
        1e-3, doc="Step of that bias per iteration.", identity="train", ge=0
    )
    moe_router_load_balancing_type: Literal["aux_loss", "seq_aux_loss", "none"] = key(
        "aux_loss", doc="Loss that balances the experts' load.", identity="train"
    )
    moe_aux_loss_coeff: float = key(
        0.0, doc="Weight of the balancing loss.", identity="train", ge=0
    )
    moe_z_loss_coeff: float | None = key(
        None, doc="Weight of the z-loss of the router.", identity="train", gt=0
    )
    moe_router_dtype: Literal["fp32", "fp64"] | None = key(
        "fp32", doc="Precision of the router; null: that of the model.", identity=_SHAPES_AND_TRAIN
    )
    moe_router_force_load_balancing: bool = key(
        False,
        doc="Route at random, for benchmarks only: the model learns nothing useful.",
        identity="train",
    )
    moe_token_dispatcher_type: Literal["alltoall", "allgather"] = key(
        "alltoall", doc="How tokens reach their experts' ranks.", identity=_SHAPES_AND_TRAIN
    )
    moe_grouped_gemm: bool = key(
        True,
        doc="One grouped GEMM for all local experts where transformer-engine has it.",
        identity=_SHAPES_AND_TRAIN,
    )

    mtp_num_layers: int | None = key(
        None,
        doc="Layers that each predict one token further (DeepSeek-V3, arXiv:2412.19437).",
        identity=_SHAPES_AND_TRAIN,
        ge=1,
    )
    mtp_loss_scaling_factor: float = key(0.1, doc="Weight of their loss.", identity="train", ge=0)
