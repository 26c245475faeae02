"""Multi-latent attention (DeepSeek-V2, arXiv:2405.04434) and yarn. Names are Megatron's."""

from __future__ import annotations

from typing import Literal

from primus.config.schema.keys import Keys, Stage, key

_SHAPES_AND_TRAIN: tuple[Stage, ...] = ("shapes", "train")


class LatentAttention(Keys):
    """Keys of attention with low-rank queries, keys and values."""

    multi_latent_attention: bool = key(
        False,
        doc="Multi-latent attention instead of grouped queries.",
        identity=_SHAPES_AND_TRAIN,
    )
    q_lora_rank: int | None = key(
        None,
        doc="Rank of the queries; null: a full projection.",
        identity=_SHAPES_AND_TRAIN,
        ge=1,
    )
    kv_lora_rank: int | None = key(
        None, doc="Rank of keys and values together.", identity=_SHAPES_AND_TRAIN, ge=1
    )
    qk_head_dim: int | None = key(
        None,
        doc="Size of a query or key head without its rotary part.",
        identity=_SHAPES_AND_TRAIN,
        ge=1,
    )
    qk_pos_emb_head_dim: int | None = key(
        None, doc="Rotary part of a query or key head.", identity=_SHAPES_AND_TRAIN, ge=2
    )
    v_head_dim: int | None = key(
        None, doc="Size of a value head.", identity=_SHAPES_AND_TRAIN, ge=1
    )
    rope_type: Literal["rope", "yarn"] = key(
        "rope", doc="Rotary frequencies of multi-latent attention.", identity="train"
    )
    rotary_scaling_factor: float = key(1.0, doc="Factor of yarn.", identity="train", ge=1)
    original_max_position_embeddings: int = key(
        4096, doc="Longest sequence before yarn.", identity="train", ge=1
    )
    beta_fast: float = key(32.0, doc="Yarn's fast bound.", identity="train", gt=0)
    beta_slow: float = key(1.0, doc="Yarn's slow bound.", identity="train", gt=0)
    mscale: float = key(
        1.0, doc="Yarn's factor of the rotary part's length.", identity="train", ge=0
    )
    mscale_all_dim: float = key(
        0.0, doc="Yarn's factor of the softmax scale.", identity="train", ge=0
    )
